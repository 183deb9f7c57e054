"""The longest cached prefix first (SGLang, NeurIPS '24; SYSTEMS.md §3), but nobody is overtaken for ever."""

from __future__ import annotations

from collections.abc import Sequence

from orcinus.core.policy.ageing import OVERDUE, AgeingPolicy
from orcinus.core.policy.base import Facts, Rank, RequestView

# Only so many of those that wait are looked up in the cache; the others keep their order of arrival.
WINDOW = 64


class Prefix(AgeingPolicy):
    """Of the first in line, whoever finds most of its prompt in the cache starts next.

    Whoever was overtaken `max_overtakes` times, or waits for `max_wait_seconds`, is overdue and comes first.
    """

    name = "prefix"

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self._overtaken: dict[int, int] = {}
        self._matched: dict[int, int] = {}
        self._moved: list[RequestView] = []
        # What the ranks of the window were computed for.
        self._seen: tuple[int, list[int]] = (-1, [])

    def overtaken(self, view: RequestView) -> int:
        """How often somebody who came later started sooner."""
        return self._overtaken.get(view.number, 0)

    def leave(self, view: RequestView) -> None:
        """Forget it."""
        super().leave(view)
        self._overtaken.pop(view.number, None)
        self._matched.pop(view.number, None)

    def rank(self, view: RequestView, now: float) -> Rank:
        """Blocks that it would find; who isn't looked at yet comes after all who are."""
        if self.ages.is_overdue(view, now):
            return OVERDUE
        return (1.0, 0.0, -self._matched.get(view.number, -1))

    def on_start(self, view: RequestView, waiting: Sequence[RequestView], now: float) -> None:
        """Those that came before it have been overtaken."""
        came, service_class = _arrival(view), view.request.service_class
        for other in waiting:
            if other.request.service_class == service_class and _arrival(other) < came:
                self._overtaken[other.number] = self.overtaken(other) + 1
                if self._overtaken[other.number] == self.facts.max_overtakes:
                    self.ages.expedite(other)
                    self._moved.append(other)

    def changed(self, waiting: Sequence[RequestView], now: float) -> Sequence[RequestView] | None:
        """The window, if the cache or the window has changed, and those that became overdue."""
        moved = [*self._moved, *self.ages.ripen(now)]
        self._moved = []
        window = waiting[:WINDOW]
        seen = (self.facts.cache_version(), sorted(view.number for view in window))
        if seen != self._seen:
            self._seen = seen
            self._matched.update((view.number, self.facts.matched_blocks(view)) for view in window)
            moved += window
        return moved


def _arrival(view: RequestView) -> tuple[float, int]:
    return view.request.arrived_at, view.number
