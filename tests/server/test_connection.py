"""Below HTTP: heads without end, senders without haste, readers that don't read (RELIABILITY.md, S22)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from orcinus.server import wire
from orcinus.server.wire import MAX_HEAD_BYTES, MAX_HEADERS, Wire

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def _echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


async def _flood(request: Request) -> StreamingResponse:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65_536
            # Once nobody is there, sending waits for nothing: let the loop notice.
            await asyncio.sleep(0)

    return StreamingResponse(endless())


@asynccontextmanager
async def _server() -> AsyncIterator[int]:
    app = Starlette(routes=[Route("/", _echo, methods=["GET", "POST"]), Route("/flood", _flood)])
    config = uvicorn.Config(
        app, port=0, http=Wire, ws="none", lifespan="off", log_config=None, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving


def talk(use: Talk) -> None:
    async def run() -> None:
        async with _server() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                await use(reader, writer)
            finally:
                writer.close()

    asyncio.run(run())


def answer_to(message: bytes) -> bytes:
    """All that is said until the connection ends."""
    said = b""

    async def use(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal said
        writer.write(message)
        said = await reader.read()

    talk(use)
    return said


GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


def refused(said: bytes, status: int) -> None:
    head, body = said.split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(body)["error"]["type"] in ("invalid_request_error", "server_error")


def test_a_head_of_the_largest_size_is_read() -> None:
    field = b"x-long: " + b"v" * (MAX_HEAD_BYTES - 100) + b"\r\n"
    assert answer_to(GET + field + b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "head",
    [
        GET + b"x-long: " + b"v" * MAX_HEAD_BYTES + b"\r\n\r\n",
        GET + b"x-endless: " + b"v" * 3 * MAX_HEAD_BYTES,
        GET + b"".join(b"x-%d: 1\r\n" % number for number in range(MAX_HEADERS)) + b"\r\n",
        b"GET /" + b"a" * 3 * MAX_HEAD_BYTES,
    ],
    ids=["long field", "endless field", "many fields", "endless target"],
)
def test_a_head_without_end_is_refused(head: bytes) -> None:
    refused(answer_to(head), 431)


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\nHo st: x\r\n\r\n", b"\0" * 100])
def test_what_is_not_http_gets_one_answer(garbage: bytes) -> None:
    refused(answer_to(garbage), 400)


def test_a_large_body_after_a_small_one_is_no_large_head() -> None:
    async def use(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for size in (10, 200_000, 10):
            head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size
            writer.write(head + b"b" * size)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert await reader.readexactly(len(str(size))) == str(size).encode()

    talk(use)


@pytest.mark.parametrize(
    ("begin", "status"),
    [(b"GET / HTT", 408), (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90\r\n\r\nb", 408), (b"", None)],
    ids=["in the head", "in the body", "before anything"],
)
def test_who_sends_too_slowly_is_left(begin: bytes, status: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MESSAGE_SECONDS", 0.2)
    monkeypatch.setattr(wire, "_CHECK_SECONDS", 0.05)
    said = answer_to(begin)
    if status is None:
        assert said == b""
    else:
        refused(said, status)


def test_who_doesnt_read_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "WRITE_STALL_SECONDS", 0.2)

    async def use(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()
        writer.write(b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await asyncio.sleep(1.0)
        writer.transport.resume_reading()
        # The flood never ends by itself, so this would go on until the test is stopped.
        with contextlib.suppress(ConnectionResetError):
            await reader.read()

    talk(use)


def test_too_many_connections_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_CONNECTIONS", 0)
    refused(answer_to(b""), 503)


async def _statuses(*sources: str) -> list[bytes]:
    """What connections that stay open are answered, one after the other."""
    async with _server() as port, contextlib.AsyncExitStack() as open_ones:
        statuses = []
        for source in sources:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
            open_ones.callback(writer.close)
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            statuses.append((await reader.readline()).split()[1])
        return statuses


def test_one_peer_may_have_only_so_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_PEER_CONNECTIONS", 2)
    here, there = "127.0.0.1", "127.0.0.2"
    assert asyncio.run(_statuses(here, here, here, there)) == [b"200"] * 4
    monkeypatch.setattr(wire, "is_loopback", lambda address: False)
    assert asyncio.run(_statuses(here, here, here, there, there)) == [b"200", b"200", b"503", b"200", b"200"]
