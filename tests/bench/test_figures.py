"""Figures against calculations by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from orcinus.bench.asks import Failure, FailureKind, Observation
from orcinus.bench.figures import OnlineFigures, Summary, peak_concurrency, summarise
from orcinus.bench.goal import Goal
from orcinus.errors import ConfigurationError


def seen(sent: float, instants: list[float], *, ended: float, output: int | None = None) -> Observation:
    """A request that succeeded; its last chunk came with the last token."""
    return Observation(
        scheduled_at=sent - 0.001,
        released_at=sent,
        sent_at=sent,
        token_instants=instants,
        last_at=instants[-1],
        ended_at=ended,
        tokens_seen=len(instants),
        prompt_tokens=None if output is None else 10,
        output_tokens=output,
    )


def failed(sent: float, ended: float, status: int) -> Observation:
    failure = Failure(FailureKind.STATUS, f"told at {sent:g}", status)
    return Observation(sent, sent, sent, ended_at=ended, failure=failure)


def figures(
    observations: list[Observation], *goals: str, lengths: list[int] | None = None, stalls: list[float] | None = None
) -> OnlineFigures:
    return summarise(observations, stalls or [], lengths, Goal.parse(goals), (50, 99))


def test_latencies_of_one_request_are_those_of_the_definition() -> None:
    one = seen(10.0, [10.5, 10.6, 10.9], ended=11.0, output=3)
    assert one.ttft == pytest.approx(0.5)
    assert one.tpot == pytest.approx(0.2)
    assert one.gaps == pytest.approx([0.1, 0.3])
    assert one.e2el == pytest.approx(1.0)


def test_several_tokens_in_a_chunk_shorten_tpot_and_leave_the_gaps_as_they_were() -> None:
    one = seen(10.0, [10.5, 10.6, 10.9], ended=11.0, output=9)
    assert one.tpot == pytest.approx(0.4 / 8)
    assert one.gaps == pytest.approx([0.1, 0.3])


def test_an_answer_of_one_token_has_no_tpot_and_cannot_miss_one() -> None:
    one = seen(0.0, [0.1], ended=0.1, output=1)
    assert one.tpot is None
    assert Goal(ttft=0.2, tpot=1e-9).met_by(one)


def test_percentiles_interpolate_as_the_textbook_says() -> None:
    summary = Summary.of([4.0, 1.0, 3.0, 2.0], (0, 25, 50, 90, 100))
    assert summary.percentiles == pytest.approx({0: 1.0, 25: 1.75, 50: 2.5, 90: 3.7, 100: 4.0})
    assert (summary.mean, summary.median, summary.maximum) == (2.5, 2.5, 4.0)
    assert summary.std == pytest.approx(math.sqrt(1.25))


def test_a_distribution_of_nothing_is_nan_and_not_zero() -> None:
    summary = Summary.of([], (50,))
    assert all(map(math.isnan, (summary.mean, summary.median, summary.std, summary.maximum, summary.percentiles[50])))


def test_throughput_counts_completed_requests_over_the_whole_time_and_failures_beside_them() -> None:
    run = figures(
        [
            seen(100.0, [100.5, 101.0], ended=101.0, output=2),
            seen(101.0, [103.0, 103.5, 104.0], ended=104.0, output=3),
            failed(100.5, 100.6, 429),
            failed(101.5, 105.0, 429),
            failed(101.6, 101.7, 500),
        ]
    )
    assert (run.completed, run.failed, run.failures) == (2, 3, {"HTTP 429": 2, "HTTP 500": 1})
    assert run.examples == {"HTTP 429": "told at 100.5", "HTTP 500": "told at 101.6"}
    assert run.duration == pytest.approx(5.0)
    assert run.request_throughput == pytest.approx(0.4)
    assert run.output_throughput == pytest.approx(1.0)
    assert run.input_throughput == pytest.approx(4.0)
    assert run.ttft.mean == pytest.approx(1.25)
    assert run.itl.count == 3
    assert run.num_counted == 0


def test_goodput_is_requests_a_second_that_met_all_targets_and_failures_miss_them() -> None:
    observations = [
        seen(0.0, [0.2, 0.3], ended=0.3, output=2),  # TTFT 200 ms, TPOT 100 ms: just meets both
        seen(0.0, [0.1, 0.3], ended=0.3, output=2),  # TPOT 200 ms
        seen(0.0, [0.3, 0.4], ended=2.0, output=2),  # TTFT 300 ms
        failed(0.0, 0.1, 500),
    ]
    both = figures(observations, "ttft:200.0001", "tpot:100.0001")
    assert (both.good, both.request_goodput, both.slo_attainment) == (1, pytest.approx(0.5), pytest.approx(0.25))
    assert figures(observations, "ttft:201").good == 2
    assert figures(observations, "e2el:500").good == 2
    without = figures(observations)
    assert (without.good, without.request_goodput, without.slo_attainment) == (None, None, None)


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("tttf:200", "did you mean 'ttft'"),
        ("ttft", "write ttft:200"),
        ("tpot:fast", "write ttft:200"),
        ("tpot:0", "above 0"),
        ("tpot:nan", "above 0"),
    ],
)
def test_a_target_that_cannot_be_read_is_refused_by_name(target: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        Goal.parse([target])


def test_without_usage_tokens_are_counted_by_chunks_and_prompts_as_they_were_made() -> None:
    run = figures(
        [seen(0.0, [1.0, 2.0], ended=2.0), seen(0.0, [1.0], ended=1.5, output=4), failed(0.0, 1.0, 500)],
        lengths=[7, 100, 1000],
    )
    assert (run.total_output, run.total_input, run.num_counted) == (6, 17, 1)


def test_peak_concurrency_counts_what_overlaps() -> None:
    spans = [(0.0, 1.0), (0.5, 2.0), (0.75, 0.9), (1.0, 3.0)]
    assert peak_concurrency([failed(sent, ended, 500) for sent, ended in spans]) == 3
    instants = np.arange(0, 3, 0.01) + 0.005
    assert max(sum(sent <= instant < ended for sent, ended in spans) for instant in instants) == 3


def test_the_generator_lags_when_its_p99_is_late() -> None:
    punctual = [Observation(0.0, 0.002, 0.002, ended_at=1.0, failure=Failure(FailureKind.CUT, "")) for _ in range(99)]
    straggler = Observation(0.0, 0.5, 0.5, ended_at=1.0, failure=Failure(FailureKind.CUT, ""))
    assert not figures([*punctual, *punctual, straggler]).lags
    assert figures([*punctual, straggler, straggler]).lags
    assert not figures(punctual, stalls=[0.001] * 300 + [0.5]).lags
    assert figures(punctual, stalls=[0.001] * 30 + [0.5]).lags
