"""Orca's loop as a decision: submit a plan, collect the oldest, or wait (OSDI '22, Algorithm 1, lines 1 to 13).

The engine and the simulator carry out what `advance` says; neither writes it again.
"""

from __future__ import annotations

from dataclasses import dataclass

from orcinus.core.config import SchedulerConfig
from orcinus.core.journal import Journal
from orcinus.core.kv.tiers import OnDisk
from orcinus.core.leap import Answers, Leap
from orcinus.core.plan import IterationPlan, IterationResult
from orcinus.core.progress import Progress
from orcinus.core.request import FinishReason, Request
from orcinus.core.scheduler import NOTHING_ON_DISK, Scheduler


@dataclass(frozen=True, slots=True)
class Submit:
    """Hand `plan` to the executor, then ask again."""

    plan: IterationPlan


@dataclass(frozen=True, slots=True)
class Collect:
    """Wait for the oldest result (or for an arrival, if there is room for another plan), then update and ask again."""

    has_room: bool


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing runs and nothing can: wait for a request."""


@dataclass(frozen=True, slots=True)
class Expired:
    """Deadlines have passed: tell the front end, then ask again."""

    progress: list[Progress]


Decision = Submit | Collect | Idle | Expired


class Core:
    """The scheduler and the loop around it. Every input carries its instant, so a run can be repeated exactly."""

    def __init__(
        self, config: SchedulerConfig, journal: Journal | None = None, on_disk: OnDisk = NOTHING_ON_DISK
    ) -> None:
        self.config = config
        self.on_disk = on_disk
        self.journal = Journal() if journal is None else journal
        self.scheduler = Scheduler(config, self.journal, on_disk)

    def add(self, request: Request, now: float) -> None:
        """See `Scheduler.add`."""
        self.scheduler.add(request, now)

    def abort(
        self, request_id: str, now: float, index: int | None = None, cause: FinishReason = FinishReason.ABORT
    ) -> list[Progress]:
        """See `Scheduler.abort`."""
        return self.scheduler.abort(request_id, now, index, cause)

    def advance(self, now: float) -> Decision:
        """What to do next: schedule unless `num_stages + lookahead` plans are in flight, else collect."""
        expired = self.scheduler.expire(now)
        if expired:
            return Expired(expired)
        has_room = self.scheduler.num_in_flight < self.config.plans_in_flight
        if has_room:
            plan = self.scheduler.schedule(now)
            if plan is not None:
                return Submit(plan)
        return Collect(has_room) if self.scheduler.num_in_flight else Idle()

    def update(self, result: IterationResult, now: float) -> list[Progress]:
        """See `Scheduler.update`."""
        return self.scheduler.update(result, now)

    def leap(self, answers: Answers) -> Leap | None:
        """Several iterations in place of `advance` and `update`, if the next ones are alike; nothing is in flight then.

        For those who know what will be sampled. What comes of it is what the plain loop would have made.
        """
        return self.scheduler.leap(answers)

    def new_epoch(self, now: float, *, kv_lost: bool) -> None:
        """See `Scheduler.new_epoch`."""
        self.scheduler.new_epoch(now, kv_lost=kv_lost)
