"""Streams that outlive their connections: what was said is kept, and `GET /v1/streams/<id>` goes on after any event.

While nobody listens, the engine works on nothing; a client that comes back has its request resumed from the tokens
known, so it reads the same bits as if it had never left. A log is kept for a minute after the end or the last listener.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from http import HTTPStatus

import msgspec
from msgspec import UNSET
from starlette.types import Receive, Scope, Send

from orcinus.errors import InvalidRequest, OrcinusError
from orcinus.server.answers import Answers, Piece
from orcinus.server.delivery import run_while_connected, usage_of
from orcinus.server.errors import MAX_ECHO_CHARACTERS, ErrorEnvelope, HttpRefusal, answer_to
from orcinus.server.responses import Dialect, Reply

logger = logging.getLogger(__name__)

KEPT_SECONDS = 60.0
# All logs together; the eldest that nobody reads go first.
MAX_KEPT_BYTES = 64 * 2**20
_DONE = b"data: [DONE]\n\n"
STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Proxies that buffer would turn a stream into one late answer.
    (b"x-accel-buffering", b"no"),
]


class StreamLog:
    """One streamed response: its events so far, and the answers that more of them come from.

    An event's id is `<stream>:<choice>:<tokens of that choice delivered with it>`; a dash follows for each event that
    brings no token, so that ids are unique.

    Args:
        stream_id: of the response.
        key: whose stream it is.
    """

    def __init__(self, stream_id: str, key: str, answers: Answers, dialect: Dialect, include_usage: bool) -> None:
        self.stream_id = stream_id
        self.key = key
        self.num_bytes = 0
        self.is_whole = False
        self._answers = answers
        self._dialect = dialect
        self._include_usage = include_usage
        self._events: list[bytes] = []
        self._ids: list[str] = []
        self._delivered: dict[int, int] = {}
        self._silent: dict[int, str] = {}
        self._has_begun = False
        self._listener: asyncio.Task[object] | None = None

    @property
    def has_listener(self) -> bool:
        """Somebody reads it at the moment."""
        return self._listener is not None

    def place_after(self, event_id: str) -> int | None:
        """How many events a client has read whose last one had this id; None if there was no such event."""
        return self._ids.index(event_id) + 1 if event_id in self._ids else None

    async def follow(self, place: int) -> AsyncGenerator[bytes, None]:
        """The events from `place` on, as they come; `[DONE]` is the last. One listener at a time: the latest.

        Raises:
            OrcinusError: it failed before anything was said.
        """
        await self._take_over()
        try:
            if self._events[place:]:
                yield b"".join(self._events[place:])
            if self.is_whole:
                return
            async for events in self._go_on():
                yield events
        finally:
            self._listener = None
            if self.is_whole:
                self._answers.close()
            else:
                self._note(self._answers.pause())

    async def _take_over(self) -> None:
        """Whoever listened before has lost the connection, whether or not it has noticed."""
        former = self._listener
        self._listener = asyncio.current_task()
        if former is not None and former is not self._listener:
            former.cancel()
            await asyncio.wait({former})
            self._listener = asyncio.current_task()

    async def _go_on(self) -> AsyncGenerator[bytes, None]:
        try:
            self._begin()
            async for pieces in self._answers.batches():
                if events := self._note(pieces):
                    yield events
            usage = [self._dialect.last(usage_of(self._answers))] if self._include_usage else []
            yield self._end(b"".join(map(_event, usage)))
        except Exception as error:
            if not self._events:
                self.is_whole = True
                raise
            if not isinstance(error, OrcinusError):
                logger.exception("a stream ended in an error")
            yield self._end(_event(ErrorEnvelope(answer_to(error).body)))

    def _begin(self) -> None:
        if self._has_begun:
            self._answers.resume()
        else:
            self._has_begun = True
            self._answers.submit()

    def _note(self, pieces: Sequence[Piece]) -> bytes:
        """Write pieces down as events; their bytes."""
        before = len(self._events)
        for piece in pieces:
            delivered = self._delivered.get(piece.choice, 0) + len(piece.tokens)
            self._silent[piece.choice] = "" if piece.tokens else self._silent.get(piece.choice, "") + "-"
            self._delivered[piece.choice] = delivered
            for reply in self._dialect.chunk((piece,), None if self._include_usage else UNSET):
                self._write(f"{self.stream_id}:{piece.choice}:{delivered}{self._silent[piece.choice]}", _event(reply))
        return b"".join(self._events[before:])

    def _end(self, last_events: bytes) -> bytes:
        """The end is one write, and so is one event of the log: nobody is left between the two."""
        self.is_whole = True
        self._write("", last_events + _DONE)
        return self._events[-1]

    def _write(self, event_id: str, event: bytes) -> None:
        if event_id:
            event = b"id: " + event_id.encode() + b"\n" + event
        self._ids.append(event_id)
        self._events.append(event)
        self.num_bytes += len(event)


def _event(message: msgspec.Struct | Reply) -> bytes:
    return b"data: " + msgspec.json.encode(message) + b"\n\n"


def stream_not_found(stream_id: str) -> HttpRefusal:
    """To be raised: unknown, forgotten, or somebody else's."""
    return HttpRefusal(
        HTTPStatus.NOT_FOUND,
        f"There is no stream {stream_id[:MAX_ECHO_CHARACTERS]!r}; streams are kept for {KEPT_SECONDS:.0f} s.",
        code="stream_not_found",
    )


