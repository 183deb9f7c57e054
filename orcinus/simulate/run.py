"""One simulated run: core unchanged, a virtual clock, modelled iterations. What `advance` says is carried out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

import msgspec

from orcinus.core.clock import VirtualClock
from orcinus.core.config import SchedulerConfig
from orcinus.core.core import Collect, Core, Decision, Expired, Idle, Submit
from orcinus.core.journal import Journal
from orcinus.core.leap import Leap
from orcinus.core.progress import Progress
from orcinus.core.request import FinishReason
from orcinus.errors import ClientError
from orcinus.simulate.executor import Pace, SimulatedExecutor
from orcinus.simulate.jobs import Arrival, HangUp, Inbox, Job
from orcinus.simulate.ledger import Ledger
from orcinus.simulate.series import Glimpse, Series, Window
from orcinus.simulate.strides import Stride


class Host(Protocol):
    """The processor beside the device: when does the engine come to its next decision?"""

    def decides_at(self, now: float, decision: int, num_running: int, *, is_fresh: bool) -> float:
        """The instant, not before `now`, of decision number `decision` (waiting for a request is none).

        Args:
            is_fresh: the engine has just taken a result or woken up; else it goes on deciding.
        """
        ...


class HostCost(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds between a result and the next decision: a constant, and a price for each running sequence."""

    constant: float = 0.0
    sequence: float = 0.0

    def decides_at(self, now: float, decision: int, num_running: int, *, is_fresh: bool) -> float:
        """Equal for equal batches."""
        return now + self.constant + self.sequence * num_running if is_fresh else now


@dataclass
class Outcome:
    """What a run leaves behind.

    Args:
        ended_at: when the last answer ended.
        busy: seconds of work of each stage.
    """

    config: SchedulerConfig
    ledger: Ledger
    series: Series
    window: Window
    journal: Journal
    busy: list[float]
    num_iterations: int
    began_at: float
    ended_at: float
    tokens_run: int
    # Seconds that work waited for KV from elsewhere.
    copying: float = 0.0

    @property
    def span(self) -> float:
        """First arrival to last end."""
        return self.ended_at - self.began_at

    @property
    def idle_share(self) -> float:
        """Of the stages' time from the first arrival to the last end."""
        return 1 - sum(self.busy) / (len(self.busy) * self.span) if self.span else 0.0


