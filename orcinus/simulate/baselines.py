"""Schedulers that lost, under the same cost model: what iteration-level scheduling without padding is measured against.

They are the literature's, in a few lines each, and serve nobody: batches of whole requests (as FasterTransformer was
driven, SYSTEMS.md §1), padded to the longest or by buckets (§15), and prefills of their own that wait for a ratio of
waiting to running (TGI's `waiting_served_ratio`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from orcinus.core.config import SchedulerConfig
from orcinus.core.journal import Journal
from orcinus.simulate.cost import CostModel, Features
from orcinus.simulate.jobs import Job
from orcinus.simulate.ledger import Ledger
from orcinus.simulate.run import Outcome
from orcinus.simulate.series import Series, Window


@dataclass
class _Clockwork:
    """Jobs that come, time that passes, and the account of both."""

    jobs: list[Job]
    cost: CostModel
    now: float = 0.0
    queue: deque[Job] = field(default_factory=deque)
    ledger: Ledger = field(default_factory=Ledger)
    series: Series = field(default_factory=Series)
    busy: float = 0.0
    num_iterations: int = 0
    tokens_run: int = 0
    _next: int = 0

    def wait(self) -> bool:
        """Until somebody waits; False if nobody will."""
        if not self.queue and self._next < len(self.jobs):
            self.now = max(self.now, self.jobs[self._next].at)
        self.take_arrivals()
        return bool(self.queue)

    def take_arrivals(self) -> None:
        """Everybody who has come by now."""
        while self._next < len(self.jobs) and self.jobs[self._next].at <= self.now:
            self.queue.append(self.jobs[self._next])
            self._next += 1

    def run(self, features: Features, num_running: int) -> None:
        """One iteration."""
        seconds = self.cost.seconds(features)
        self.now += seconds
        self.busy += seconds
        self.num_iterations += 1
        self.tokens_run += features.tokens
        self.series.add(self.now, len(self.queue), num_running, 0, features.tokens)

    def outcome(self, max_batch: int) -> Outcome:
        """As of any run; there is no pool of blocks to speak of."""
        config = SchedulerConfig(num_blocks=1, max_batch_size=max_batch, max_batch_tokens=1 << 30)
        return Outcome(
            config=config,
            ledger=self.ledger,
            series=self.series,
            window=Window(),
            journal=Journal(1),
            busy=[self.busy],
            num_iterations=self.num_iterations,
            began_at=self.jobs[0].at if self.jobs else 0.0,
            ended_at=self.now,
            tokens_run=self.tokens_run,
        )


def request_level(jobs: Iterable[Job], cost: CostModel, max_batch: int, pad_to: int = 0) -> Outcome:
    """Batches of whole requests: the next batch starts when the last answer of this one has ended.

    Args:
        pad_to: 0 runs only tokens that somebody needs. Else prompts are padded to the longest of the batch, rounded up
            to a multiple of this, and ended answers go on in their rows until the last one ends.
    """
    clockwork = _Clockwork(list(jobs), cost)
    while clockwork.wait():
        batch = [clockwork.queue.popleft() for _ in range(min(max_batch, len(clockwork.queue)))]
        _run_batch(clockwork, batch, _padded(batch, pad_to))
    return clockwork.outcome(max_batch)


def bucketed(jobs: Iterable[Job], cost: CostModel, max_batch: int, width: int) -> Outcome:
    """The same, but a batch takes only prompts that pad to the same multiple of `width`: whoever waited longest
    chooses which."""
    clockwork = _Clockwork(list(jobs), cost)
    while clockwork.wait():
        first = -(-clockwork.queue[0].num_prompt // width)
        batch = [job for job in clockwork.queue if -(-job.num_prompt // width) == first][:max_batch]
        for job in batch:
            clockwork.queue.remove(job)
        _run_batch(clockwork, batch, _padded(batch, width))
    return clockwork.outcome(max_batch)


def _padded(batch: list[Job], pad_to: int) -> int:
    """The common length of the prompts; 0 if each keeps its own."""
    return -(-max(job.num_prompt for job in batch) // pad_to) * pad_to if pad_to else 0


def _run_batch(clockwork: _Clockwork, batch: list[Job], padded: int) -> None:
    """Prefill all, then decode until the last one ends; the answers leave together."""
    lengths = [padded or job.num_prompt for job in batch]
    pairs = sum(length * (length + 1) // 2 for length in lengths)
    clockwork.run(Features(sum(lengths), sum(lengths), 0, 0, pairs, len(batch)), len(batch))
    first_at = clockwork.now
    last_at = {id(job): first_at for job in batch}
    for step in range(1, max(job.output for job in batch)):
        alive = [job for job in batch if job.output > step]
        rows = len(batch) if padded else len(alive)
        context = sum(padded or job.num_prompt for job in (batch if padded else alive)) + rows * step
        clockwork.run(Features(rows, 0, rows, context, 0, rows), len(batch))
        last_at |= dict.fromkeys(map(id, alive), clockwork.now)
    for job in batch:
        clockwork.ledger.enter(job, first_at, last_at[id(job)], clockwork.now)


@dataclass(slots=True)
class _Running:
    job: Job
    first_at: float
    last_at: float
    made: int = 1


def waiting_served(
    jobs: Iterable[Job],
    cost: CostModel,
    max_batch: int,
    *,
    ratio: float = 1.2,
    max_prefill_tokens: int = 4096,
    max_waiting_steps: int = 20,
) -> Outcome:
    """Iterations are prefill or decode. Prefills interrupt the decodes once the waiting are `ratio` times as many as
    the running, or after `max_waiting_steps` decodes."""
    clockwork, running = _Clockwork(list(jobs), cost), list[_Running]()
    steps = 0
    while running or clockwork.wait():
        clockwork.take_arrivals()
        room = max_batch - len(running)
        enough = len(clockwork.queue) >= ratio * len(running) or steps >= max_waiting_steps
        if room and clockwork.queue and enough:
            running += _prefill(clockwork, room, max_prefill_tokens, len(running))
            steps = 0
        else:
            _decode(clockwork, running)
            steps += 1
        running = _without_ended(clockwork, running)
    return clockwork.outcome(max_batch)


def _prefill(clockwork: _Clockwork, room: int, max_tokens: int, num_running: int) -> list[_Running]:
    started, left = list[Job](), max_tokens
    while clockwork.queue and len(started) < room:
        if started and clockwork.queue[0].num_prompt > left:
            break
        started.append(clockwork.queue.popleft())
        left -= started[-1].num_prompt
    tokens = sum(job.num_prompt for job in started)
    pairs = sum(job.num_prompt * (job.num_prompt + 1) // 2 for job in started)
    clockwork.run(Features(tokens, tokens, 0, 0, pairs, len(started)), num_running + len(started))
    return [_Running(job, clockwork.now, clockwork.now) for job in started]


def _decode(clockwork: _Clockwork, running: list[_Running]) -> None:
    context = sum(each.job.num_prompt + each.made for each in running)
    clockwork.run(Features(len(running), 0, len(running), context, 0, len(running)), len(running))
    for each in running:
        clockwork.ledger.gaps.add(clockwork.now - each.last_at, 1)
        each.made += 1
        each.last_at = clockwork.now


def _without_ended(clockwork: _Clockwork, running: list[_Running]) -> list[_Running]:
    for each in running:
        if each.made >= each.job.output:
            clockwork.ledger.enter(each.job, each.first_at, each.last_at, clockwork.now)
    return [each for each in running if each.made < each.job.output]
