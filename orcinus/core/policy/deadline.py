"""The earliest deadline first; and nobody comes in whose deadline can't be met any more (SYSTEMS.md §6)."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from orcinus.core.pace import Pace
from orcinus.core.policy.ageing import OVERDUE, AgeingPolicy
from orcinus.core.policy.base import Displacing, Facts, Rank, RequestView
from orcinus.core.request import Request

# Of fewer iterations nothing is concluded against anybody.
ENOUGH_SEEN = 32
# Prompts whose first bytes are equal may have all but their last token in common: the smallest block's 16 tokens.
_BEGINNING = 16 * 4


class Deadline(AgeingPolicy):
    """Who has no deadline comes last, until it is overdue. Who has one that can't be met is refused.

    The estimate errs early, see `earliest_end`; of prompts that begin alike, only the longest counts as ahead, for the
    others may find all of it in the cache. And it rests on what iterations took within the last `max_wait_seconds`: an
    engine that refuses all learns nothing, so after that it takes somebody and looks again.
    """

    name = "deadline"
    displacing: Displacing = "order"
    watches_time = True

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self._missing: dict[int, int] = {}
        self._told_at = -inf

    def enter(self, view: RequestView, now: float) -> None:
        """Look once how much of its prompt must be computed."""
        super().enter(view, now)
        self._missing[view.number] = self.facts.missing_tokens(view)

    def leave(self, view: RequestView) -> None:
        """Forget it."""
        super().leave(view)
        del self._missing[view.number]

    def can_make_it(self, view: RequestView, ahead: Iterable[RequestView], now: float) -> bool:
        """By the pace of late, behind the prompts that wait before it."""
        pace, deadline = self.facts.pace, view.request.deadline
        if deadline is None or pace.num_seen < ENOUGH_SEEN or now - self._told_at > self.facts.max_wait_seconds:
            return True
        longest: dict[bytes, int] = {}
        for other in ahead:
            beginning = other.request.prompt[:_BEGINNING]
            longest[beginning] = max(longest.get(beginning, 0), self._missing[other.number])
        missing = sum(longest.values()) + self._missing[view.number]
        return earliest_end(view.request, now, pace, missing) <= deadline

    def rank(self, view: RequestView, now: float) -> Rank:
        """The instant after which nobody wants the answer."""
        if self.ages.is_overdue(view, now):
            return OVERDUE
        deadline = view.request.deadline
        return (1.0, 0.0, inf if deadline is None else deadline)

    def on_time(self, view: RequestView, seconds: float, now: float) -> None:
        """The pace has learnt something."""
        self._told_at = now


def earliest_end(request: Request, now: float, pace: Pace, missing_tokens: int) -> float:
    """The soonest instant at which `request` could end, were it served alone after `missing_tokens`, its own included.

    Its shortest answer is meant: `min_tokens`, or all of `max_tokens` if no end token can come, or one. The estimate
    knows nothing of company in the batch, so it errs early: what it calls impossible is.
    """
    params = request.params
    shortest = max(params.min_tokens, 1) if request.end_token_ids or params.stop else request.max_tokens
    answer = 0 if request.pooling is not None else min(shortest, request.max_tokens)
    resumed = max((len(line) // 4 for line in request.resumed), default=0)
    decodes = max(0, answer - resumed - 1)
    return now + pace.prefill_seconds(max(1, missing_tokens)) + decodes * pace.decode_seconds()
