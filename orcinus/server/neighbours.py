"""Streams of other front ends: whichever process answers a resumption, the one that holds the stream's log tells it.

A Unix socket for each front end, in the private directory. One line of JSON asks, one line of JSON answers, then the
events follow as they go to the client; closing the connection is how either side leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
from http import HTTPStatus
from pathlib import Path

import msgspec
from starlette.types import Receive, Scope, Send

from orcinus.errors import OrcinusError
from orcinus.server.delivery import run_while_connected
from orcinus.server.errors import ErrorBody, HttpRefusal, answer_to
from orcinus.server.explanations import Explainer, Explanation, not_explained
from orcinus.server.streams import STREAM_HEADERS, StreamStore, stream_not_found

_CHUNK = 64 * 1024
_ANSWER_SECONDS = 30.0
# An explanation is one line.
_MAX_ANSWER_BYTES = 32 * 2**20


class Follow(msgspec.Struct, tag="follow"):
    """Go on with a stream, for the holder of `key`."""

    stream_id: str
    key: str
    last_event_id: str | None


class Explain(msgspec.Struct, tag="explain"):
    """Where did the time of a response go?"""

    reply_id: str
    key: str


Question = Follow | Explain


class Answer(msgspec.Struct):
    """Whether the events follow, or why not; or the explanation."""

    status: int
    error: ErrorBody | None = None
    explanation: Explanation | None = None


class Neighbours:
    """This front end among the others.

    Args:
        directory: private; the sockets lie in it.
        number: of this front end.
    """

    def __init__(self, directory: Path, number: int, store: StreamStore, explainer: Explainer) -> None:
        self._directory = directory
        self._number = number
        self._store = store
        self._explainer = explainer

    async def serve(self) -> None:
        """Listen to the others for good; a process that was here before has left its socket."""
        path = self._path(self._number)
        path.unlink(missing_ok=True)
        # Nobody else holds it, and what nobody holds is closed.
        self._server = await asyncio.start_unix_server(self._tell, path)

    def owner(self, stream_id: str) -> int:
        """Which front end began a stream: the last two digits of its id say."""
        try:
            return int(stream_id[-2:], 16)
        except ValueError:
            return self._number

    def is_ours(self, stream_id: str) -> bool:
        """Whether this front end began it."""
        return self.owner(stream_id) == self._number

    async def follow(self, stream_id: str, key: str, last_event_id: str | None) -> NeighbourStream:
        """A stream that another front end began.

        Raises:
            HttpRefusal: it says no, or isn't there any more.
        """
        asked = Follow(stream_id, key, last_event_id)
        _, reader, writer = await self._ask(self.owner(stream_id), asked, stream_not_found(stream_id))
        return NeighbourStream(reader, writer)

    async def explain(self, reply_id: str, key: str) -> Explanation:
        """Of a response that another front end gave.

        Raises:
            HttpRefusal: it says no, or isn't there any more.
        """
        unknown = not_explained(reply_id)
        answer, _, writer = await self._ask(self.owner(reply_id), Explain(reply_id, key), unknown)
        writer.close()
        if answer.explanation is None:
            raise unknown
        return answer.explanation

    async def _ask(
        self, number: int, question: Question, otherwise: HttpRefusal
    ) -> tuple[Answer, asyncio.StreamReader, asyncio.StreamWriter]:
        """The answer of another front end, and the connection to it.

        Raises:
            HttpRefusal: what it says, or `otherwise` if it says nothing.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(self._path(number), limit=_MAX_ANSWER_BYTES)
        except OSError as error:
            raise otherwise from error
        writer.write(msgspec.json.encode(question) + b"\n")
        try:
            line = await asyncio.wait_for(reader.readline(), _ANSWER_SECONDS)
            answer = msgspec.json.decode(line, type=Answer)
        except (TimeoutError, OSError, ValueError, msgspec.DecodeError) as error:
            writer.close()
            raise otherwise from error
        if answer.error is not None:
            writer.close()
            why = answer.error
            raise HttpRefusal(HTTPStatus(answer.status), why.message, param=why.param, code=why.code)
        return answer, reader, writer

    def _path(self, number: int) -> Path:
        return self._directory / f"streams-{number}"

    async def _tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One neighbour's question; a neighbour that leaves ends the listening."""
        try:
            asked: Question = msgspec.json.decode(await reader.readline(), type=Question)
            answer = self._write_events(asked, writer) if isinstance(asked, Follow) else self._explain(asked, writer)
            telling = asyncio.ensure_future(answer)
            leaving = asyncio.ensure_future(reader.read(1))
            await asyncio.wait({telling, leaving}, return_when=asyncio.FIRST_COMPLETED)
            telling.cancel()
            leaving.cancel()
            await asyncio.gather(telling, leaving, return_exceptions=True)
        except (OSError, ValueError, msgspec.DecodeError):
            # The neighbour is gone, or is none; there is nobody to tell.
            return
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _explain(self, asked: Explain, writer: asyncio.StreamWriter) -> None:
        try:
            answer = Answer(HTTPStatus.OK, explanation=await self._explainer.explain(asked.reply_id, asked.key))
        except OrcinusError as error:
            refusal = answer_to(error)
            answer = Answer(refusal.status, refusal.body)
        writer.write(msgspec.json.encode(answer) + b"\n")
        await writer.drain()

    async def _write_events(self, asked: Follow, writer: asyncio.StreamWriter) -> None:
        try:
            log, place = self._store.resume(asked.stream_id, asked.key, asked.last_event_id)
        except OrcinusError as error:
            refusal = answer_to(error)
            writer.write(msgspec.json.encode(Answer(refusal.status, refusal.body)) + b"\n")
            return
        writer.write(msgspec.json.encode(Answer(HTTPStatus.OK)) + b"\n")
        following = log.follow(place)
        try:
            async for events in following:
                writer.write(events)
                await writer.drain()
        finally:
            await following.aclose()
            self._store.release(log)


class NeighbourStream:
    """ASGI response: another front end's events, passed on as they come."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Until the end, or until the client goes away."""
        try:
            await run_while_connected(receive, self._pass_on(send))
        finally:
            self._writer.close()

    async def _pass_on(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(STREAM_HEADERS)})
        while events := await self._reader.read(_CHUNK):
            await send({"type": "http.response.body", "body": events, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def front_digits(number: int) -> str:
    """The end of the ids of what a front end begins."""
    assert 0 <= number < 256, f"front end {number}: there is room for 256"
    return f"{number:02x}"
