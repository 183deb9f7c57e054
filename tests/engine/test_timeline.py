"""What an observer tells of the iterations is what the journal says was scheduled."""

from __future__ import annotations

import random
from collections import deque

import pytest

from orcinus.core.config import SchedulerConfig
from orcinus.core.core import Collect, Core, Submit
from orcinus.core.journal import Scheduled
from orcinus.core.plan import IterationPlan, IterationResult, Output, SequenceOutput
from orcinus.core.progress import Progress
from orcinus.core.request import Request, SamplingParams, pack_tokens
from orcinus.engine.messages import Iteration, Timeline
from orcinus.engine.timeline import MAX_ITERATIONS, Observer


def answer(plan: IterationPlan) -> IterationResult:
    """Token 1 for whoever is to sample."""
    sampling = [work.seq_id for work in plan.work if work.output & Output.SAMPLE]
    return IterationResult(plan.epoch, plan.iteration, tuple(SequenceOutput(seq_id, (1,)) for seq_id in sampling))


class Run:
    """A core with a null executor and a clock that counts decisions, observed if asked for."""

    def __init__(self, **config: object) -> None:
        self.core = Core(SchedulerConfig(block_size=16, **config))
        self.observer = Observer(self.core.scheduler)
        self.results: deque[IterationResult] = deque()
        self.frames: list[Timeline] = []
        self.num_sampled = 0
        self.now = 0.0

    def add(self, number: int, prompt: int, max_tokens: int, n: int = 1) -> None:
        params = SamplingParams(max_tokens=max_tokens, n=n, seed=number)
        tokens = pack_tokens([5 + number] * prompt)
        self.core.add(Request(request_id=f"r{number}", prompt=tokens, params=params, arrived_at=self.now), self.now)

    def step(self) -> bool:
        """One decision; False if there was none."""
        begun_at = self.now
        self.now += 1
        progress: list[Progress] = []
        match self.core.advance(begun_at):
            case Submit(plan=plan):
                self.results.append(answer(plan))
            case Collect():
                progress = self.core.update(self.results.popleft(), self.now)
            case _:
                return False
        self.num_sampled += sum(len(one.tokens) for one in progress)
        self.observer.note(progress, begun_at, self.now)
        return True

    def finish(self) -> None:
        while self.step():
            self.frames.append(self.observer.frame())

    @property
    def iterations(self) -> list[Iteration]:
        return [iteration for frame in self.frames for iteration in frame.iterations]

    def scheduled(self) -> list[Scheduled]:
        return [event for event in self.core.journal if isinstance(event, Scheduled)]


def random_run(seed: int, lookahead: int) -> Run:
    """Requests of any length come at any time, into too few blocks."""
    rng = random.Random(seed)
    run = Run(num_blocks=24, max_batch_tokens=48, max_batch_size=6, lookahead=lookahead)
    for number in range(12):
        n = rng.choice([1, 1, 3])
        run.add(number, rng.randint(1, 60), rng.randint(40, 180 // n), n)
        for _ in range(rng.randint(0, 12)):
            run.step()
            run.frames.append(run.observer.frame())
    run.finish()
    return run


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("seed", range(6))
def test_every_iteration_is_told_once_with_everybody_who_was_in_it(seed: int, lookahead: int) -> None:
    run = random_run(seed, lookahead)
    told = [(each.number, sorted((p.key, p.start, p.num_tokens) for p in each.parts)) for each in run.iterations]
    assert told == [(event.iteration, sorted(event.work)) for event in run.scheduled()]
    assert sum(each.num_sampled for each in run.iterations) == run.num_sampled
    assert run.core.journal.counts["Preempted"] > 0
    assert run.core.journal.counts["Forked"] > 0


def test_each_frame_names_exactly_those_who_are_in_it() -> None:
    run = random_run(3, 1)
    for frame in run.frames:
        keys = {part.key for iteration in frame.iterations for part in iteration.parts}
        assert {member.key for member in frame.members} == keys
    names = {(member.request_id, member.index) for frame in run.frames for member in frame.members}
    assert len(names) == len({member.key for frame in run.frames for member in frame.members})


def test_prefill_is_what_lies_in_the_prompt_or_is_computed_again() -> None:
    run = Run(num_blocks=64, max_batch_tokens=16, max_batch_size=4)
    run.add(0, prompt=40, max_tokens=3)
    run.finish()
    parts = [part for iteration in run.iterations for part in iteration.parts]
    assert [(part.start, part.num_tokens, part.is_prefill) for part in parts] == [
        (0, 16, True),
        (16, 16, True),
        (32, 8, True),
        (40, 1, False),
        (41, 1, False),
    ]


@pytest.mark.parametrize("lookahead", [0, 1])
def test_iterations_follow_one_another_and_overlap_nowhere(lookahead: int) -> None:
    iterations = random_run(1, lookahead).iterations
    ends = [0.0, *(each.began_at + each.seconds for each in iterations)]
    assert all(each.began_at >= end for each, end in zip(iterations, ends[:-1], strict=True))
    assert all(each.seconds > 0 for each in iterations)


@pytest.mark.parametrize("lookahead", [0, 1])
def test_an_observer_that_comes_later_tells_of_the_iterations_planned_since(lookahead: int) -> None:
    run = Run(num_blocks=64, max_batch_tokens=64, max_batch_size=4, lookahead=lookahead)
    for number in range(3):
        run.add(number, prompt=20, max_tokens=12)
    for _ in range(5):
        run.step()
    seen = run.core.scheduler.num_iterations
    run.observer = Observer(run.core.scheduler)
    run.finish()
    assert [each.number for each in run.iterations] == [e.iteration for e in run.scheduled() if e.iteration >= seen]


def test_of_a_long_time_between_frames_the_latest_iterations_are_told() -> None:
    run = Run(num_blocks=64, max_batch_tokens=64, max_batch_size=4)
    run.add(0, prompt=4, max_tokens=MAX_ITERATIONS + 50)
    while run.step():
        pass
    frame = run.observer.frame()
    assert [each.number for each in frame.iterations] == list(range(50, MAX_ITERATIONS + 50))
    assert run.observer.frame().iterations == ()


def test_a_frame_tells_the_state_of_the_queues() -> None:
    run = Run(num_blocks=8, max_batch_tokens=64, max_batch_size=2)
    for number in range(4):
        run.add(number, prompt=20, max_tokens=8)
    run.step()
    frame = run.observer.frame()
    assert (frame.num_running, frame.num_waiting, frame.free_blocks, frame.total_blocks) == (2, 2, 4, 8)
