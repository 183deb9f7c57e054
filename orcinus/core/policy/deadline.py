"""The earliest deadline first; and, for the door, whether a deadline can be met at all."""

from __future__ import annotations

from math import inf

from orcinus.core.pace import Pace
from orcinus.core.policy.ageing import OVERDUE, AgeingPolicy
from orcinus.core.policy.base import Displacing, Rank, RequestView
from orcinus.core.request import Request


class Deadline(AgeingPolicy):
    """Who has no deadline comes last, until it is overdue."""

    name = "deadline"
    displacing: Displacing = "order"
    watches_time = True

    def rank(self, view: RequestView, now: float) -> Rank:
        """The instant after which nobody wants the answer."""
        if self.ages.is_overdue(view, now):
            return OVERDUE
        deadline = view.request.deadline
        return (1.0, 0.0, inf if deadline is None else deadline)


def earliest_end(request: Request, now: float, pace: Pace, *, tokens_ahead: int = 0, cached_tokens: int = 0) -> float:
    """The soonest instant at which `request` could end, were it served alone after `tokens_ahead`.

    Its shortest answer is meant: `min_tokens`, or all of `max_tokens` if no end token can come, or one. The estimate
    knows nothing of company in the batch, so it errs early: what it calls impossible is.

    Args:
        tokens_ahead: prompt tokens that are served before its own.
        cached_tokens: of its prompt, whose KV is there.
    """
    params = request.params
    shortest = max(params.min_tokens, 1) if request.end_token_ids or params.stop else request.max_tokens
    answer = 0 if request.pooling is not None else min(shortest, request.max_tokens)
    resumed = max((len(line) // 4 for line in request.resumed), default=0)
    missing = max(1, request.num_prompt_tokens + resumed - cached_tokens)
    decodes = max(0, answer - resumed - 1)
    return now + pace.prefill_seconds(tokens_ahead + missing) + decodes * pace.decode_seconds()


def can_make_it(request: Request, now: float, pace: Pace, *, tokens_ahead: int = 0, cached_tokens: int = 0) -> bool:
    """Whether the deadline, if there is one, can still be met. The door refuses what can't."""
    if request.deadline is None:
        return True
    return earliest_end(request, now, pace, tokens_ahead=tokens_ahead, cached_tokens=cached_tokens) <= request.deadline
