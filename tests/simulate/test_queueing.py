"""The twin against queueing theory: formulas that know nothing of schedulers (SYSTEMS.md §12)."""

from __future__ import annotations

import math
import random

import pytest
from twin_loads import figures, job, simulate

from orcinus.simulate.config import WorkloadConfig
from orcinus.simulate.cost import LinearCost
from orcinus.simulate.workloads import make_jobs

pytestmark = pytest.mark.slow
D = 0.1


def mean_ttft(rate: float, cost: LinearCost, num_stages: int = 1, count: int = 25_000) -> float:
    """Prompts of one length that want a single token, one at a time: a prefill instance."""
    load = WorkloadConfig(rate=rate, num_requests=count, prompt_lengths="fixed:16", output_lengths="fixed:1", seed=4)
    return figures(simulate(make_jobs(load), cost, num_stages, max_batch_size=1, max_batch_tokens=16)).ttft.mean


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_prefill_instance_is_an_m_d_1_queue(load):
    rate = load / D
    expected = D + rate * D**2 / (2 * (1 - rate * D))
    assert mean_ttft(rate, LinearCost(constant=D)) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("load", [0.6, 1.2])
def test_two_stages_follow_the_formula_of_inter_operator_parallelism(load):
    """DistServe, OSDI '24: each stage takes D / 2, so the pipeline bears twice the load."""
    rate = load / D
    expected = D + rate * D**2 / (4 * (2 - rate * D))
    assert mean_ttft(rate, LinearCost(constant=D), num_stages=2) == pytest.approx(expected, rel=0.03)


def test_two_slices_follow_the_formula_of_intra_operator_parallelism():
    """K is the speed-up that slicing gives."""
    rate, k = 0.8 / D, 1.7
    expected = D / k + rate * D**2 / (2 * k * (k - rate * D))
    assert mean_ttft(rate, LinearCost(constant=D / k)) == pytest.approx(expected, rel=0.03)


def test_geometric_service_follows_pollaczek_and_khinchine():
    """Answers of geometric length, one at a time: M/G/1 with a variance that isn't nought."""
    rng, mean, load, step = random.Random(8), 20.0, 0.6, 0.01
    at, jobs = 0.0, []
    for _ in range(5_000):
        at += rng.expovariate(load / (mean * step))
        jobs.append(job(at, 1, 1 + int(math.log(1 - rng.random()) / math.log(1 - 1 / mean))))
    outcome = simulate(jobs, LinearCost(constant=step), max_batch_size=1)
    second_moment = (2 * mean**2 - mean) * step**2
    expected = mean * step + load / (mean * step) * second_moment / (2 * (1 - load))
    assert figures(outcome).e2el.mean == pytest.approx(expected, rel=0.08)
