"""First come, first served (Orca, OSDI '22, Algorithm 1)."""

from __future__ import annotations

from orcinus.core.policy.base import PlainPolicy, Rank, RequestView


class Fcfs(PlainPolicy):
    """Every rank is equal, so arrival decides: nobody of the same class is overtaken, and the latest is preempted."""

    name = "fcfs"
    keeps_arrival_order = True
    watches_service = False

    def rank(self, view: RequestView, now: float) -> Rank:
        """The same for all."""
        return ()
