"""A keep-alive connection that sends whatever bytes it is given and reads one answer."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import httptools

from fuzzing.requests import Kind, Shot

# A damaged request may be half of one: then the server waits for the rest, and we don't.
GIVE_UP_SECONDS, WIRE_PATIENCE = 60.0, 0.5


@dataclass
class Answer:
    """Of one request; status 0 if none came."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    seconds: float = 0.0
    is_whole: bool = False
    trouble: str = ""


class Reader:
    """httptools' callbacks, for one answer."""

    def __init__(self, answer: Answer, *, is_head: bool) -> None:
        self._answer = answer
        self._is_head = is_head
        self.parser = httptools.HttpResponseParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field."""
        self._answer.headers[name.decode().lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The answer to HEAD ends here, whatever length it names."""
        self._answer.status = self.parser.get_status_code()
        self._answer.is_whole = self._is_head and self._answer.status >= 200

    def on_body(self, body: bytes) -> None:
        """Some of it."""
        self._answer.body += body

    def on_message_complete(self) -> None:
        """Unless it only said to go on."""
        self._answer.is_whole = self._answer.status >= 200

    def feed(self, data: bytes) -> None:
        """Bytes from the server."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self._answer.is_whole:
                self._answer.trouble = f"not an HTTP answer: {error}"


class Connection:
    """A client's connection, kept while the server keeps it."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, shot: Shot) -> Answer:
        """Send a request; the answer as far as it comes."""
        answer = Answer()
        started_at = time.monotonic()
        try:
            self._streams = self._streams or await asyncio.open_connection(*self._address)
            reader, writer = self._streams
            writer.write(shot.wire)
            if shot.kind is Kind.HANG_UP:
                await asyncio.wait_for(reader.read(1 + shot.number % 300), 0.001 * (shot.number % 97))
            else:
                patience = GIVE_UP_SECONDS if shot.is_framed else WIRE_PATIENCE
                await asyncio.wait_for(_read(reader, answer, is_head=shot.method == "HEAD"), patience)
        except TimeoutError:
            answer.trouble = answer.trouble or "no end came"
        except OSError as error:
            answer.trouble = f"connection: {error}"
        answer.seconds = time.monotonic() - started_at
        if not (answer.is_whole and shot.is_framed and answer.headers.get("connection") != "close"):
            self.close()
        return answer

    def close(self) -> None:
        """Begin anew with the next request."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


async def _read(reader: asyncio.StreamReader, answer: Answer, *, is_head: bool) -> None:
    parsing = Reader(answer, is_head=is_head)
    while not answer.is_whole and not answer.trouble:
        data = await reader.read(2**16)
        if not data:
            answer.trouble = "the connection ended without an answer"
            return
        parsing.feed(data)