@dataclass
class Simulation:
    """Jobs through core in virtual time.

    Args:
        pace: how long iterations take.
        host: how long deciding takes.
        window_at: the report's window of iterations begins here; None takes the one with the longest queue.
        sees_arrivals_midway: a request that comes while an iteration runs may start at once, if another plan may be in
            flight. An engine whose worker runs in its own process can't see it.
        leaps: pass iterations whose plans can be foreseen at once. The outcome is the same, but for a host that names
            the instant of each decision: inputs fall between two of one iteration, and a leap looks only between
            iterations. For a recorded one say no.
    """

    config: SchedulerConfig
    pace: Pace
    host: Host = field(default_factory=HostCost)
    journal: Journal = field(default_factory=Journal)
    window_at: float | None = None
    sees_arrivals_midway: bool = True
    leaps: bool = True

    def __post_init__(self) -> None:
        assert self.pace.num_stages == self.config.num_stages, "core and the machine must have equally many stages"
        self.clock = VirtualClock()
        self.core = Core(self.config, self.journal)
        self.ledger = Ledger()
        self.series = Series()
        self.window = Window(self.window_at)
        self._jobs: dict[int, Job] = {}
        self._stops: dict[str, int] = {}
        self._executor = SimulatedExecutor(self.pace, self.clock, self._jobs)
        self._num_jobs = 0
        self._num_decisions = 0
        self._is_fresh = True
        self._tokens_run = 0
        self._last_end = 0.0

    def run(self, jobs: Iterable[Job], hang_ups: Iterable[tuple[float, HangUp]] = ()) -> Outcome:
        """To the end of the last answer. `hang_ups` name jobs by their number in order of arrival."""
        self._inbox = inbox = Inbox(jobs)
        for at, hang_up in hang_ups:
            inbox.put(at, hang_up)
        began_at = inbox.next_at if inbox.next_at < inf else 0.0
        self.clock.advance_to(began_at)
        while True:
            self._leap()
            decision = self._decide()
            if decision is None:
                return self._outcome(began_at)
            if isinstance(decision, Submit):
                self._executor.submit(decision.plan)
                self._note_state(decision.plan.num_tokens)
            elif isinstance(decision, Collect):
                self._wait(decision)
            elif isinstance(decision, Expired):
                self._settle(decision.progress)

    def _next_decision_at(self) -> float:
        """When the engine decides next, if nothing comes before."""
        scheduler, now = self.core.scheduler, self.clock.now()
        return self.host.decides_at(now, self._num_decisions, scheduler.num_running, is_fresh=self._is_fresh)

    def _leap(self) -> None:
        """Pass the iterations whose plans can be foreseen."""
        if not self.leaps or not self._is_fresh or self._stops or self._inbox.next_at <= self._next_decision_at():
            return
        leap = self.core.leap(self._executor)
        if leap is None:
            return
        stride = Stride(self.ledger, leap.request_ids, self.clock.now())
        while stride.is_even:
            at = self._next_decision_at()
            if self._inbox.next_at <= at or not leap.schedule(at):
                break
            self.clock.advance_to(at)
            self._stride(leap, stride)
        leap.close()
        stride.close()

    def _stride(self, leap: Leap, stride: Stride) -> None:
        """One of them."""
        parts, further, count = leap.parts, leap.num_steps, len(leap.parts)
        # To submit and to collect.
        self._num_decisions += 2
        self._executor.forget(leap.forgotten)
        iteration = self.core.scheduler.num_iterations - 1
        began_at, done_at = self._executor.stride(iteration, count, leap.context)
        self._note_state(count)
        self.clock.advance_to(done_at)
        glimpse = Glimpse(iteration, began_at, done_at, parts, further)
        self.window.note(glimpse, (), leap.forgotten, len(self.core.scheduler.waiting))
        self._dismiss(stride.pass_by(leap.update(done_at), done_at))

    def _decide(self) -> Decision | None:
        """Core's next decision but to wait for a request: then one comes, or there is none and the run is over."""
        clock = self.clock
        while True:
            now = self._next_decision_at()
            clock.advance_to(now)
            self._is_fresh = False
            self._take_inputs(now)
            decision = self.core.advance(now)
            if not isinstance(decision, Idle):
                self._num_decisions += 1
                return decision
            next_at = self._inbox.next_at
            if next_at == inf:
                return None
            clock.advance_to(max(now, next_at))
            self._is_fresh = True

    def _wait(self, decision: Collect) -> None:
        """For the oldest plan, or for a request if it could start at once."""
        next_at = self._inbox.next_at
        if decision.has_room and self.sees_arrivals_midway and next_at < self._executor.next_done_at:
            self.clock.advance_to(next_at)
        else:
            self._collect()

    # ---- inputs

    def _take_inputs(self, now: float) -> None:
        inbox = self._inbox
        while inbox.next_at <= now:
            at, what = inbox.take()
            if isinstance(what, Arrival):
                self._add(what.job, at, now)
            else:
                self._abort(what)

    def _add(self, job: Job, at: float, now: float) -> None:
        number = self._num_jobs
        self._num_jobs += 1
        request = job.request(number, at)
        self._jobs[number] = job
        self.ledger.begin(request.request_id, job, at)
        try:
            self.core.add(request, now)
        except ClientError:
            self.ledger.refuse(request.request_id)
            del self._jobs[number]
            return
        if job.hangs_up is not None:
            self._inbox.put(at + job.hangs_up, HangUp(request.request_id))
        if job.stops_at is not None:
            self._stops[request.request_id] = job.stops_at

    def _abort(self, hang_up: HangUp) -> None:
        self._settle(self.core.abort(hang_up.request_id, self.clock.now(), hang_up.index, hang_up.cause))

    # ---- results

    def _collect(self) -> None:
        ran = self._executor.collect_ran()
        glimpse = Glimpse(ran.plan.iteration, ran.began_at, ran.done_at, ran.plan.work)
        self.window.note(glimpse, ran.plan.new, ran.plan.finished, len(self.core.scheduler.waiting))
        self._settle(self.core.update(ran.result, self.clock.now()))
        self._is_fresh = True

    def _settle(self, progress: list[Progress]) -> None:
        """Tell the ledger; what ends may give rise to a next turn."""
        self._dismiss(self.ledger.note(progress, self.clock.now()))
        if self._stops:
            self._stop_strings()

    def _dismiss(self, ended: list[tuple[Job, str]]) -> None:
        """These jobs are over now."""
        now = self.clock.now()
        for job, request_id in ended:
            self._last_end = now
            del self._jobs[int(request_id)]
            if job.follow_up is not None:
                self._inbox.put(now + job.follow_up.at, Arrival(job.follow_up))

    def _stop_strings(self) -> None:
        """The front end finds a stop string and ends the answer before the next decision."""
        reached = [each for each, count in self._stops.items() if self.ledger.tokens_of(each) >= count]
        self._stops = {each: count for each, count in self._stops.items() if self.ledger.is_live(each)}
        for request_id in reached:
            self._stops.pop(request_id, None)
        for request_id in reached:
            self._abort(HangUp(request_id, FinishReason.STOP))

    def _note_state(self, num_tokens: int) -> None:
        now, scheduler = self.clock.now(), self.core.scheduler
        pool = scheduler.pool
        self._tokens_run += num_tokens
        self.series.add(now, len(scheduler.waiting), scheduler.num_running, pool.num_blocks - pool.num_free, num_tokens)

    def _outcome(self, began_at: float) -> Outcome:
        return Outcome(
            config=self.config,
            ledger=self.ledger,
            series=self.series,
            window=self.window,
            journal=self.journal,
            busy=self._executor.busy,
            num_iterations=self.core.scheduler.num_iterations,
            began_at=began_at,
            ended_at=max(self._last_end, began_at),
            tokens_run=self._tokens_run,
            copying=self._executor.copying,
        )
