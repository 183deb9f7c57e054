"""Endpoints that stream what a test says, over real sockets in the test's own event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.test_utils import TestServer

from orcinus.bench.asks import Ask, Observation
from orcinus.bench.client import StreamingClient
from orcinus.bench.endpoint import Target, connections

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
DONE = b"data: [DONE]\n\n"


def event(content: object) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def text_chunk(text: str, finish_reason: str | None = None) -> bytes:
    """As /v1/completions streams them."""
    return event({"choices": [{"index": 0, "text": text, "finish_reason": finish_reason}]})


def chat_chunk(delta: dict[str, object], finish_reason: str | None = None) -> bytes:
    """As /v1/chat/completions streams them."""
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})


def usage_chunk(prompt: int, completion: int) -> bytes:
    """What comes last with include_usage."""
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}})


def streams(*writes: bytes, cut: bool = False) -> Handler:
    """A server that writes these pieces one by one; `cut` then drops the connection in the middle of the body."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for piece in writes:
            await response.write(piece)
            await asyncio.sleep(0)
        if cut:
            assert request.transport is not None
            request.transport.close()
        return response

    return handle


def answers(body: bytes, *, status: int = 200, content_type: str = "application/json") -> Handler:
    """A server that answers every request with one body."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, status=status, content_type=content_type)

    return handle


@asynccontextmanager
async def serving(handle: Handler) -> AsyncIterator[str]:
    """The URL of a server that handles every path so."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


async def ask(
    handle: Handler, prompts: Sequence[Ask] = (Ask("hi", 3),), *, kind: str = "completions", timeout: float = 30.0
) -> list[Observation]:
    """What a client observes of such a server, one request after the other."""
    observations = []
    async with serving(handle) as url, connections("key", timeout) as session:
        client = StreamingClient(session, Target(base_url=url, model="m", kind=kind))
        for prompt in prompts:
            observation = Observation(scheduled_at=0.0, released_at=0.0)
            await client.send(prompt, observation)
            observations.append(observation)
    return observations


def observe(handle: Handler, *, kind: str = "completions", timeout: float = 30.0) -> Observation:
    """One request, from outside an event loop."""
    return asyncio.run(ask(handle, kind=kind, timeout=timeout))[0]
