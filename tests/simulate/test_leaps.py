"""A run that leaps equals the plain loop: every decision, every instant, every block, under every policy."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcinus.core.config import SchedulerConfig
from orcinus.core.explain import explain
from orcinus.core.journal import Added, Journal
from orcinus.core.policy import POLICIES
from orcinus.core.request import ServiceClass, pack_tokens
from orcinus.core.scheduler import Scheduler
from orcinus.core.sequence import Sequence
from orcinus.simulate.cost import CALIBRATION, Machine
from orcinus.simulate.executor import Modelled
from orcinus.simulate.jobs import Job
from orcinus.simulate.run import HostCost, Outcome, Simulation

OPAQUE = ("request", "table")
COLUMNS = ("arrived_at", "first_at", "last_at", "ended_at", "num_prompt", "num_output", "num_answers")


@st.composite
def loads(draw: st.DrawFn) -> list[Job]:
    """Crowds and stragglers, beginnings in common, conversations, hang-ups, deadlines, two answers."""
    at, jobs = 0.0, []
    for _ in range(draw(st.integers(1, 14))):
        at += draw(st.sampled_from((0.0, 0.01, 0.05, 0.3, 2.0)))
        jobs.append(draw(jobs_at(at)))
    return jobs


@st.composite
def jobs_at(draw: st.DrawFn, at: float, depth: int = 0) -> Job:
    """One of them."""
    output = draw(st.integers(1, 60))
    common = draw(st.integers(1, 3))
    prompt = [common] * draw(st.sampled_from((0, 16, 40))) + [20 + draw(st.integers(0, 99))] * draw(st.integers(1, 50))
    job = Job(at, pack_tokens(prompt), output, max_tokens=output + draw(st.sampled_from((0, 0, 5))))
    job.n = draw(st.sampled_from((1, 1, 1, 2)))
    job.tenant = draw(st.sampled_from(("", "a", "b")))
    job.priority = draw(st.integers(0, 2))
    job.service_class = draw(st.sampled_from((ServiceClass.NORMAL, ServiceClass.NORMAL, *ServiceClass)))
    job.deadline = draw(st.sampled_from((None, None, 1.0, 0.3)))
    job.hangs_up = draw(st.sampled_from((None, None, 0.5)))
    if draw(st.booleans()):
        answer = pack_tokens(draw(st.lists(st.integers(100, 103), min_size=output, max_size=output)))
        job.answers = (answer,) * job.n
        if depth < 2 and draw(st.booleans()):
            job.follow_up = draw(jobs_at(draw(st.sampled_from((0.0, 0.2))), depth + 1))
            job.follow_up.prompt = job.prompt + answer + job.follow_up.prompt
    return job


@st.composite
def configs(draw: st.DrawFn) -> SchedulerConfig:
    """Pools in which everything fits, and pools in which little does."""
    size = draw(st.sampled_from((1, 2, 4, 8, 64)))
    return SchedulerConfig(
        num_blocks=draw(st.sampled_from((30, 60, 100, 1000))),
        block_size=draw(st.sampled_from((8, 16))),
        max_batch_size=size,
        max_batch_tokens=max(size, draw(st.sampled_from((16, 64, 512)))),
        admission=draw(st.sampled_from(("on_demand", "on_demand", "reserve"))),
        policy=draw(st.sampled_from(sorted(POLICIES))),
        enable_prefix_caching=draw(st.booleans()),
        target_iteration_seconds=draw(st.sampled_from((None, None, 0.03))),
        max_wait_seconds=draw(st.sampled_from((0.1, 10.0))),
    )


class Watched(Simulation):
    """Looks at core's state before each arrival, when a leap has just ended."""

    outcome: Outcome
    states: list[object]

    def _add(self, job: Job, at: float, now: float) -> None:
        self.states.append(state(self.core.scheduler))
        super()._add(job, at, now)


def state(scheduler: Scheduler) -> object:
    """All that the next decisions are made from."""
    sequences = [
        (group.order, group.blocked_by, *[getattr(each, name) for name in Sequence.__slots__ if name not in OPAQUE])
        for group in (*scheduler.running, *scheduler.waiting)
        for each in group.sequences
    ]
    tables = [list(each.table.blocks) for group in scheduler.running for each in group.sequences]
    return deepcopy(sequences), tables, scheduler.pool.num_free, list(scheduler.cache.paths())


def run(config: SchedulerConfig, jobs: list[Job], *, leaps: bool) -> Watched:
    """To the end; a constant and a price for each sequence stand for the engine's own time."""
    host = HostCost(constant=0.001, sequence=0.0001)
    simulation = Watched(config, Modelled(Machine(cost=CALIBRATION)), host, Journal(10**6), leaps=leaps)
    simulation.states = []
    simulation.outcome = simulation.run(jobs)
    return simulation


def bookkeeping(simulation: Simulation) -> tuple[object, ...]:
    """What is left of the pool, the tree and the series."""
    scheduler = simulation.core.scheduler
    scheduler.check()
    blocks = scheduler.pool.allocate(scheduler.pool.num_free)
    return (
        blocks,
        scheduler.num_iterations,
        simulation.journal.counts,
        simulation.series.points,
        simulation.window.bars(),
    )


def figures(outcome: Outcome) -> list[np.ndarray]:
    """What became of each job."""
    return [outcome.ledger.column(name) for name in COLUMNS]


@settings(deadline=None)
@given(configs(), loads())
def test_a_leap_is_the_plain_loop(config: SchedulerConfig, jobs: list[Job]) -> None:
    plain, leaping = (run(config, jobs, leaps=leaps) for leaps in (False, True))
    assert list(leaping.journal) == list(plain.journal)
    assert bookkeeping(leaping) == bookkeeping(plain)
    assert leaping.states == plain.states
    one, other = leaping.outcome, plain.outcome
    assert [column.tolist() for column in figures(one)] == [column.tolist() for column in figures(other)]
    assert (one.busy, one.ended_at, one.tokens_run) == (other.busy, other.ended_at, other.tokens_run)
    assert one.ledger.reasons == other.ledger.reasons
    assert one.ledger.gaps.counts == other.ledger.gaps.counts
    assert one.ledger.gaps.total == pytest.approx(other.ledger.gaps.total, rel=1e-12)
    assert one.ledger.total_cached == other.ledger.total_cached


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("caching", [False, True])
def test_most_iterations_of_a_quiet_load_pass_in_leaps(policy: str, caching: bool) -> None:
    # Shares are even, so the order of `fair` never changes.
    jobs = [Job(0.02 * i, pack_tokens([20 + i] * 30), 200, 200) for i in range(8)]
    config = SchedulerConfig(num_blocks=1000, policy=policy, enable_prefix_caching=caching)
    simulation = run(config, jobs, leaps=True)
    told = len(simulation.journal)
    events = sum(simulation.journal.counts.values())
    assert told < events / 2


def test_the_journal_of_a_leap_explains_a_request() -> None:
    jobs = [Job(0.02 * i, pack_tokens([20 + i] * 30), 50 + i, 100) for i in range(8)]
    plain, leaping = (run(SchedulerConfig(num_blocks=100), jobs, leaps=leaps) for leaps in (False, True))
    for event in list(leaping.journal):
        if isinstance(event, Added):
            life = explain(leaping.journal, event.request_id, 1e9)
            assert life == explain(plain.journal, event.request_id, 1e9)
            assert life is not None
            assert life.spans[0].began_at == event.at
            assert sum(span.iterations for span in life.spans) >= 50
