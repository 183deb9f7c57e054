"""The clients of a simulated engine: what each was promised, what it has got, and whether that is right.

Invariants I9, I11, I12, I13 and the visible half of I28 (docs/correctness.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from closed_form import first_state, right_answer, right_search, states_of, vector_of

from orcinus.core.progress import Progress
from orcinus.core.request import FinishReason, Request, pack_tokens, unpack_tokens

BY_ITSELF = (FinishReason.STOP, FinishReason.LENGTH)


@dataclass(slots=True)
class Answer:
    """One of the n answers to a request, as its client sees it."""

    right: list[int]
    reason: FinishReason
    tokens: list[int] = field(default_factory=list)
    num_resumed: int = 0
    num_logprobs: int = 0
    num_prompt_logprobs: int = 0
    finish_reason: FinishReason | None = None
    cached_tokens: int | None = None
    # Of a search: what each token adds.
    logprobs: tuple[float, ...] = ()


class Client:
    """One request and its answers."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.prompt = list(unpack_tokens(request.prompt))
        self.first = first_state(request)
        # Of a search: the beams that go on after each number of tokens.
        self.beams: list[set[tuple[int, ...]]] = []
        self.answers = self._search() if request.beams else [self._answer(i) for i in range(request.params.n)]
        # How many prompt logprobs the next engine will say once more.
        self.num_repeated = 0
        # Ended from outside: by which cause.
        self.ended: dict[int, FinishReason] = {}

    def _answer(self, index: int) -> Answer:
        answer = Answer(*right_answer(self.request, index))
        if self.request.resumed:
            answer.tokens = list(unpack_tokens(self.request.resumed[index]))
            answer.num_resumed = len(answer.tokens)
            if answer.tokens == answer.right:
                answer.finish_reason = answer.reason
        return answer

    def _search(self) -> list[Answer]:
        found, self.beams = right_search(self.request)
        wanted = found[: self.request.params.n]
        return [Answer(list(each.tokens), each.reason, logprobs=each.logprobs) for each in wanted]

    @property
    def is_open(self) -> bool:
        """Something is still to come."""
        return any(answer.finish_reason is None for answer in self.answers)

    @property
    def max_work(self) -> int:
        """Positions that have to be computed in the worst case, were it alone."""
        return self.request.num_sequences * (len(self.prompt) + self.request.max_tokens + 1)

    def resumption(self, request_id: str) -> Request:
        """What a front end submits to go on where this client stands."""
        logs = tuple(pack_tokens(answer.tokens) for answer in self.answers)
        resumed = logs if any(logs) else ()
        return msgspec.structs.replace(self.request, request_id=request_id, resumed=resumed)

    def begin_anew(self) -> None:
        """Another engine goes on: it may count otherwise what it found in its cache."""
        self.num_repeated = self.answers[0].num_prompt_logprobs
        for answer in self.answers:
            answer.num_resumed = len(answer.tokens)
            answer.cached_tokens = None

    def take(self, part: Progress, now: float) -> None:
        """Something came."""
        answer = self.answers[part.index]
        assert answer.finish_reason is None, "I11: something came after the end"
        answer.tokens += part.tokens
        assert not self.beams or part.finish_reason, "I12: a search says something before its end"
        assert answer.tokens == answer.right[: len(answer.tokens)], "I12: a token was lost, repeated or crossed"
        self._take_logprobs(part, answer)
        if part.tokens:
            self._take_usage(part, answer)
        if part.finish_reason is not None:
            answer.finish_reason = part.finish_reason
            self._check_end(part, answer, now)
        else:
            assert answer.tokens != answer.right, "I11: the answer is complete and doesn't end"

    def _take_usage(self, part: Progress, answer: Answer) -> None:
        assert answer.cached_tokens in (None, part.cached_tokens), "I13: the count of cached tokens changed"
        assert 0 <= part.cached_tokens <= len(self.prompt), "I13: more is cached than was asked"
        answer.cached_tokens = part.cached_tokens

    def _take_logprobs(self, part: Progress, answer: Answer) -> None:
        if self.request.params.logprobs is not None:
            first = len(self.prompt) + len(answer.tokens) - len(part.tokens)
            positions = [float(first + made) for made in range(len(part.tokens))]
            right = positions if not self.beams else list(answer.logprobs[: len(part.tokens)])
            assert [line.logprob for line in part.logprobs] == right, "I12: logprobs of other tokens"
        else:
            assert not part.logprobs, "logprobs that nobody wanted"
        lines = [line.logprob for line in part.prompt_logprobs]
        if lines:
            assert part.index == 0
            assert not self.request.resumed, "I12: prompt logprobs come once more"
            assert self.request.params.prompt_logprobs is not None, "prompt logprobs that nobody wanted"
            repeated = min(self.num_repeated, len(lines))
            begin = answer.num_prompt_logprobs - self.num_repeated + 1
            assert lines == [float(begin + at) for at in range(len(lines))], "I12: prompt logprobs out of order"
            self.num_repeated -= repeated
            answer.num_prompt_logprobs += len(lines) - repeated

    def _check_end(self, part: Progress, answer: Answer, now: float) -> None:
        reason = part.finish_reason
        if part.index in self.ended:
            assert reason is self.ended[part.index], "I11: ended by another cause than was given"
            assert not part.tokens, "I14: tokens came with an abort"
        elif reason is FinishReason.ERROR:
            assert part.error_code, "an error without a code"
            late = part.error_code == "deadline_exceeded"
            assert not late or now >= (self.request.deadline or 0.0), "I21: ended before its deadline"
        else:
            self._check_right_end(part, answer)

    def _check_right_end(self, part: Progress, answer: Answer) -> None:
        assert part.finish_reason in BY_ITSELF, "I11: ended by nobody"
        assert (answer.tokens, part.finish_reason) == (answer.right, answer.reason), "I12: ended too early or too late"
        if self.request.pooling is not None:
            right = vector_of(states_of(self.prompt, self.first)[-1])
            assert part.pooled == right, "I12: a vector was lost or crossed"
            return
        stop_token = answer.right[-1] if answer.reason is FinishReason.STOP else None
        assert part.stop_token == stop_token, "a wrong stop token"
        if self.request.params.prompt_logprobs is not None and part.index == 0 and not self.request.resumed:
            assert answer.num_prompt_logprobs == len(self.prompt) - 1, "I12: prompt logprobs were lost"
