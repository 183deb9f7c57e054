"""The literature's losers: times by hand, and the factor by which padding loses, from the lengths alone."""

from __future__ import annotations

import math

import pytest
from twin_loads import figures, job, orca_load, simulate

from orcinus.simulate.baselines import bucketed, request_level, waiting_served
from orcinus.simulate.cost import CALIBRATION, LinearCost

PER_TOKEN = LinearCost(constant=1e-9, token=1e-4)


def test_a_batch_of_requests_leaves_when_its_longest_answer_ends():
    """† by hand: prefill of 30 tokens, three decodes of two, then two of one; the third request waits for all that."""
    jobs = [job(0.0, 10, output=4), job(0.0, 20, output=6), job(0.01, 10, output=1)]
    outcome = request_level(jobs, CALIBRATION, max_batch=2)
    prefill, end = 0.020 + 30 * 40e-6, 0.020 + 30 * 40e-6 + 3 * 0.0204 + 2 * 0.0202
    assert sorted(outcome.ledger.column("ended_at")) == pytest.approx([end, end, end + 0.0204])
    assert sorted(outcome.ledger.column("first_at")) == pytest.approx([prefill, prefill, end + 0.0204])


def test_padding_runs_every_row_to_the_longest():
    jobs = [job(0.0, 10, output=4), job(0.0, 20, output=6)]
    assert request_level(jobs, CALIBRATION, 2, pad_to=1).tokens_run == 2 * 20 + 5 * 2
    assert request_level(jobs, CALIBRATION, 2).tokens_run == 30 + 3 * 2 + 2 * 1
    assert bucketed(jobs, CALIBRATION, 2, width=16).tokens_run == 16 + 3 + 32 + 5


def test_prefills_wait_for_their_ratio_or_their_turn():
    """One decodes; a newcomer alone is no 1.2 times as many, so it waits for `max_waiting_steps` decodes."""
    jobs = [job(0.0, 10, output=40), job(0.021, 10, output=1)]
    outcome = waiting_served(jobs, CALIBRATION, 8, ratio=1.2, max_waiting_steps=5)
    assert outcome.ledger.column("first_at").max() == pytest.approx(0.0204 + 5 * 0.0202 + 0.0204)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pad-to-max", "buckets"])
def test_padding_loses_by_the_share_of_tokens_that_nobody_needs(kind):
    """§15: where time is tokens, throughput falls by padded over needed tokens; ours pads nothing."""
    jobs = list(orca_load(rate=math.inf, count=2000))
    needed = sum(each.num_prompt + each.output - 1 for each in jobs)
    ours = simulate(jobs, PER_TOKEN, max_batch_size=32, max_batch_tokens=512)
    assert ours.tokens_run == needed
    if kind == "pad-to-max":
        theirs = request_level(jobs, PER_TOKEN, 32, pad_to=1)
        batches = [jobs[i : i + 32] for i in range(0, len(jobs), 32)]
        padded = sum(
            len(batch) * (max(each.num_prompt for each in batch) + max(each.output for each in batch) - 1)
            for batch in batches
        )
        assert theirs.tokens_run == padded
    else:
        theirs = bucketed(jobs, PER_TOKEN, 32, width=128)
    factor = figures(ours).output_throughput / figures(theirs).output_throughput
    assert factor == pytest.approx(theirs.tokens_run / needed, rel=0.02)
    assert factor > 1.2