class StreamStore:
    """The logs of one front end."""

    def __init__(self) -> None:
        self._logs: OrderedDict[str, StreamLog] = OrderedDict()

    def add(self, log: StreamLog) -> None:
        """Keep a log from its beginning."""
        self._logs[log.stream_id] = log

    def find(self, stream_id: str, key: str) -> StreamLog:
        """The log of a stream.

        Raises:
            HttpRefusal: unknown, forgotten, or somebody else's: the three look the same from outside.
        """
        log = self._logs.get(stream_id)
        if log is None or log.key != key:
            raise stream_not_found(stream_id)
        return log

    def resume(self, stream_id: str, key: str, last_event_id: str | None) -> tuple[StreamLog, int]:
        """The log of a stream, and how many of its events a client has read whose last one had this id.

        Raises:
            HttpRefusal: see `find`.
            InvalidRequest: there was no such event.
        """
        log = self.find(stream_id, key)
        # Its last event has no id of its own, so an empty one names nothing.
        place = log.place_after(last_event_id) if last_event_id else 0
        if place is None:
            raise InvalidRequest(
                "the stream has no event with this Last-Event-ID", param="last-event-id", code="invalid_value"
            )
        return log, place

    def release(self, log: StreamLog) -> None:
        """Its listener has left: keep it for a while, if there is room."""
        asyncio.get_running_loop().call_later(KEPT_SECONDS, self._forget, log)
        total = sum(each.num_bytes for each in self._logs.values())
        for each in [each for each in self._logs.values() if not each.has_listener]:
            if total <= MAX_KEPT_BYTES:
                break
            total -= each.num_bytes
            del self._logs[each.stream_id]

    def _forget(self, log: StreamLog) -> None:
        if not log.has_listener and self._logs.get(log.stream_id) is log:
            del self._logs[log.stream_id]


class EventStream:
    """ASGI response: one write for what one iteration gave, `[DONE]` in one write with the end of the body.

    The status waits for the first tokens: what fails before them is a proper HTTP error; what fails after them is an
    error event before `[DONE]`.

    Args:
        place: how many of the log's events the client has read already.
    """

    def __init__(self, log: StreamLog, store: StreamStore, place: int = 0) -> None:
        self._log = log
        self._store = store
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the end, or until the client goes away.

        Raises:
            OrcinusError: nothing has been sent then.
        """
        try:
            await run_while_connected(receive, self._stream(send))
        finally:
            self._store.release(self._log)

    async def _stream(self, send: Send) -> None:
        started = False
        following = self._log.follow(self._place)
        try:
            async for events in following:
                if not started:
                    started = True
                    await send({"type": "http.response.start", "status": 200, "headers": list(STREAM_HEADERS)})
                is_last = self._log.is_whole
                await send({"type": "http.response.body", "body": events, "more_body": not is_last})
            if not started:
                # Resumed after the last event: there is nothing more to read.
                await send({"type": "http.response.start", "status": 200, "headers": list(STREAM_HEADERS)})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await following.aclose()
