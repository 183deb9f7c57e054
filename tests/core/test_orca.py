"""Admission `reserve` is Orca's Algorithm 1 (OSDI '22; SYSTEMS.md §1): the same batches in the same order.

The oracle below is a literal transcription. It shares nothing with orcinus but the traces it is fed.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from dataclasses import dataclass

import pytest

from orcinus.core.config import SchedulerConfig
from orcinus.core.core import Collect, Core, Submit
from orcinus.core.plan import IterationPlan, IterationResult, SequenceOutput
from orcinus.core.request import Request, SamplingParams, pack_tokens

NUM_TRACES = 1000
EOS = 9


@dataclass(frozen=True)
class Job:
    """A request of a trace. Its answer ends after `output` tokens; nobody knows but the model."""

    arrival: int
    prompt: int
    max_output: int
    output: int


@dataclass(frozen=True)
class Trace:
    """Jobs by arrival, the machine, and how long the k-th batch takes in one stage."""

    jobs: tuple[Job, ...]
    n_slots: int
    max_bs: int
    durations: tuple[int, ...]


def random_trace(seed: int) -> Trace:
    rng = random.Random(seed)
    arrivals = sorted(rng.randrange(60) for _ in range(rng.randint(1, 10)))
    jobs = []
    for arrival in arrivals:
        max_output = rng.randint(1, 9)
        jobs.append(Job(arrival, rng.randint(1, 12), max_output, rng.randint(1, max_output)))
    largest = max(job.prompt + job.max_output for job in jobs)
    n_slots = largest + rng.choice([0, 5, 20, 500])
    return Trace(tuple(jobs), n_slots, rng.choice([1, 2, 3, 4, 16]), tuple(rng.randint(1, 5) for _ in range(7)))


class Pipeline:
    """When batches come back: in order, each after its time in every stage."""

    def __init__(self, durations: tuple[int, ...], stages: int) -> None:
        self.durations = durations
        self.stages = stages
        self.launched = 0
        self.done_at: deque[int] = deque()
        self.last = 0

    def launch(self, now: int) -> None:
        duration = self.durations[self.launched % len(self.durations)]
        self.launched += 1
        self.last = max(now + self.stages * duration, self.last + duration)
        self.done_at.append(self.last)


# ---- the oracle


class OrcaRequest:
    def __init__(self, number: int, job: Job) -> None:
        self.number = number
        self.job = job
        self.max_tokens = job.prompt + job.max_output
        self.state = "INITIATION"
        self.generated = 0


def algorithm_1(trace: Trace, n_workers: int) -> list[list[int]]:
    """Orca's scheduling algorithm, line by line; an empty selection is not launched (note iii)."""
    arriving = deque(OrcaRequest(number, job) for number, job in enumerate(trace.jobs))
    pool: list[OrcaRequest] = []
    pipeline = Pipeline(trace.durations, n_workers)
    in_flight: deque[list[OrcaRequest]] = deque()
    batches: list[list[int]] = []
    n_scheduled, n_rsrv, now = 0, 0, 0
    while True:
        while arriving and arriving[0].job.arrival <= now:
            pool.append(arriving.popleft())
        batch, n_rsrv = select(pool, n_rsrv, trace.max_bs, trace.n_slots)
        if batch:
            pipeline.launch(now)
            in_flight.append(batch)
            batches.append([req.number for req in batch])
            for req in batch:
                req.state = "RUNNING"
            n_scheduled += 1
        if n_scheduled == n_workers or not batch:
            next_arrival = arriving[0].job.arrival if arriving else None
            is_free = n_scheduled < n_workers and next_arrival is not None
            if is_free and (n_scheduled == 0 or next_arrival < pipeline.done_at[0]):
                now = next_arrival
                continue
            if n_scheduled == 0:
                return batches
            now = max(now, pipeline.done_at.popleft())
            n_scheduled -= 1
            for req in in_flight.popleft():
                req.state = "INCREMENT"
                req.generated += 1
                if req.generated == req.job.output:
                    n_rsrv -= req.max_tokens
                    pool.remove(req)


def select(pool: list[OrcaRequest], n_rsrv: int, max_bs: int, n_slots: int) -> tuple[list[OrcaRequest], int]:
    batch: list[OrcaRequest] = []
    for req in sorted((req for req in pool if req.state != "RUNNING"), key=lambda req: (req.job.arrival, req.number)):
        if len(batch) == max_bs:
            break
        if req.state == "INITIATION":
            new_n_rsrv = n_rsrv + req.max_tokens
            if new_n_rsrv > n_slots:
                break
            n_rsrv = new_n_rsrv
        batch.append(req)
    return batch, n_rsrv


# ---- the same trace through orcinus


