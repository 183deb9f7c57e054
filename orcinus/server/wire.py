"""The connection below HTTP: heads have a size, senders a pace, readers patience, and what isn't HTTP gets one answer.

uvicorn's protocol over httptools, with the bounds that it lacks (RELIABILITY.md, S22).
"""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from orcinus.server.errors import JSON, ErrorEnvelope, HttpRefusal, answer_to, new_request_id
from orcinus.server.hosts import is_loopback

MAX_HEAD_BYTES, MAX_HEADERS = 16 * 1024, 100
# A message may take so long, and a second more for each thousand bytes of it.
MESSAGE_SECONDS, MIN_BYTES_PER_SECOND = 10.0, 1000
# A client that reads nothing for so long has left.
WRITE_STALL_SECONDS = 60.0
MAX_CONNECTIONS = 4096
# Of one address; not of this machine's own, where a proxy may speak for everybody.
MAX_PEER_CONNECTIONS = 1024
_CHECK_SECONDS = 1.0

_NOT_HTTP = HttpRefusal(HTTPStatus.BAD_REQUEST, "this is not HTTP/1.1 that can be read")
_LARGE_HEAD = HttpRefusal(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    f"a request's head may have {MAX_HEAD_BYTES} bytes and {MAX_HEADERS} fields",
)
_SLOW = HttpRefusal(
    HTTPStatus.REQUEST_TIMEOUT, f"the request came too slowly; send at least {MIN_BYTES_PER_SECOND} bytes a second"
)
_FULL = HttpRefusal(HTTPStatus.SERVICE_UNAVAILABLE, "there are too many connections; try again")


class _Quiet(logging.Logger):
    """uvicorn says something for each message that isn't HTTP: strangers would fill the log."""

    def __init__(self) -> None:
        super().__init__("orcinus.server.wire", logging.ERROR)


_LOGGER = _Quiet()


class Wire(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _LOGGER
        self._refusal = _NOT_HTTP
        self._in_head = True
        self._head_bytes = 0
        self._message_bytes = 0
        self._message_began = 0.0
        self._message_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it, unless there are too many."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS or self._has_too_many():
            self._refuse(_FULL)
        else:
            self._begin_message()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is left behind."""
        self._end_message()
        self._cancel_stall()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, within the bounds."""
        if self.transport.is_closing():
            return
        if self._message_timer is None:
            self._begin_message()
        self._message_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._message_bytes > 2 * MAX_HEAD_BYTES:
            # It may be one endless line, which the parser hasn't told of.
            self._refuse(_LARGE_HEAD)

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._head_bytes = 0
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        self._head_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One field."""
        self._head_bytes += len(name) + len(value) + 4
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            raise self._stop_parsing(_LARGE_HEAD)

    def on_headers_complete(self) -> None:
        """The head is whole: answer it, unless it's too large."""
        self._in_head = False
        if self._head_bytes > MAX_HEAD_BYTES:
            raise self._stop_parsing(_LARGE_HEAD)
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            raise self._stop_parsing(_NOT_HTTP)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is whole too."""
        super().on_message_complete()
        self._in_head = True
        self._end_message()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls when the parser gives up."""
        self._refuse(self._refusal)

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        super().pause_writing()
        self._cancel_stall()
        self._stall_timer = self.loop.call_later(WRITE_STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read."""
        self._cancel_stall()
        super().resume_writing()

    def _has_too_many(self) -> bool:
        """This peer. Counted only where it can be: most servers never have so many connections in all."""
        if len(self.connections) <= MAX_PEER_CONNECTIONS or self.client is None or is_loopback(self.client[0]):
            return False
        peers = [other.client for other in self.connections if isinstance(other, Wire)]
        return sum(peer is not None and peer[0] == self.client[0] for peer in peers) > MAX_PEER_CONNECTIONS

    def _begin_message(self) -> None:
        self._message_bytes = 0
        self._message_began = self.loop.time()
        self._message_timer = self.loop.call_later(MESSAGE_SECONDS, self._check_pace)

    def _check_pace(self) -> None:
        allowed = MESSAGE_SECONDS + self._message_bytes / MIN_BYTES_PER_SECOND
        # Who isn't read from can't be slow: the application takes its time, or an earlier request does.
        if self.loop.time() - self._message_began < allowed or self.flow.read_paused:
            self._message_timer = self.loop.call_later(_CHECK_SECONDS, self._check_pace)
        elif self._message_bytes:
            self._refuse(_SLOW)
        else:
            self.transport.close()

    def _end_message(self) -> None:
        self._message_bytes = 0
        if self._message_timer is not None:
            self._message_timer.cancel()
            self._message_timer = None

    def _cancel_stall(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _stop_parsing(self, refusal: HttpRefusal) -> HttpRefusal:
        self._refusal = refusal
        return refusal

    def _refuse(self, refusal: HttpRefusal) -> None:
        """Say why and close. Where an answer is on its way, or was given, nothing can be said."""
        if self.transport.is_closing():
            return
        if self.cycle is None or (self.cycle.response_complete if self._in_head else not self.cycle.response_started):
            self.transport.write(_response(refusal))
        self.transport.close()


def _response(refusal: HttpRefusal) -> bytes:
    answer = answer_to(refusal)
    body = msgspec.json.encode(ErrorEnvelope(answer.body))
    status = HTTPStatus(answer.status)
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: {JSON}\r\ncontent-length: {len(body)}\r\n"
        f"x-request-id: {new_request_id()}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
