"""The answers of one HTTP request, from the engine's progress to pieces of text with their reasons to end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import NamedTuple, Protocol

import msgspec

from orcinus.core.clock import Clock
from orcinus.core.explain import Interval, Life
from orcinus.core.plan import TokenLogprobs
from orcinus.core.progress import Progress
from orcinus.core.request import FinishReason, Request, unpack_tokens
from orcinus.engine.client import Watcher
from orcinus.engine.messages import Abort, Outputs
from orcinus.errors import RequestFailed
from orcinus.server.history import History
from orcinus.server.metrics import Metrics
from orcinus.text.stream import PROMPT_TAIL, TextStream, text_tokens
from orcinus.text.tokenizer import Tokenizer


class ProgressStream(Protocol):
    """What the server uses of `engine.client.Stream`."""

    def arrived(self) -> list[Progress]:
        """Everything that is there; never waits."""

    def abort(self, index: int | None = None, cause: FinishReason = FinishReason.ABORT) -> None:
        """End one answer or all."""

    def close(self) -> None:
        """Nobody wants the rest."""

    def resumption(self) -> tuple[Request, list[Abort]]:
        """The request to go on with, and the answers that have ended outside the engine."""


class EngineFront(Protocol):
    """What the server uses of `engine.client.EngineClient`."""

    @property
    def alive(self) -> bool:
        """Whether an engine serves at the moment."""

    @property
    def is_leaving(self) -> bool:
        """Whether this server is about to leave."""

    @property
    def hopeless(self) -> bool:
        """Whether no engine will serve any more."""

    @property
    def num_live(self) -> int:
        """Requests that haven't ended."""

    @property
    def stats(self) -> Outputs | None:
        """State of the queues after the latest iteration."""

    def check_room(self, requests: Sequence[Request] = ()) -> None:
        """Raises Overloaded, with the time after which there may be room."""

    def submit(self, request: Request, arrival: asyncio.Event | None = None) -> ProgressStream:
        """Start a request; `arrival` is set when its stream has something to read."""

    @property
    def outages(self) -> Iterable[Interval]:
        """Times without an engine."""

    async def explain(self, request_ids: Sequence[str]) -> Sequence[Life]:
        """What the engine remembers of requests."""

    def watch(self, watcher: Watcher) -> None:
        """Show `watcher` what goes on."""

    def unwatch(self) -> None:
        """Nobody looks on any more."""


class Piece(NamedTuple):
    """What one progress adds to one answer; `choice` counts over all prompts and their n answers."""

    choice: int
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish_reason: str | None
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


