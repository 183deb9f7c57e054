"""Arrival processes against closed forms."""

from __future__ import annotations

import math
import random
import statistics
from itertools import pairwise

import pytest

from orcinus.bench.arrivals import gamma_arrivals, stretched

COUNT = 20_000


def gaps(rate: float, burstiness: float, seed: int = 7) -> list[float]:
    arrivals = gamma_arrivals(COUNT + 1, rate, burstiness, random.Random(seed))
    return [later - earlier for earlier, later in pairwise(arrivals)]


@pytest.mark.parametrize("rate", [0.5, 40.0])
@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_mean_and_the_variation_of_their_gamma_distribution(rate: float, burstiness: float) -> None:
    drawn, variation = gaps(rate, burstiness), 1 / math.sqrt(burstiness)
    # The mean of n gaps is off by more than 4 standard errors once in 16,000 seeds.
    assert statistics.fmean(drawn) == pytest.approx(1 / rate, rel=4 * variation / math.sqrt(COUNT))
    assert statistics.pstdev(drawn) / statistics.fmean(drawn) == pytest.approx(variation, rel=0.05)


@pytest.mark.parametrize("wait", [0.25, 1.0, 2.5])
def test_burstiness_1_is_poisson_a_gap_outlasts_t_with_probability_exp_of_minus_rate_t(wait: float) -> None:
    rate = 3.0
    share = sum(gap > wait / rate for gap in gaps(rate, 1.0)) / COUNT
    expected = math.exp(-wait)
    assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / COUNT))


def test_arrivals_begin_at_zero_ascend_and_repeat_with_their_seed() -> None:
    first = gamma_arrivals(50, 2.0, 0.5, random.Random(3))
    assert first == gamma_arrivals(50, 2.0, 0.5, random.Random(3))
    assert first != gamma_arrivals(50, 2.0, 0.5, random.Random(4))
    assert first[0] == 0
    assert first == sorted(first)
    assert len(first) == 50
    assert gamma_arrivals(1, 2.0, 1.0, random.Random(0)) == [0]


def test_an_infinite_rate_sends_all_at_once() -> None:
    assert gamma_arrivals(3, math.inf, 1.0, random.Random(0)) == [0, 0, 0]
    assert stretched([0.0, 4.0, 9.0], math.inf) == [0, 0, 0]


def test_a_stretched_trace_keeps_its_shape_at_the_rate_asked_for() -> None:
    assert stretched([0.0, 1.0, 4.0, 6.0], 2.0) == pytest.approx([0.0, 0.25, 1.0, 1.5])
    assert stretched([0.0, 0.0], 2.0) == [0, 0]
