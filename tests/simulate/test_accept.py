"""What SYSTEMS.md says of the literature's systems, on the † model: thresholds from there, measured here."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable

import pytest
from twin_loads import figures, job, orca_load, simulate

from orcinus.simulate.baselines import request_level
from orcinus.simulate.capacity import highest_rate
from orcinus.simulate.config import WorkloadConfig
from orcinus.simulate.cost import CALIBRATION
from orcinus.simulate.jobs import Job
from orcinus.simulate.run import Outcome
from orcinus.simulate.workloads import make_jobs

pytestmark = pytest.mark.slow
COUNT = 500


def capacity(run: Callable[[Iterable[Job]], Outcome], load: Callable[[float], Iterable[Job]], target: float) -> float:
    """The highest rate at a median latency by token."""
    return highest_rate(lambda rate: figures(run(load(rate))).normalised.p50, target, 0.5, 40, steps=8)


@pytest.mark.parametrize(("target", "factor"), [(0.100, 2.0), (0.050, 5.0)])
def test_iterations_bear_a_multiple_of_the_rate_of_whole_requests(target, factor):
    """§1: at equal median latency by token, 32 sequences."""

    def orca(jobs: Iterable[Job]) -> Outcome:
        return simulate(jobs, max_batch_size=32, max_batch_tokens=1_000_000, admission="reserve")

    def load(rate: float) -> Iterable[Job]:
        return orca_load(rate, COUNT)

    ours = capacity(orca, load, target)
    theirs = capacity(lambda jobs: request_level(jobs, CALIBRATION, 32), load, target)
    assert ours >= factor * theirs


def test_four_stages_stand_idle_for_a_twentieth_at_most():
    """§1, saturated: with plans that take equal parts. Else stages wait for the longest plan."""
    idle = {
        is_even: simulate(
            orca_load(1000.0, 1500),
            num_stages=4,
            max_batch_size=32,
            max_batch_tokens=512,
            admission="reserve",
            even_plans=is_even,
        ).idle_share
        for is_even in (True, False)
    }
    assert idle[True] <= 0.05
    assert idle[False] > 0.10, "it holds without equal parts too: correct the table in docs/simulate.md"


def test_blocks_on_demand_bear_twice_the_rate_of_reserved_ones():
    """§2: answers log-normal with mean 110 and limit 1,024, 20,000 slots."""
    sigma = 0.7
    outputs = f"lognormal:{110 * math.exp(-(sigma**2) / 2):.2f}:{sigma}:1024"

    def load(rate: float) -> Iterable[Job]:
        return orca_load(rate, COUNT, output_lengths=outputs, max_tokens=1024)

    rates = {
        admission: capacity(
            lambda jobs, admission=admission: simulate(
                jobs, num_blocks=1250, max_batch_size=256, max_batch_tokens=512, admission=admission
            ),
            load,
            0.100,
        )
        for admission in ("reserve", "on_demand")
    }
    assert rates["on_demand"] >= 2 * rates["reserve"]


def worst_gap(budget: int) -> float:
    """Of 32 streams beside which a prompt of 8,192 tokens comes."""
    rng = random.Random(2)
    jobs = [job(0.0, rng.randint(32, 64), output=400) for _ in range(32)]
    jobs.append(job(4.0, 8192, output=1))
    return simulate(jobs, max_batch_size=64, max_batch_tokens=budget).ledger.gaps.maximum


def test_a_long_prompt_in_chunks_keeps_the_streams_flowing():
    """§12: ≤ 60 ms with a budget of 512 tokens, several hundred without chunks."""
    assert worst_gap(512) <= 0.060
    assert worst_gap(10_000) > 0.300


def test_a_burst_is_served_in_the_order_of_arrival():
    """§1, invariant (a), seen from outside: first tokens come in the order of the requests."""
    load = WorkloadConfig(rate=30.0, num_requests=400, arrivals="on-off", on_seconds=2.0, off_seconds=2.0)
    outcome = simulate(make_jobs(load), max_batch_size=16)
    order = outcome.ledger.column("arrived_at").argsort()
    first = outcome.ledger.column("first_at")[order]
    assert (first[1:] >= first[:-1]).all()
