"""What `LLM` and `AsyncLLM` hand back: answers with their tokens, text and log-probabilities. Names as in vLLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from orcinus.core import beams
from orcinus.core.plan import TokenLogprobs
from orcinus.core.progress import Progress
from orcinus.core.request import FinishReason, Request, unpack_tokens
from orcinus.errors import RequestFailed
from orcinus.text.stream import PROMPT_TAIL, TextStream, text_tokens
from orcinus.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Logprob:
    """Of one token at one position. `rank` counts from 1, the likeliest."""

    logprob: float
    rank: int
    decoded_token: str | None = None


@dataclass(slots=True)
class CompletionOutput:
    """One answer.

    Args:
        logprobs: for each token the chosen one's and the likeliest ones', by token id; None unless asked for.
        stop_reason: the stop token that ended it, if one did.
        score: what it was compared by, if it was searched for.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | None = None
    score: float | None = None


@dataclass(slots=True)
class RequestMetrics:
    """Instants of the engine's clock, in seconds."""

    arrived_at: float
    first_token_at: float | None = None
    finished_at: float | None = None

    @property
    def ttft(self) -> float | None:
        """Arrival to first token."""
        return None if self.first_token_at is None else self.first_token_at - self.arrived_at


@dataclass(slots=True)
class RequestOutput:
    """A prompt and its n answers. `prompt_logprobs` begins with None: nothing predicts the first token."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    metrics: RequestMetrics
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    finished: bool = False


class RequestCollector:
    """Puts the progress of one request together.

    Args:
        end: called with the index of an answer whose text met a stop string; it ends the answer in the engine.
    """

    def __init__(
        self, request: Request, prompt: str | None, tokenizer: Tokenizer | None, end: Callable[[int], None]
    ) -> None:
        params = request.params
        prompt_ids = unpack_tokens(request.prompt).tolist()
        self._params = params
        self._search = request.beams
        self._tokenizer = tokenizer
        self._end = end
        self.output = RequestOutput(
            request.request_id,
            prompt,
            prompt_ids,
            [CompletionOutput(index) for index in range(params.n)],
            RequestMetrics(request.arrived_at),
            prompt_logprobs=None if params.prompt_logprobs is None else [None],
        )
        tail = prompt_ids[-PROMPT_TAIL:]
        self._streams = [
            TextStream(tokenizer, tail, params) if tokenizer is not None and params.detokenize else None
            for _ in range(params.n)
        ]

    @property
    def finished(self) -> bool:
        """Every answer has ended."""
        return self.output.finished

    def take(self, progress: Progress, now: float) -> None:
        """Add one progress.

        Raises:
            RequestFailed: the request ended in an error.
        """
        if progress.finish_reason is FinishReason.ERROR:
            raise RequestFailed(progress.error_message, code=progress.error_code)
        output = self.output.outputs[progress.index]
        if output.finish_reason is not None:
            return
        if self.output.prompt_logprobs is not None:
            first = len(self.output.prompt_logprobs)
            ids = self.output.prompt_token_ids[first:]
            self.output.prompt_logprobs += self._readable(ids, progress.prompt_logprobs)
        if progress.tokens and self.output.metrics.first_token_at is None:
            self.output.metrics.first_token_at = now
        self._take_tokens(output, progress)
        if all(output.finish_reason is not None for output in self.output.outputs):
            self.output.metrics.finished_at = now
            self.output.finished = True

    def _take_tokens(self, output: CompletionOutput, progress: Progress) -> None:
        stream = self._streams[output.index]
        used = len(progress.tokens)
        if stream is not None:
            delta = stream.push(text_tokens(progress, self._params))
            output.text += delta.text
            if delta.stopped:
                used = delta.num_tokens_used
                output.finish_reason = FinishReason.STOP.value
                self._end(output.index)
        self._take_logprobs(output, progress.tokens[:used], progress.logprobs[:used])
        output.token_ids += progress.tokens[:used]
        if output.finish_reason is None and progress.finish_reason is not None:
            output.finish_reason = progress.finish_reason.value
            output.stop_reason = progress.stop_token
            if stream is not None:
                output.text += stream.finish()
                # The last characters held back may have completed a stop string.
                output.finish_reason = FinishReason.STOP.value if stream.stopped else output.finish_reason
        if self._search is not None and output.cumulative_logprob is not None:
            length = len(output.token_ids)
            output.score = beams.score(output.cumulative_logprob, length, self._search.length_penalty)

    def _take_logprobs(
        self, output: CompletionOutput, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs]
    ) -> None:
        if self._params.logprobs is None:
            return
        output.logprobs = (output.logprobs or []) + self._readable(tokens, logprobs)
        output.cumulative_logprob = (output.cumulative_logprob or 0.0) + sum(entry.logprob for entry in logprobs)

    def _readable(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> list[dict[int, Logprob]]:
        """Per position: the likeliest tokens, and the one that stands there if it isn't among them."""
        positions = []
        for token, entry in zip(tokens, logprobs, strict=False):
            position = {
                top: Logprob(value, rank, self._text(top))
                for rank, (top, value) in enumerate(zip(entry.top_ids, entry.top_logprobs, strict=True), start=1)
            }
            position.setdefault(token, Logprob(entry.logprob, entry.rank, self._text(token)))
            positions.append(position)
        return positions

    def _text(self, token: int) -> str | None:
        return None if self._tokenizer is None else self._tokenizer.token_text(token)
