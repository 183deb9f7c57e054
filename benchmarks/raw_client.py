"""An HTTP client that costs next to nothing: it counts events and notes instants, and parses no JSON."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

_EVENT = b"data: {"
_LAST_CHUNK = b"0\r\n\r\n"


@dataclass(slots=True)
class Reply:
    """What came back for one POST; instants are those of `time.monotonic`, which every process here shares.

    Args:
        events: instants at which an event had arrived, one each.
        ended_at: 0 while it hasn't.
        body: kept of what isn't a stream.
    """

    sent_at: float = 0.0
    status: int = 0
    retry_after: float | None = None
    events: list[float] = field(default_factory=list)
    ended_at: float = 0.0
    body: bytes = b""
    failure: str = ""


class _Connection(asyncio.Protocol):
    """One keep-alive connection: a request at a time."""

    def __init__(self) -> None:
        self.reply = Reply()
        self.is_open = True
        self._ended: asyncio.Future[None] | None = None
        self._head = b""
        self._tail = b""
        self._missing: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio has connected."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    async def post(self, message: bytes) -> Reply:
        """Send, and wait for the end."""
        self._ended = asyncio.get_running_loop().create_future()
        self._head, self._tail, self._missing = b"", b"", None
        self.reply = Reply(sent_at=time.monotonic())
        self._transport.write(message)
        await self._ended
        return self.reply

    def data_received(self, data: bytes) -> None:
        """Count events; keep only what may be the beginning of one."""
        now = time.monotonic()
        if self.reply.status == 0:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            self._read_head(head)
        if self._missing is not None:
            self.reply.body += data
            if len(self.reply.body) >= self._missing:
                self._end(now)
            return
        text = self._tail + data
        self.reply.events += [now] * text.count(_EVENT)
        # No whole event fits into the tail, so none is counted twice.
        self._tail = text[-len(_EVENT) + 1 :]
        if text.endswith(_LAST_CHUNK):
            self._end(now)

    def _read_head(self, head: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        self.reply.status = int(lines[0].split(" ")[1])
        if "retry-after" in headers:
            self.reply.retry_after = float(headers["retry-after"])
        if "content-length" in headers:
            self._missing = int(headers["content-length"])

    def connection_lost(self, error: Exception | None) -> None:
        """By the server."""
        self.is_open = False
        if self._ended is not None and not self._ended.done():
            self.reply.failure = f"connection lost: {error}"
            self._end(time.monotonic())

    def _end(self, now: float) -> None:
        self.reply.ended_at = now
        assert self._ended is not None
        if not self._ended.done():
            self._ended.set_result(None)

    def close(self) -> None:
        """Hang up."""
        self._transport.close()


class RawClient:
    """POSTs to one address over as many connections as are needed at a time; idle ones are used again."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._idle: list[_Connection] = []

    def message(self, path: str, body: bytes) -> bytes:
        """The bytes of one request, made before the clock runs."""
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def post(self, message: bytes) -> Reply:
        """Send and read to the end. Never raises for what the server does."""
        try:
            connection = await self._connection()
        except OSError as error:
            return Reply(failure=f"no connection: {error}")
        reply = await connection.post(message)
        if connection.is_open:
            self._idle.append(connection)
        return reply

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, self._host, self._port)
        return connection

    def close(self) -> None:
        """All connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()
