"""A recorded run as the twin's input: the same requests, answers and hang-ups, at the recorded pace or another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from orcinus.core.config import SchedulerConfig
from orcinus.core.core import Core, Idle
from orcinus.core.plan import IterationPlan, Swap
from orcinus.core.progress import Progress
from orcinus.core.recording import AbortInput, AddInput, AdvanceInput, EpochInput, Record, ResultInput, Started, read
from orcinus.core.request import FinishReason, pack_tokens, unpack_tokens
from orcinus.errors import ClientError, ConfigurationError
from orcinus.simulate.cost import Features, features_of
from orcinus.simulate.fit import Sample
from orcinus.simulate.jobs import HangUp, Job
from orcinus.simulate.run import HostCost


@dataclass(frozen=True, slots=True)
class RecordedPace:
    """Every iteration takes as long as it took then. Past the recording's end, as long as the last one."""

    seconds: list[float]
    num_stages: int = 1

    def times(self, iteration: int, features: Features) -> tuple[float, float]:
        """Whatever the plan holds: it is the recorded one."""
        return self.seconds[min(iteration, len(self.seconds) - 1)] / self.num_stages, 0.0

    def copies(self, swaps: Sequence[Swap]) -> float:
        """They are in what was recorded."""
        return 0.0


@dataclass(frozen=True, slots=True)
class RecordedHost:
    """Every decision falls when it fell then."""

    decided_at: list[float]

    def decides_at(self, now: float, decision: int, num_running: int, *, is_fresh: bool) -> float:
        """Past the recording's end, at once."""
        return max(now, self.decided_at[decision]) if decision < len(self.decided_at) else now


@dataclass
class _Heard:
    """What a request's clients were sent, by answer."""

    job: Job
    answers: list[list[int]]

    def close(self) -> Job:
        """The job, once everything is known."""
        self.job.answers = tuple(pack_tokens(tokens) for tokens in self.answers)
        self.job.output = max(1, *(len(tokens) for tokens in self.answers))
        return self.job


@dataclass
class RecordedRun:
    """Read once, by running core beside it: only core knows which tokens are whose.

    Args:
        hang_ups: with their instants; failed sequences are among them, as ends of cause error.
        decided_at: all decisions but those to wait for a request.
        samples: iterations with what they held and took, to fit a cost model on.
        pauses: seconds between a result and the next plan.
    """

    config: SchedulerConfig
    jobs: list[Job] = field(default_factory=list)
    hang_ups: list[tuple[float, HangUp]] = field(default_factory=list)
    decided_at: list[float] = field(default_factory=list)
    submitted_at: list[float] = field(default_factory=list)
    collected_at: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)

    @classmethod
    def read(cls, lines: Iterable[bytes]) -> RecordedRun:
        """Raises ConfigurationError if this is no recording."""
        records = read(lines)
        first = next(records, None)
        if not isinstance(first, Started):
            raise ConfigurationError("this is no recording: its first line is not a snapshot of the start")
        reader = _Reader(cls(first.config))
        for record in records:
            reader.take(record)
        return reader.finish()

    @property
    def seconds(self) -> list[float]:
        """How long each iteration took: from its plan, or from the result before it if that came later."""
        ends = [self.submitted_at[0], *self.collected_at] if self.submitted_at else []
        return [
            done - max(begun, before)
            for begun, before, done in zip(self.submitted_at, ends, self.collected_at, strict=False)
        ]

    def host(self) -> HostCost:
        """The middle pause, for a run at another pace."""
        pauses = sorted(self.pauses)
        return HostCost(constant=pauses[len(pauses) // 2] if pauses else 0.0)

    def free_jobs(self) -> list[Job]:
        """The jobs for a run at another pace: who hung up does so after as many seconds, who stopped after as many
        tokens."""
        for at, hang_up in self.hang_ups:
            job = self.jobs[int(hang_up.request_id)]
            if hang_up.cause is FinishReason.STOP and job.n == 1:
                job.stops_at = len(job.answers[0]) // 4
            elif hang_up.index is None:
                job.hangs_up = at - job.at
        return self.jobs


class _Reader:
    def __init__(self, run: RecordedRun) -> None:
        self._run = run
        self._core = Core(run.config)
        self._heard: list[_Heard] = []
        self._number_by_id: dict[str, int] = {}
        self._plans: list[IterationPlan] = []
        self._freed_at: float | None = None

    def take(self, record: Record) -> None:
        match record:
            case AddInput():
                self._add(record)
            case AbortInput(at=at, request_id=request_id, index=index, cause=cause):
                progress = self._core.abort(request_id, at, index, cause)
                if progress:
                    number = str(self._number_by_id[request_id])
                    self._run.hang_ups.append((at, HangUp(number, cause, index)))
            case ResultInput():
                self._result(record)
            case EpochInput(at=at, kv_lost=kv_lost):
                self._core.new_epoch(at, kv_lost=kv_lost)
            case AdvanceInput(at=at, plan=plan):
                if not isinstance(self._core.advance(at), Idle):
                    self._run.decided_at.append(at)
                if plan is not None:
                    self._plan(plan, at)
            case _:
                raise ConfigurationError("the recording holds a second snapshot; one recording is one run")

    def finish(self) -> RecordedRun:
        run = self._run
        run.jobs = [heard.close() for heard in self._heard]
        run.samples = [
            Sample(features_of(plan), seconds)
            for plan, seconds in zip(self._plans, run.seconds, strict=False)
            if seconds > 0
        ]
        return run

    def _add(self, record: AddInput) -> None:
        request = record.request
        self._number_by_id[request.request_id] = len(self._heard)
        job = Job(record.at, request.prompt, 1, request.max_tokens, n=request.params.n, recorded=request)
        resumed = [list(unpack_tokens(line)) for line in request.resumed] or [[] for _ in range(request.params.n)]
        self._heard.append(_Heard(job, resumed))
        with suppress(ClientError):
            self._core.add(request, record.at)

    def _plan(self, plan: IterationPlan, at: float) -> None:
        if self._freed_at is not None:
            self._run.pauses.append(at - self._freed_at)
        self._freed_at = None
        self._run.submitted_at.append(at)
        self._plans.append(plan)

    def _result(self, record: ResultInput) -> None:
        progress = self._core.update(record.result, record.at)
        self._run.collected_at.append(record.at)
        # Only while there is work: an idle engine waits for something else.
        self._freed_at = record.at if self._core.scheduler.groups() else None
        failed = {part.request_id for part in progress if part.finish_reason is FinishReason.ERROR}
        for part in progress:
            self._hear(part)
        for request_id in sorted(failed):
            hang_up = HangUp(str(self._number_by_id[request_id]), FinishReason.ERROR)
            self._run.hang_ups.append((record.at, hang_up))

    def _hear(self, part: Progress) -> None:
        self._heard[self._number_by_id[part.request_id]].answers[part.index].extend(part.tokens)
