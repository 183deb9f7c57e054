"""A simulated run against times worked out by hand, and against the engine's own loop."""

from __future__ import annotations

import math
import random

import pytest
from twin_loads import figures, job, orca_load, simulate

from orcinus.core.clock import VirtualClock
from orcinus.core.config import SchedulerConfig
from orcinus.core.core import Core
from orcinus.core.journal import Scheduled
from orcinus.engine.loop import Engine
from orcinus.simulate.config import WorkloadConfig
from orcinus.simulate.cost import LinearCost, Link, Machine
from orcinus.simulate.executor import Modelled, SimulatedExecutor
from orcinus.simulate.jobs import Job
from orcinus.simulate.run import HostCost, Simulation
from orcinus.simulate.workloads import make_jobs


def test_one_request_takes_what_the_formula_says():
    """† by hand: 20 ms + 40 µs x 100, then four decodes of 20.2 ms."""
    outcome = simulate([job(2.0, prompt=100, output=5)])
    ledger = outcome.ledger
    assert ledger.column("first_at") - ledger.column("arrived_at") == pytest.approx([0.024])
    assert ledger.column("ended_at") - ledger.column("arrived_at") == pytest.approx([0.024 + 4 * 0.0202])
    assert outcome.num_iterations == 5
    assert outcome.tokens_run == 100 + 4
    assert figures(outcome).tpot.mean == pytest.approx(0.0202)


def test_a_newcomer_joins_the_next_iteration():
    """First: prefill to 24 ms, decode to 44.2. Second came at 30 ms: prefilled beside the first one's next token."""
    outcome = simulate([job(0.0, prompt=100, output=3), job(0.030, prompt=50, output=1)])
    mixed = 0.020 + 50 * 40e-6 + 0.0002
    assert sorted(outcome.ledger.column("ended_at")) == pytest.approx([0.0442 + mixed] * 2)
    assert outcome.ledger.column("first_at").max() == pytest.approx(0.0442 + mixed)


def test_an_answer_ends_with_an_end_token_or_at_its_limit():
    outcome = simulate([job(0.0, 10, output=4, max_tokens=9), job(0.0, 11, output=6)])
    assert dict(outcome.ledger.reasons) == {"stop": 1, "length": 1}
    assert sorted(outcome.ledger.column("num_output")) == [4, 6]


def test_every_job_gets_exactly_its_tokens_whatever_is_preempted():
    rng = random.Random(3)
    jobs = [job(rng.random(), rng.randint(1, 90), rng.randint(1, 60), max_tokens=64) for _ in range(200)]
    jobs.sort(key=lambda each: each.at)
    outcome = simulate(jobs, num_blocks=24, max_batch_tokens=64, max_batch_size=16)
    assert outcome.journal.counts["Preempted"] > 10, "nothing was preempted, so this proves little"
    found = sorted(zip(outcome.ledger.column("num_prompt"), outcome.ledger.column("num_output"), strict=True))
    assert found == sorted((each.num_prompt, each.output) for each in jobs)


def test_a_client_that_hangs_up_gets_no_more():
    outcome = simulate([job(0.0, 10, output=500, hangs_up=1.0), job(0.0, 12, output=3)])
    assert dict(outcome.ledger.reasons) == {"abort": 1, "length": 1}
    # 20 ms + 22 prompt tokens, then decodes of 20.4 and 20.2 ms: it is aborted after the first that ends past 1 s.
    assert outcome.ended_at == pytest.approx(1.0, abs=0.0204)


def test_a_deadline_ends_a_request_that_still_waits():
    jobs = [job(0.0, 10, output=100), job(0.0, 12, output=100, deadline=0.5)]
    outcome = simulate(jobs, max_batch_size=1)
    assert dict(outcome.ledger.reasons) == {"length": 1, "error": 1}
    assert outcome.ledger.column("num_prompt") == [10]


def test_a_stop_string_ends_an_answer_after_its_token():
    """Two of them in the same iteration, and one that ends before its stop string comes."""
    counts = ((50, 7), (50, 7), (50, 9), (5, 40))
    outcome = simulate([job(0.0, 10 + i, output, stops_at=stop) for i, (output, stop) in enumerate(counts)])
    assert dict(outcome.ledger.reasons) == {"stop": 3, "length": 1}
    assert sorted(outcome.ledger.column("num_output")) == [5, 7, 7, 9]


