"""Who was in each iteration, for people who look on: a scheduler observed from outside, while somebody watches."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Several
from dataclasses import dataclass

from orcinus.core.progress import Progress
from orcinus.core.scheduler import Scheduler
from orcinus.core.sequence import Sequence
from orcinus.engine.messages import Iteration, Member, Part, Timeline

# Between two frames no more iterations are kept; the eldest go first, and a gap in their numbers tells.
MAX_ITERATIONS = 256


@dataclass(frozen=True, slots=True)
class _Planned:
    """An iteration in flight."""

    number: int
    at: float
    members: tuple[Member, ...]
    parts: tuple[Part, ...]


class Observer:
    """Tell it of every decision carried out, in order.

    Args:
        scheduler: read, never changed.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._next = scheduler.num_iterations
        self._in_flight: deque[_Planned] = deque()
        self._done: deque[tuple[_Planned, Iteration]] = deque(maxlen=MAX_ITERATIONS)
        self._last_end = 0.0
        # Where the newest plan left each sequence: with several plans in flight `num_computed` lags behind.
        self._ends: dict[int, int] = {}

    def note(self, progress: Several[Progress], begun_at: float, ended_at: float) -> None:
        """One decision was carried out between the two instants, and gave `progress`."""
        if self._scheduler.num_iterations > self._next:
            self._next = self._scheduler.num_iterations
            self._plan(begun_at)
        # Plans made before this observer came are collected first, and not known here.
        while len(self._in_flight) > self._scheduler.num_in_flight:
            self._collect(self._in_flight.popleft(), progress, ended_at)

    def frame(self) -> Timeline:
        """What has ended since the last frame, and the state of the queues now."""
        scheduler = self._scheduler
        members = {member.key: member for planned, _ in self._done for member in planned.members}
        timeline = Timeline(
            tuple(members.values()),
            tuple(iteration for _, iteration in self._done),
            num_waiting=len(scheduler.waiting),
            num_running=scheduler.num_running,
            free_blocks=scheduler.pool.num_free,
            total_blocks=scheduler.pool.num_blocks,
            preemptions=scheduler.journal.counts["Preempted"],
        )
        self._done.clear()
        return timeline

    def _plan(self, at: float) -> None:
        number = self._next - 1
        flying = [each for group in self._scheduler.running for each in group.sequences if each.in_flight]
        planned = [sequence for sequence in flying if sequence.last_iteration == number]
        parts = tuple(self._part(sequence) for sequence in planned)
        self._ends = {sequence.seq_id: sequence.num_scheduled for sequence in flying}
        self._in_flight.append(_Planned(number, at, tuple(map(_member, planned)), parts))

    def _part(self, sequence: Sequence) -> Part:
        is_alone = sequence.in_flight == 1
        start = sequence.num_computed if is_alone else self._ends.get(sequence.seq_id, sequence.num_computed)
        num_tokens = sequence.num_scheduled - start
        return Part(sequence.seq_id, start, num_tokens, num_tokens > 1 or start < sequence.num_prompt_tokens)

    def _collect(self, planned: _Planned, progress: Several[Progress], ended_at: float) -> None:
        began_at = max(planned.at, self._last_end)
        num_sampled = sum(len(one.tokens) for one in progress)
        iteration = Iteration(planned.number, began_at, ended_at - began_at, num_sampled, planned.parts)
        self._done.append((planned, iteration))
        self._last_end = ended_at


def _member(sequence: Sequence) -> Member:
    return Member(sequence.seq_id, sequence.request.request_id, sequence.index, sequence.num_prompt_tokens)
