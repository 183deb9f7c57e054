"""First come, first served (Orca, OSDI '22, Algorithm 1)."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orcinus.core.policy import RequestView


class Fcfs:
    """Every rank is equal, so arrival decides."""

    name = "fcfs"

    def rank(self, view: RequestView, now: float) -> float:
        """The same for all."""
        return 0.0

    def on_service(self, view: RequestView, tokens: int, now: float) -> None:
        """Service changes nothing."""

    def stable_until(self, now: float) -> float:
        """For ever."""
        return inf
