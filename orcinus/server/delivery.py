"""How answers leave: as one body, or as server-sent events. A client that goes away ends the work for it at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

import msgspec
from msgspec import UNSET
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from orcinus.errors import OrcinusError
from orcinus.server.answers import Answers, Piece
from orcinus.server.errors import JSON, ErrorEnvelope, answer_to
from orcinus.server.responses import Dialect, Reply, Usage

logger = logging.getLogger(__name__)

_DONE = b"data: [DONE]\n\n"
_EVENT_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Proxies that buffer would turn a stream into one late answer.
    (b"x-accel-buffering", b"no"),
]


class WholeAnswer:
    """ASGI response: waits for all answers, then sends them as one JSON body."""

    def __init__(self, answers: Answers, dialect: Dialect) -> None:
        self._answers = answers
        self._dialect = dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, unless the client goes away first.

        Raises:
            OrcinusError: nothing has been sent then.
        """
        with self._answers as answers:
            await run_while_connected(receive, self._respond(answers, scope, receive, send))

    async def _respond(self, answers: Answers, scope: Scope, receive: Receive, send: Send) -> None:
        answers.submit()
        pieces: list[Piece] = []
        async for batch in answers.batches():
            pieces += batch
        body = msgspec.json.encode(self._dialect.whole(pieces, usage_of(answers)))
        await Response(body, media_type=JSON)(scope, receive, send)


class EventStream:
    """ASGI response: one write for what one iteration gave, `[DONE]` in one write with the end of the body.

    The status waits for the first tokens: what fails before them is a proper HTTP error; what fails after them is an
    error event before `[DONE]`.
    """

    def __init__(self, answers: Answers, dialect: Dialect, include_usage: bool) -> None:
        self._answers = answers
        self._dialect = dialect
        self._include_usage = include_usage
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the end, or until the client goes away.

        Raises:
            OrcinusError: nothing has been sent then.
        """
        with self._answers as answers:
            await run_while_connected(receive, self._stream(answers, send))

    async def _stream(self, answers: Answers, send: Send) -> None:
        try:
            answers.submit()
            async for pieces in answers.batches():
                await self._write(send, _events(self._dialect.chunk(pieces, None if self._include_usage else UNSET)))
            usage = [self._dialect.last(usage_of(answers))] if self._include_usage else []
            await self._write(send, _events(usage), last=True)
        except Exception as error:
            if not self._started:
                raise
            if not isinstance(error, OrcinusError):
                logger.exception("a stream ended in an error")
            await self._write(send, _event(ErrorEnvelope(answer_to(error).body)), last=True)

    async def _write(self, send: Send, events: bytes, *, last: bool = False) -> None:
        if not events and not last:
            return
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": 200, "headers": list(_EVENT_STREAM_HEADERS)})
        body = events + _DONE if last else events
        await send({"type": "http.response.body", "body": body, "more_body": not last})


def usage_of(answers: Answers) -> Usage:
    """Token counts so far."""
    prompt, generated = answers.num_prompt_tokens, answers.num_generated
    return Usage(prompt, generated, prompt + generated)


def _events(replies: Sequence[Reply]) -> bytes:
    return b"".join(map(_event, replies))


def _event(message: msgspec.Struct) -> bytes:
    return b"data: " + msgspec.json.encode(message) + b"\n\n"


async def run_while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run `work`; when the client disconnects, cancel it there and then.

    `receive` must have delivered the whole body: nothing but the disconnect may follow.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
