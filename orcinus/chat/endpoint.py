"""Streamed answers over HTTP that survive a broken connection: the server keeps what it has said; we ask for the rest.

The standard library's client is enough for one conversation, so the base installation needs no other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from orcinus.bench.sse import EventParser
from orcinus.chat.display import one_line
from orcinus.errors import ConfigurationError, OrcinusError

API_KEY_VARIABLE = "ORCINUS_API_KEY"
_CONNECT_SECONDS = 10.0
_MAX_RETRIES = 8
_FIRST_PAUSE = 0.25
_LONGEST_PAUSE = 8.0
_DETAIL_CHARACTERS = 300
_JSON = "application/json"
_DONE = b"[DONE]"

Decoded = TypeVar("Decoded")


class Unreachable(OrcinusError):
    """Nobody answers at the address."""


class Refused(OrcinusError):
    """The server said no, in its own words."""


class BrokenOff(OrcinusError):
    """An answer that could be neither finished nor gone on with."""


class Usage(msgspec.Struct):
    """Token counts, as the server gives them."""

    prompt_tokens: int
    completion_tokens: int


class Delta(msgspec.Struct):
    """What is new of a message."""

    content: str | None = None


class Choice(msgspec.Struct):
    """A piece of the answer."""

    delta: Delta
    finish_reason: str | None = None


class ErrorObject(msgspec.Struct):
    """What OpenAI's servers say of an error."""

    message: str = ""


class Chunk(msgspec.Struct):
    """An event of a stream. `error` is set by error events only."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: ErrorObject | str | None = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class Endpoint:
    """An OpenAI server. Each request has a connection of its own: a conversation makes few of them.

    Args:
        url: with or without the final /v1.

    Raises:
        ConfigurationError: not an address.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError as error:
            raise ConfigurationError(f"--url is {url!r}: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(f"--url is {url!r}; it must look like http://127.0.0.1:8000")
        self._url = url
        self._host, self._port = parts.hostname, port
        self._is_secure = parts.scheme == "https"
        self._root = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def models(self) -> list[str]:
        """The models that it lists.

        Raises:
            Unreachable: nobody answers.
            Refused: it says no.
            ConfigurationError: it isn't an OpenAI server.
        """
        return [model.id for model in self.get("/v1/models", _Models).data]

    def get(self, path: str, kind: type[Decoded]) -> Decoded:
        """What it answers to a GET.

        Raises:
            Unreachable: nobody answers.
            Refused: it says no.
            ConfigurationError: it answers something else.
        """
        try:
            with self._exchange("GET", path, wait=_CONNECT_SECONDS) as response:
                content = response.read()
        except (OSError, HTTPException) as error:
            raise Unreachable(self._remedy(error)) from error
        return _decode(content, kind)

    def chat(self, request: bytes, on_retry: Callable[[], None]) -> Generator[Chunk, None, None]:
        """The events of a streamed answer, each exactly once, over as many connections as it takes.

        Args:
            request: the body of a POST /v1/chat/completions that asks for a stream.
            on_retry: called when the first attempt to go on has failed too, so that it will take a while.

        Raises:
            Unreachable: nobody answers.
            Refused: it says no, or that the answer failed.
            BrokenOff: the connection broke, and the rest can't be had.
            ConfigurationError: it isn't an OpenAI server.
        """
        last_id, attempt = "", 0
        while True:
            try:
                with self._ask_or_go_on(request, last_id) as response:
                    for event_id, data in _events(response):
                        last_id, attempt = event_id or last_id, 0
                        if data == _DONE:
                            return
                        yield _checked(_decode(data, Chunk))
                # A body that ends without its last event was cut.
                raise EOFError("the stream ended too early")
            except (OSError, EOFError, HTTPException, Unreachable) as error:
                if isinstance(error, Unreachable) and not last_id:
                    raise
                if not last_id or attempt >= _MAX_RETRIES:
                    raise BrokenOff(f"the connection broke before the answer was whole: {_words(error)}") from error
            attempt += 1
            if attempt == 2:
                on_retry()
            time.sleep(min(_FIRST_PAUSE * 2 ** (attempt - 1), _LONGEST_PAUSE))

    @contextmanager
    def _ask_or_go_on(self, request: bytes, last_id: str) -> Iterator[HTTPResponse]:
        """The answer's stream from its start, or what follows the last event that came."""
        if not last_id:
            with self._exchange("POST", "/v1/chat/completions", request) as response:
                yield response
            return
        path = f"/v1/streams/{quote(last_id.partition(':')[0])}"
        with self._exchange("GET", path, headers={"Last-Event-ID": last_id}) as response:
            yield response

    @contextmanager
    def _exchange(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        *,
        wait: float | None = None,
    ) -> Iterator[HTTPResponse]:
        """A response with status 200; leaving the block closes its connection, which ends the work for it.

        Args:
            wait: longest silence, in seconds. An answer may wait its turn for as long as the server lets it.

        Raises:
            Unreachable: no connection.
            Refused: another status.
        """
        kind = HTTPSConnection if self._is_secure else HTTPConnection
        with closing(kind(self._host, self._port, timeout=_CONNECT_SECONDS)) as connection:
            try:
                connection.connect()
            except OSError as error:
                raise Unreachable(self._remedy(error)) from error
            connection.sock.settimeout(wait)
            content = {"Content-Type": _JSON} if body is not None else {}
            connection.request(method, self._root + path, body, self._headers | content | (headers or {}))
            with connection.getresponse() as response:
                if response.status != HTTPStatus.OK:
                    raise Refused(_refusal(response))
                yield response

    def _remedy(self, error: Exception) -> str:
        return f"no server answers at {self._url} ({_words(error)}). Start one with `make serve`, or give its --url"


def _events(response: HTTPResponse) -> Iterator[tuple[str, bytes]]:
    """Events with the latest id, after which one can go on; "" where there was none.

    Line by line, so that at most one event is complete at a time.
    """
    parser, event_id = EventParser(), ""
    for line in response:
        name, _, value = line.partition(b":")
        if name == b"id":
            event_id = value.strip().decode("ascii", "replace")
        for data in parser.feed(line):
            yield event_id, data


def _decode(content: bytes, kind: type[Decoded]) -> Decoded:
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"the server doesn't answer as OpenAI's does: {error}") from error


def _checked(chunk: Chunk) -> Chunk:
    if chunk.error is not None:
        raise Refused(one_line(chunk.error if isinstance(chunk.error, str) else chunk.error.message))
    return chunk


def _refusal(response: HTTPResponse) -> str:
    """The server's own words, and when to come again if it says so."""
    content = response.read()
    try:
        error = msgspec.json.decode(content, type=Chunk).error
    except msgspec.DecodeError:
        error = None
    said = error.message if isinstance(error, ErrorObject) else error
    said = (said or content.decode(errors="replace"))[:_DETAIL_CHARACTERS].strip() or response.reason
    again = response.getheader("retry-after")
    hints = [f"HTTP {response.status}", *([f"try again in {again} s"] if again else ())]
    hints += [f"the key is read from {API_KEY_VARIABLE}"] if response.status == HTTPStatus.UNAUTHORIZED else []
    return one_line(f"{said} ({', '.join(hints)})")


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
