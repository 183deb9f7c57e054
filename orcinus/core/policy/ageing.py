"""Ageing: who wasn't served for too long is overdue, and comes first in its class (SYSTEMS.md, G1)."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from orcinus.core.policy.base import Facts, PlainPolicy, Rank, RequestView

OVERDUE: Rank = (0.0,)
"""All overdue ranks are equal: the earliest arrival comes first, so nobody who comes later is ever ahead."""


@dataclass(slots=True)
class _Age:
    view: RequestView
    due_at: float
    is_overdue: bool = False


class Ages:
    """When each request becomes overdue. One entry in the heap for each that isn't, put right when it comes up."""

    def __init__(self, max_wait: float) -> None:
        self._max_wait = max_wait
        self._ages: dict[int, _Age] = {}
        self._heap: list[tuple[float, int]] = []

    def enter(self, view: RequestView, now: float) -> None:
        """It begins to wait."""
        self._ages[view.number] = _Age(view, now + self._max_wait)
        heapq.heappush(self._heap, (now + self._max_wait, view.number))

    def leave(self, view: RequestView) -> None:
        """It has ended."""
        del self._ages[view.number]

    def serve(self, view: RequestView, now: float) -> None:
        """It begins to wait anew."""
        self._ages[view.number].due_at = now + self._max_wait

    def forgive(self, view: RequestView) -> None:
        """It is overdue no longer."""
        age = self._ages[view.number]
        if age.is_overdue:
            age.is_overdue = False
            heapq.heappush(self._heap, (age.due_at, view.number))

    def expedite(self, view: RequestView) -> None:
        """It is overdue from now on, whatever the time."""
        self._ages[view.number].is_overdue = True

    def is_overdue(self, view: RequestView, now: float) -> bool:
        """It stays so once it is, until it is forgiven."""
        age = self._ages[view.number]
        return age.is_overdue or now >= age.due_at

    def ripen(self, now: float) -> list[RequestView]:
        """Those that have become overdue since this was asked last."""
        ripe = []
        while self._next() <= now:
            _, number = heapq.heappop(self._heap)
            age = self._ages[number]
            age.is_overdue = True
            ripe.append(age.view)
        return ripe

    def stable_until(self) -> float:
        """When the next one becomes overdue."""
        return self._next()

    def due_by(self, at: float) -> list[RequestView]:
        """Those that become overdue by then, if nobody is served. Changes nothing: of the heap its top is looked at."""
        due, places = dict[int, RequestView](), [0]
        while places:
            place = places.pop()
            if place < len(self._heap) and self._heap[place][0] <= at:
                places += (2 * place + 1, 2 * place + 2)
                age = self._ages.get(self._heap[place][1])
                if age is not None and not age.is_overdue and age.due_at <= at:
                    due[age.view.number] = age.view
        return list(due.values())

    def _next(self) -> float:
        while self._heap:
            at, number = self._heap[0]
            age = self._ages.get(number)
            if age is None or age.is_overdue:
                heapq.heappop(self._heap)
            elif age.due_at > at:
                heapq.heapreplace(self._heap, (age.due_at, number))
            else:
                return at
        return inf


class AgeingPolicy(PlainPolicy):
    """A policy in which whoever was overdue once stays first of its class until it ends.

    So a request waits for `max_wait_seconds` at most, and then for those of its class that came before it, and for
    higher classes: whoever comes later can't be ahead any more.
    """

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.ages = Ages(facts.max_wait_seconds)

    def enter(self, view: RequestView, now: float) -> None:
        """Its wait begins."""
        self.ages.enter(view, now)

    def leave(self, view: RequestView) -> None:
        """Forget it."""
        self.ages.leave(view)

    def on_service(self, view: RequestView, tokens: int, now: float) -> None:
        """Its next wait begins."""
        self.ages.serve(view, now)

    def changed(self, waiting: Sequence[RequestView], now: float) -> Sequence[RequestView] | None:
        """Those that became overdue."""
        return self.ages.ripen(now)

    def stable_until(self, now: float) -> float:
        """The next one becomes overdue."""
        return self.ages.stable_until()