def test_a_load_can_be_run_twice():
    """Jobs are what they were: a conversation's pauses, too."""
    jobs = list(make_jobs(WorkloadConfig(workload="multi-turn", num_requests=5)))
    assert simulate(jobs).ended_at == simulate(jobs).ended_at


def test_a_request_that_never_fits_is_refused_and_the_others_go_on():
    outcome = simulate([job(0.0, 1000, output=10), job(0.1, 10, output=2)], num_blocks=8)
    assert dict(outcome.ledger.reasons) == {"refused": 1, "length": 1}


def test_the_next_turn_comes_after_the_answer_and_a_pause():
    second = job(3.0, 40, output=2)
    outcome = simulate([job(0.0, 20, output=2, follow_up=second)])
    first_end = 0.0208 + 0.0202
    assert outcome.ledger.column("arrived_at") == pytest.approx([0.0, first_end + 3.0])


def test_the_hosts_time_is_added_to_every_iteration():
    config = SchedulerConfig(num_blocks=100)
    machine = Modelled(Machine(cost=LinearCost(constant=0.010)))
    outcome = Simulation(config, machine, HostCost(constant=0.001, sequence=0.0005)).run([job(0.0, 8, output=4)])
    # Awake after 1 ms with nobody running; then four iterations, and 1.5 ms between two.
    assert outcome.ended_at == pytest.approx(0.001 + 4 * 0.010 + 3 * 0.0015)


def test_a_pipeline_takes_the_whole_way_once_and_then_a_stage_at_a_time():
    """Four requests, a batch each, four stages of 5 ms: one token every 5 ms once the pipeline is full."""
    outcome = simulate(
        [job(0.0, 8, output=10) for _ in range(4)], LinearCost(constant=0.020), num_stages=4, max_batch_size=1
    )
    assert sorted(outcome.ledger.column("first_at")) == pytest.approx([0.020, 0.025, 0.030, 0.035])
    assert outcome.ended_at == pytest.approx(0.020 + 39 * 0.005)
    assert outcome.idle_share == pytest.approx(1 - 40 * 0.005 / (0.020 + 39 * 0.005))


def test_links_cost_what_they_carry():
    link = Link(latency=0.001, bytes_per_s=1e6)
    machine = Machine(cost=LinearCost(constant=0.020), num_stages=2, stage_link=link, hidden_bytes=100.0)
    outcome = Simulation(SchedulerConfig(num_blocks=100, num_stages=2), Modelled(machine)).run([job(0.0, 10, output=1)])
    assert outcome.ended_at == pytest.approx(0.020 + 0.001 + 10 * 100 / 1e6)


@pytest.mark.parametrize("lookahead", [0, 1])
def test_the_engines_own_loop_on_the_simulated_executor_gives_the_same_run(lookahead):
    """The loop that serves, a virtual clock and no arrivals midway: plan for plan the twin's."""
    jobs = list(orca_load(rate=math.inf, count=60))
    config = SchedulerConfig(num_blocks=120, max_batch_size=16, max_batch_tokens=256, lookahead=lookahead)
    twin = Simulation(config, Modelled(Machine(cost=LinearCost(constant=0.01, token=1e-4))))
    twin.run(jobs)
    core, clock = Core(config), VirtualClock()
    numbered = dict(enumerate(jobs))
    engine = Engine(core, SimulatedExecutor(twin.pace, clock, numbered), clock)
    for number, each in numbered.items():
        assert engine.add(each.request(number, 0.0)) == []
    while engine.step() is not None:
        pass
    assert _plans(twin.core) == _plans(core)
    assert core.journal.counts["Preempted"] == twin.journal.counts["Preempted"] > 0
    assert clock.now() == pytest.approx(twin.clock.now())


def _plans(core: Core) -> list[tuple[float, tuple[tuple[int, int, int], ...]]]:
    return [(round(event.at, 9), event.work) for event in core.journal if isinstance(event, Scheduled)]


def test_equal_loads_give_equal_runs():
    def run() -> list[object]:
        outcome = simulate(orca_load(rate=15.0, count=150), num_blocks=300, max_batch_size=24)
        return [outcome.journal.encode(), outcome.ended_at, outcome.ledger.column("first_at").tolist()]

    assert run() == run()


def test_jobs_out_of_order_are_a_fault_of_the_workload():
    jobs: list[Job] = [job(1.0, 5, 2), job(0.5, 5, 2)]
    with pytest.raises(AssertionError, match="in order of arrival"):
        simulate(jobs)
