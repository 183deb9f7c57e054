"""One streamed request, timed as it arrives."""

from __future__ import annotations

import time

import aiohttp
import msgspec

from orcinus.bench.asks import Ask, EndpointKind, Failure, FailureKind, Observation
from orcinus.bench.endpoint import ErrorObject, Target, error_message, failure_of, status_failure
from orcinus.bench.sse import EventParser

_DONE = b"[DONE]"
_EVENT_STREAM = "text/event-stream"


class _Delta(msgspec.Struct):
    """What is new of a message. Reasoning has two names: DeepSeek's and vLLM's newer one."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None

    @property
    def shows(self) -> bool:
        """Whether it brings anything to a reader."""
        return bool(self.content or self.reasoning_content or self.reasoning or self.tool_calls)


class _Choice(msgspec.Struct):
    """A piece of the answer, of either endpoint."""

    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Chunk(msgspec.Struct):
    """The keys of a chunk that timing needs. `error` is set by error events only."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: ErrorObject | str | None = None


class _ReadFailure(Exception):
    """The stream says, or shows, that the answer isn't one."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure


class StreamingClient:
    """Sends requests and notes when each piece of their answers arrives.

    Args:
        session: keeps the connections; the caller closes it.
    """

    def __init__(self, session: aiohttp.ClientSession, target: Target) -> None:
        self._session = session
        self._target = target
        self._decoder = msgspec.json.Decoder(_Chunk)

    async def send(self, ask: Ask, observation: Observation) -> None:
        """Fill in the observation, to the end of the answer or to its failure; nothing that a server does raises."""
        body = self._target.body(ask, stream=True)
        observation.sent_at = time.perf_counter()
        try:
            async with self._session.post(self._target.url, data=body) as response:
                await self._read(response, observation)
        except _ReadFailure as error:
            observation.failure = error.failure
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            observation.failure = failure_of(error)
        if not observation.ended_at:
            observation.ended_at = time.perf_counter()

    async def _read(self, response: aiohttp.ClientResponse, observation: Observation) -> None:
        if response.status != 200:
            raise _ReadFailure(status_failure(response.status, await response.read()))
        if response.content_type != _EVENT_STREAM:
            raise _ReadFailure(
                Failure(FailureKind.FOREIGN, f"asked for a stream, the answer is {response.content_type}")
            )
        reader = _StreamReader(self._decoder, self._target.kind, observation)
        async for received in response.content.iter_any():
            # One instant for all that came in one read: taken before any of it is parsed.
            reader.take(received, time.perf_counter())
        reader.finish()


class _StreamReader:
    """The events of one answer."""

    def __init__(self, decoder: msgspec.json.Decoder[_Chunk], kind: EndpointKind, observation: Observation) -> None:
        self._decoder = decoder
        self._kind = kind
        self._observation = observation
        self._parser = EventParser()
        self._done = False

    def take(self, received: bytes, now: float) -> None:
        """What arrived at `now`."""
        for event in self._parser.feed(received):
            if event.strip() == _DONE:
                self._done = True
                self._observation.ended_at = now
            elif not self._done:
                self._take_chunk(event, now)

    def finish(self) -> None:
        """The connection has ended: is the answer whole?"""
        observation = self._observation
        if not self._done and observation.finish_reason is None:
            raise _ReadFailure(Failure(FailureKind.CUT, f"after {observation.tokens_seen} tokens, without [DONE]"))
        if observation.finish_reason is not None and not observation.token_instants:
            # The model ended at once, or nothing that it wrote was text: the end is the first that a reader hears.
            observation.token_instants.append(observation.last_at)
        if not observation.token_instants:
            raise _ReadFailure(Failure(FailureKind.EMPTY, "the stream ended without an answer"))

    def _take_chunk(self, event: bytes, now: float) -> None:
        try:
            chunk = self._decoder.decode(event)
        except msgspec.DecodeError as error:
            raise _ReadFailure(Failure(FailureKind.FOREIGN, f"a chunk that can't be read: {error}")) from error
        if chunk.error is not None:
            raise _ReadFailure(Failure(FailureKind.ERROR_EVENT, error_message(event)))
        if chunk.usage is not None:
            self._observation.prompt_tokens = chunk.usage.prompt_tokens
            self._observation.output_tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            self._take_choice(choice, now)

    def _take_choice(self, choice: _Choice, now: float) -> None:
        observation = self._observation
        observation.last_at = now
        observation.finish_reason = choice.finish_reason or observation.finish_reason
        count = len(choice.token_ids) if choice.token_ids is not None else int(self._shows(choice))
        if count:
            observation.tokens_seen += count
            observation.token_instants.append(now)

    def _shows(self, choice: _Choice) -> bool:
        """Whether a chunk without ids brought a token.

        A chat stream opens with the role alone, which is none. A completion's chunk without text is a token whose
        characters aren't complete yet, unless it ends the answer.
        """
        if self._kind == "chat":
            return choice.delta is not None and choice.delta.shows
        return bool(choice.text) or choice.finish_reason is None