class OrcinusRun:
    """Core under the same clock. Checks Orca's invariants (a) to (c) at every launch."""

    def __init__(self, trace: Trace, n_workers: int) -> None:
        self.trace = trace
        self.core = Core(
            SchedulerConfig(
                num_blocks=trace.n_slots,
                block_size=1,
                max_batch_tokens=1_000_000,
                max_batch_size=trace.max_bs,
                num_stages=n_workers,
                lookahead=0,
                admission="reserve",
            )
        )
        self.pipeline = Pipeline(trace.durations, n_workers)
        self.in_flight: deque[IterationPlan] = deque()
        self.batches: list[list[int]] = []
        self.iterations = [0] * len(trace.jobs)
        self.generated = [0] * len(trace.jobs)
        self.added = 0

    def run(self) -> list[list[int]]:
        now = 0
        while True:
            self._add_until(now)
            match self.core.advance(float(now)):
                case Submit(plan):
                    self._launch(plan, now)
                case Collect(has_room) if has_room and self._next_arrival() < self.pipeline.done_at[0]:
                    now = int(self._next_arrival())
                case Collect():
                    now = max(now, self.pipeline.done_at.popleft())
                    self._collect(now)
                case _ if self.added < len(self.trace.jobs):
                    now = int(self._next_arrival())
                case _:
                    return self.batches

    def _next_arrival(self) -> float:
        return self.trace.jobs[self.added].arrival if self.added < len(self.trace.jobs) else float("inf")

    def _add_until(self, now: int) -> None:
        while self._next_arrival() <= now:
            job = self.trace.jobs[self.added]
            params = SamplingParams(max_tokens=job.max_output, seed=0)
            prompt = pack_tokens([1] * job.prompt)
            request = Request(
                request_id=str(self.added),
                prompt=prompt,
                params=params,
                eos_token_ids=(EOS,),
                arrived_at=float(job.arrival),
            )
            self.core.add(request, float(now))
            self.added += 1

    def _launch(self, plan: IterationPlan, now: int) -> None:
        batch = [work.seq_id for work in plan.work]
        running = [work.seq_id for other in self.in_flight for work in other.work]
        assert not set(batch) & set(running), "(c) a request is in two batches in flight"
        self.pipeline.launch(now)
        self.in_flight.append(plan)
        self.batches.append(batch)
        for number in batch:
            self.iterations[number] += 1
        alive = [i for i in range(self.added) if self.generated[i] < self.trace.jobs[i].output]
        counts = [self.iterations[i] for i in alive]
        assert counts == sorted(counts, reverse=True), "(a) a later request has run more iterations"
        self._check_reservations()

    def _check_reservations(self) -> None:
        jobs = self.trace.jobs
        promised = sum(jobs[g.number].prompt + jobs[g.number].max_output for g in self.core.scheduler.running)
        assert promised == self.core.scheduler.state.admission.promised <= self.trace.n_slots, (
            "(b) promises exceed the slots"
        )

    def _collect(self, now: int) -> None:
        plan = self.in_flight.popleft()
        outputs = []
        for work in plan.work:
            self.generated[work.seq_id] += 1
            ends = self.generated[work.seq_id] == self.trace.jobs[work.seq_id].output
            outputs.append(SequenceOutput(work.seq_id, (EOS if ends else 1,)))
        self.core.update(IterationResult(plan.epoch, plan.iteration, tuple(outputs)), float(now))
        self.core.scheduler.check()
        self._check_reservations()


@pytest.mark.parametrize("n_workers", [1, 2, 4])
def test_reserve_gives_the_batches_of_algorithm_1(n_workers):
    """1,000 random traces, and on each of them invariants (a) to (c)."""
    for seed in range(NUM_TRACES):
        trace = random_trace(seed)
        assert OrcinusRun(trace, n_workers).run() == algorithm_1(trace, n_workers), f"seed {seed}"


def test_the_traces_exercise_what_the_algorithm_decides():
    """Else the comparison proves nothing: full batches, full slots, a full pipeline, early ends."""
    traces = [random_trace(seed) for seed in range(NUM_TRACES)]
    runs = [(trace, algorithm_1(trace, 2)) for trace in traces]
    assert sum(max(map(len, batches)) == trace.max_bs > 1 for trace, batches in runs) > 100
    assert sum(sum(job.prompt + job.max_output for job in trace.jobs) > trace.n_slots for trace in traces) > 100
    assert sum(any(job.output < job.max_output for job in trace.jobs) for trace in traces) > 500
    assert sum(set(a) & set(b) == set() for _, batches in runs for a, b in itertools.pairwise(batches)) > 500


def test_nobody_is_preempted_under_reserve():
    for seed in range(100):
        run = OrcinusRun(random_trace(seed), 2)
        run.run()
        assert run.core.journal.counts["Preempted"] == 0


def test_a_request_behind_one_that_must_wait_does_not_overtake_it():
    """Line 'stop, not skip' of the algorithm, on the smallest case."""
    jobs = (Job(0, 4, 4, 4), Job(0, 6, 4, 1), Job(0, 1, 1, 1))
    trace = Trace(jobs, n_slots=10, max_bs=4, durations=(1,))
    batches = OrcinusRun(trace, 1).run()
    assert batches == algorithm_1(trace, 1) == [[0], [0], [0], [0], [1], [2]]
