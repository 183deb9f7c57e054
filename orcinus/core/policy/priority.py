"""By the number that the request carries; who waits too long is served all the same."""

from __future__ import annotations

from orcinus.core.policy.ageing import OVERDUE, AgeingPolicy
from orcinus.core.policy.base import Displacing, Rank, RequestView


class Priority(AgeingPolicy):
    """A lower `Request.priority` is sooner, also than those that run: they pause, or give up their KV."""

    name = "priority"
    displacing: Displacing = "order"

    def rank(self, view: RequestView, now: float) -> Rank:
        """The priority."""
        return OVERDUE if self.ages.is_overdue(view, now) else (1.0, 0.0, view.request.priority)
