"""Beam search written down as plainly as can be, and a search of everything: what core's choices are compared with."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

from orcinus.core.request import BeamSearch, FinishReason, Request

Values = Callable[[tuple[int, ...]], list[float]]
"""Log-probabilities of all tokens behind an answer that has begun so."""


class Found(NamedTuple):
    """An answer, what each of its tokens adds, and why it ends."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    reason: FinishReason

    def score(self, search: BeamSearch) -> float:
        return sum(self.logprobs) / len(self.tokens) ** search.length_penalty


def reference_search(values: Values, request: Request) -> list[Found]:
    """Whole answers and the whole vocabulary at each step; the meaning is that of transformers' `num_beams`."""
    return reference_steps(values, request)[0]


def reference_steps(values: Values, request: Request) -> tuple[list[Found], list[list[Found]]]:
    """The same, and the beams that went on after each number of tokens."""
    search = request.beams
    beams: list[Found] = [Found((), (), FinishReason.LENGTH)]
    found: list[Found] = []
    steps = [beams]
    for length in range(1, request.max_tokens + 1):
        longer = [longer for beam in beams for longer in continuations(values, request, beam)]
        longer.sort(key=lambda beam: -sum(beam.logprobs))
        ends = [beam for beam in longer if beam.reason is FinishReason.STOP or length == request.max_tokens]
        found += [beam for beam in longer[: search.width] if beam in ends]
        found = sorted(found, key=lambda beam: -beam.score(search))[: search.width]
        beams = [beam for beam in longer if beam not in ends][: search.width]
        if not beams or (len(found) == search.width and no_better(beams[0], found[-1], request, length)):
            break
        steps.append(beams)
    return found, steps


def no_better(best: Found, worst: Found, request: Request, length: int) -> bool:
    search = request.beams
    if search.early_stopping is True:
        return True
    farthest = request.max_tokens if search.early_stopping == "never" and search.length_penalty > 0 else length
    return sum(best.logprobs) / farthest**search.length_penalty <= worst.score(search)


def continuations(values: Values, request: Request, beam: Found) -> list[Found]:
    longer = []
    for token, value in enumerate(values(beam.tokens)):
        is_end = token in request.end_token_ids
        if is_end and len(beam.tokens) < request.params.min_tokens:
            continue
        reason = FinishReason.STOP if is_end else FinishReason.LENGTH
        longer.append(Found((*beam.tokens, token), (*beam.logprobs, value), reason))
    return longer


def everything(values: Values, request: Request, vocab_size: int) -> list[Found]:
    """All answers that there are, best first."""
    answers = {}
    for tokens in product(range(vocab_size), repeat=request.max_tokens):
        ends = [at for at, token in enumerate(tokens) if token in request.end_token_ids]
        cut = tokens[: ends[0] + 1] if ends else tokens
        logprobs = tuple(values(cut[:at])[token] for at, token in enumerate(cut))
        answers[cut] = Found(cut, logprobs, FinishReason.STOP if ends else FinishReason.LENGTH)
    return sorted(answers.values(), key=lambda answer: -answer.score(request.beams))