class Answers:
    """All answers to the prompts of one HTTP request. Leaving its `with` block ends what still runs in the engine.

    Args:
        requests: one for each prompt, admitted.
        history: what is noted of the response.
        tokenizer: None gives pieces without text.
    """

    def __init__(
        self,
        front: EngineFront,
        requests: Sequence[Request],
        history: History,
        tokenizer: Tokenizer | None,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self.requests = requests
        self._history = history
        self.num_generated = 0
        self._front = front
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._clock = clock
        self._arrival = asyncio.Event()
        self._streams: list[ProgressStream] = []
        self._paused: list[tuple[Request, list[Abort]]] = []
        self._num_resumptions = 0
        self._answers: list[_Answer] = []
        # Of each prompt, as the first engine that began it said.
        self._cached: dict[int, int] = {}

    @property
    def num_cached(self) -> int:
        """Prompt tokens whose KV was there already, over all prompts."""
        return sum(self._cached.values())

    @property
    def num_prompt_tokens(self) -> int:
        """Over all prompts."""
        return sum(request.num_prompt_tokens for request in self.requests)

    def submit(self) -> None:
        """Send all requests to the engine.

        Raises:
            EngineDied, Overloaded: it takes no more; leave the `with` block to take back those already sent.
        """
        # In one breath with the submissions: requests that arrive together must not all find the same room.
        self._front.check_room(self.requests)
        for request in self.requests:
            stream = self._front.submit(request, self._arrival)
            self._streams.append(stream)
            self._answers += [
                _Answer(len(self._answers) + index, index, stream, request, self._tokenizer)
                for index in range(request.params.n)
            ]
        self._metrics.prompt_tokens.inc(self.num_prompt_tokens)

    def pause(self) -> list[Piece]:
        """Nobody listens: let the engine drop the work, but keep what is known, for `resume`.

        Returns:
            the pieces that had arrived and were not handed out yet.
        """
        pieces = self._pieces()
        self._history.pause(self._clock.now())
        self._paused = [stream.resumption() for stream in self._streams]
        for stream in self._streams:
            stream.close()
        return pieces

    def resume(self) -> None:
        """Somebody listens again: send the requests to the engine once more, with the tokens known.

        Raises:
            EngineDied: there is none.
        """
        first = 0
        self._streams = []
        self._num_resumptions += 1
        self._history.resume(self._clock.now())
        for paused, ended in self._paused:
            # The engine may still have to tell the end of what it was told to drop: it must not be taken for ours.
            name = f"{paused.request_id.partition('~')[0]}~{self._num_resumptions}"
            request = msgspec.structs.replace(paused, request_id=name)
            answers = self._answers[first : first + request.params.n]
            first += request.params.n
            stream = self._front.submit(request, self._arrival) if any(not each.ended for each in answers) else None
            self._streams.append(stream or _Ended())
            for abort in ended:
                self._streams[-1].abort(abort.index, abort.cause)
            for each in answers:
                each.follow(self._streams[-1])

    async def batches(self) -> AsyncIterator[list[Piece]]:
        """The pieces that arrived together, until every answer has ended.

        Raises:
            RequestFailed: one of the answers ended in an error.
        """
        while not all(answer.ended for answer in self._answers):
            self._arrival.clear()
            pieces = self._pieces()
            if pieces:
                yield pieces
            else:
                await self._arrival.wait()

    def _pieces(self) -> list[Piece]:
        return [piece for one in self._arrived() if (piece := self._take(*one)) is not None]

    def _arrived(self) -> list[tuple[_Answer, Progress]]:
        first, arrived = 0, []
        for number, (stream, request) in enumerate(zip(self._streams, self.requests, strict=True)):
            for progress in stream.arrived():
                if progress.tokens and number not in self._cached:
                    self._cached[number] = progress.cached_tokens
                    self._metrics.count_prefix(request.num_prompt_tokens, progress.cached_tokens)
                arrived.append((self._answers[first + progress.index], progress))
            first += request.params.n
        return arrived

    def _take(self, answer: _Answer, progress: Progress) -> Piece | None:
        if progress.finish_reason is FinishReason.ERROR and not answer.ended:
            self._metrics.ended[FinishReason.ERROR].inc()
            raise RequestFailed(progress.error_message, code=progress.error_code)
        piece = answer.take(progress)
        if piece is not None:
            self._count(answer, piece)
        return piece

    def _count(self, answer: _Answer, piece: Piece) -> None:
        now = self._clock.now()
        arrived_at = answer.request.arrived_at
        if piece.tokens:
            self.num_generated += len(piece.tokens)
            self._metrics.generation_tokens.inc(len(piece.tokens))
            if answer.first_token_at is None:
                answer.first_token_at = now
                self._metrics.time_to_first_token.observe(now - arrived_at)
            else:
                self._metrics.gap.observe(now - answer.last_token_at)
            answer.last_token_at = now
        if piece.finish_reason is not None:
            self._metrics.ended[piece.finish_reason].inc()
            self._metrics.latency.observe(now - arrived_at)
            if answer.first_token_at is not None and answer.num_tokens > 1:
                self._metrics.time_per_output_token.observe((now - answer.first_token_at) / (answer.num_tokens - 1))

    def close(self) -> None:
        """Nobody wants the rest, now or later."""
        self._history.end(self._clock.now())
        for stream in self._streams:
            stream.close()

    def __enter__(self) -> Answers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Ended:
    """Stands for the stream of a request whose answers have all ended."""

    def arrived(self) -> list[Progress]:
        """Nothing."""
        return []

    def abort(self, index: int | None = None, cause: FinishReason = FinishReason.ABORT) -> None:
        """There is nothing left to end."""

    def close(self) -> None:
        """There is nothing left to close."""

    def resumption(self) -> tuple[Request, list[Abort]]:
        """Never asked: a response whose answers have all ended isn't paused."""
        raise AssertionError("an ended request is not resumed")


class _Answer:
    """One answer on its way: its text so far, and whether it has ended."""

    def __init__(
        self, choice: int, index: int, stream: ProgressStream, request: Request, tokenizer: Tokenizer | None
    ) -> None:
        self.request = request
        self.ended = False
        self.num_tokens = 0
        self.first_token_at: float | None = None
        self.last_token_at = 0.0
        self._choice = choice
        self._index = index
        self._stream = stream
        tail = unpack_tokens(request.prompt[-4 * PROMPT_TAIL :])
        self._text = None if tokenizer is None else TextStream(tokenizer, tail, request.params)

    def follow(self, stream: ProgressStream) -> None:
        """Go on with another stream of the same request."""
        self._stream = stream

    def take(self, progress: Progress) -> Piece | None:
        """The next piece; None once the answer has ended, and where nothing can be told yet."""
        if self.ended:
            return None
        text, tokens, reason = self._read(progress)
        self.num_tokens += len(tokens)
        self.ended = reason is not None
        logprobs = progress.logprobs[: len(tokens)]
        end = None if reason is None else reason.value
        return Piece(self._choice, text, tokens, logprobs, end, progress.prompt_logprobs)

    def _read(self, progress: Progress) -> tuple[str, tuple[int, ...], FinishReason | None]:
        """Text, the tokens that count, and the reason to end. A stop string in the text ends the answer here."""
        reason = progress.finish_reason
        if self._text is None:
            return "", progress.tokens, reason
        delta = self._text.push(text_tokens(progress, self.request.params))
        if delta.stopped:
            self._stream.abort(self._index, FinishReason.STOP)
            return delta.text, progress.tokens[: delta.num_tokens_used], FinishReason.STOP
        if reason is None:
            return delta.text, progress.tokens, None
        text = delta.text + self._text.finish()
        return text, progress.tokens, FinishReason.STOP if self._text.stopped else reason
