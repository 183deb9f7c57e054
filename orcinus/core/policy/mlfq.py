"""Skip-join multi-level feedback queue (FastServe, arXiv '23 and NSDI '26; SYSTEMS.md §4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orcinus.core.policy.ageing import OVERDUE, Ages
from orcinus.core.policy.base import Displacing, Facts, PlainPolicy, Rank, RequestView

RATIO = 2.0
# Before any iteration was seen.
FIRST_QUANTUM = 0.010
# So that a strange measurement can't send a request where no number leads.
_MOST_LEVELS = 48


@dataclass(slots=True)
class _Job:
    """`entered` counts entries into levels: who came into a level first is at its head."""

    level: int
    entered: int
    used: float = 0.0


class Mlfq(PlainPolicy):
    """Short answers first although nobody knows which they are: who has used up its quantum goes one level down.

    Level k (from 0) has a quantum of `first_quantum` · 2^k seconds. A request enters at the first level whose quantum
    covers its prefill. Who wasn't served for `max_wait_seconds` is served next, and goes on from the highest level: so
    that bounds every wait between two services, as long as those that are overdue with it fit one batch.
    """

    name = "mlfq"
    displacing: Displacing = "order"
    watches_time = True
    foresees = True

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self._ages = Ages(facts.max_wait_seconds)
        self._jobs: dict[int, _Job] = {}
        self._num_entries = 0
        self._moved: list[RequestView] = []
        self.num_demotions = 0

    @property
    def first_quantum(self) -> float:
        """The shortest iteration: one decode."""
        return self.facts.pace.decode_seconds() or FIRST_QUANTUM

    def level(self, view: RequestView) -> int:
        """Where it is, from 0."""
        return self._jobs[view.number].level

    def entry_level(self, seconds: float) -> int:
        """The first level whose quantum covers a prefill of `seconds`; in those above it could only be demoted."""
        level, quantum = 0, self.first_quantum
        while quantum < seconds and level < _MOST_LEVELS:
            level, quantum = level + 1, quantum * RATIO
        return level

    def enter(self, view: RequestView, now: float) -> None:
        """Skip-join, by what its prompt will take."""
        seconds = self.facts.pace.prefill_seconds(self.facts.missing_tokens(view))
        self._jobs[view.number] = _Job(self.entry_level(seconds), self._next_entry())
        self._ages.enter(view, now)

    def leave(self, view: RequestView) -> None:
        """Forget it."""
        del self._jobs[view.number]
        self._ages.leave(view)

    def rank(self, view: RequestView, now: float) -> Rank:
        """The level, and within it the order of entry."""
        if self._ages.is_overdue(view, now):
            return OVERDUE
        job = self._jobs[view.number]
        return (1.0, 0.0, job.level, job.entered)

    def on_service(self, view: RequestView, tokens: int, now: float) -> None:
        """Its next wait begins."""
        if self._ages.is_overdue(view, now):
            self._ages.forgive(view)
            self._moved.append(view)
        self._ages.serve(view, now)

    def on_time(self, view: RequestView, seconds: float, now: float) -> None:
        """It has used part of its quantum, or the last of it."""
        job = self._jobs.get(view.number)
        if job is None:
            return
        job.used += seconds
        if job.used >= self.first_quantum * RATIO**job.level and job.level < _MOST_LEVELS:
            self._move(view, job, job.level + 1)
            self.num_demotions += 1

    def due_by(self, at: float) -> Sequence[RequestView]:
        """Those that will be overdue."""
        return self._ages.due_by(at)

    def changed(self, waiting: Sequence[RequestView], now: float) -> Sequence[RequestView] | None:
        """Those that were demoted, promoted or served in time."""
        for view in self._ages.ripen(now):
            self._move(view, self._jobs[view.number], 0)
        moved, self._moved = self._moved, []
        return [view for view in moved if view.number in self._jobs]

    def stable_until(self, now: float) -> float:
        """The next one becomes overdue."""
        return self._ages.stable_until()

    def _move(self, view: RequestView, job: _Job, level: int) -> None:
        job.level, job.entered, job.used = level, self._next_entry(), 0.0
        self._moved.append(view)

    def _next_entry(self) -> int:
        self._num_entries += 1
        return self._num_entries
