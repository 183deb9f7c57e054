"""From a run to figures: the words and keys of `orcinus bench online`, and what only the twin can see."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from orcinus.bench.figures import Summary
from orcinus.bench.goal import Goal
from orcinus.simulate.run import Outcome
from orcinus.simulate.series import Bar, Point

PERCENTILES = (50.0, 90.0, 95.0, 99.0)
# Points of a distribution that a picture needs.
_CURVE = 160


class Distribution(msgspec.Struct, frozen=True):
    """Seconds. `curve` holds the values at equal steps of share, for pictures; a distribution of nothing is NaN."""

    count: int
    mean: float
    std: float
    maximum: float
    p50: float
    p90: float
    p95: float
    p99: float
    curve: tuple[float, ...] = ()

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Distribution:
        """Of any number of values, those that are none left out."""
        values = values[~np.isnan(values)]
        summary = Summary.of(values.tolist(), PERCENTILES)
        curve = np.quantile(values, np.linspace(0, 1, _CURVE + 1)).tolist() if len(values) else ()
        p50, p90, p95, p99 = (summary.percentiles[p] for p in PERCENTILES)
        return cls(summary.count, summary.mean, summary.std, summary.maximum, p50, p90, p95, p99, curve=tuple(curve))


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Latencies count from arrival, and are of the requests that came to an end by themselves.

    Args:
        normalised: end-to-end latency by output token (Orca's measure).
        good: requests that met every target of the goal; None without one.
        ended: answers by how they ended.
        total_cached: prompt tokens of these requests that were found computed.
        iteration_tokens: of an iteration, on average.
        peak_blocks: most KV blocks in use.
        stage_idle: share of the stages' time in which they had nothing to run.
    """

    label: str
    completed: int
    ended: dict[str, int]
    duration: float
    total_input: int
    total_output: int
    good: int | None
    ttft: Distribution
    tpot: Distribution
    itl: Distribution
    e2el: Distribution
    normalised: Distribution
    total_cached: int = 0
    iterations: int = 0
    iteration_tokens: float = 0.0
    tokens_run: int = 0
    preemptions: int = 0
    num_blocks: int = 0
    peak_blocks: int = 0
    peak_waiting: int = 0
    peak_running: int = 0
    stage_idle: float = 0.0
    series: tuple[Point, ...] = ()
    bars: tuple[Bar, ...] = ()
    settings: dict[str, str] = {}

    @property
    def request_throughput(self) -> float:
        """Completed requests a second."""
        return self.completed / self.duration if self.duration else 0.0

    @property
    def output_throughput(self) -> float:
        """Generated tokens a second, of completed requests."""
        return self.total_output / self.duration if self.duration else 0.0

    @property
    def hit_rate(self) -> float:
        """Share of the prompt tokens that were found computed."""
        return self.total_cached / self.total_input if self.total_input else 0.0

    @property
    def goodput(self) -> float | None:
        """Requests a second that met every target."""
        return None if self.good is None or not self.duration else self.good / self.duration

    @property
    def slo_attainment(self) -> float | None:
        """Share of all requests that met every target; those that didn't end by themselves did not."""
        total = sum(self.ended.values())
        return None if self.good is None or not total else self.good / total


@dataclass(frozen=True, slots=True)
class _Latencies:
    """Of the completed requests, by row; NaN where there is no token, or no second one, to speak of."""

    ttft: NDArray[np.float64]
    tpot: NDArray[np.float64]
    e2el: NDArray[np.float64]
    normalised: NDArray[np.float64]

    @classmethod
    def of(cls, outcome: Outcome) -> _Latencies:
        column = outcome.ledger.column
        arrived, first, last, ended = (column(f"{name}_at") for name in ("arrived", "first", "last", "ended"))
        output = column("num_output") / np.maximum(column("num_answers"), 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            tpot = np.where(output > 1, (last - first) / (output - 1), np.nan)
            normalised = np.where(output > 0, (ended - arrived) / output, np.nan)
        return cls(first - arrived, tpot, ended - arrived, normalised)

    def good(self, goal: Goal) -> int:
        """Requests that met every target; an answer of one token has no TPOT to miss."""
        met = np.ones(len(self.ttft), dtype=bool)
        for values, target in ((self.ttft, goal.ttft), (self.tpot, goal.tpot), (self.e2el, goal.e2el)):
            if target is not None:
                met &= (values <= target) | np.isnan(values)
        return int(met.sum())


def figures_of(outcome: Outcome, label: str, goal: Goal, settings: dict[str, str] | None = None) -> Figures:
    """Everything that is worth a look."""
    ledger, points = outcome.ledger, outcome.series.points
    latencies = _Latencies.of(outcome)
    return Figures(
        label=label,
        completed=len(latencies.ttft),
        ended=dict(ledger.reasons),
        duration=outcome.span,
        total_input=int(ledger.column("num_prompt").sum()),
        total_output=int(ledger.column("num_output").sum()),
        good=latencies.good(goal) if goal else None,
        ttft=Distribution.of(latencies.ttft),
        tpot=Distribution.of(latencies.tpot),
        itl=_gaps(outcome),
        e2el=Distribution.of(latencies.e2el),
        normalised=Distribution.of(latencies.normalised),
        total_cached=ledger.total_cached,
        iterations=outcome.num_iterations,
        iteration_tokens=outcome.tokens_run / outcome.num_iterations if outcome.num_iterations else 0.0,
        tokens_run=outcome.tokens_run,
        preemptions=outcome.journal.counts["Preempted"],
        num_blocks=outcome.config.num_blocks,
        peak_blocks=max((point.blocks for point in points), default=0),
        peak_waiting=max((point.waiting for point in points), default=0),
        peak_running=max((point.running for point in points), default=0),
        stage_idle=outcome.idle_share,
        series=tuple(points),
        bars=tuple(outcome.window.bars()),
        settings=settings or {},
    )


def _gaps(outcome: Outcome) -> Distribution:
    """From the histogram: percentiles within a quarter of a percent, mean and maximum exact."""
    gaps = outcome.ledger.gaps
    if not gaps.count:
        return Distribution.of(np.empty(0))
    mean = gaps.total / gaps.count
    variance = max(0.0, gaps.squares / gaps.count - mean * mean)
    curve = tuple(gaps.percentile(100 * i / _CURVE) for i in range(_CURVE + 1))
    p50, p90, p95, p99 = (gaps.percentile(p) for p in PERCENTILES)
    return Distribution(gaps.count, mean, math.sqrt(variance), gaps.maximum, p50, p90, p95, p99, curve=curve)


LATENCIES = {
    "ttft": "TTFT: arrival to first token",
    "tpot": "TPOT: each further token, mean of a request",
    "itl": "ITL: gap between tokens",
    "e2el": "E2EL: arrival to end of answer",
    "normalised": "E2EL by output token",
}


def to_json(figures: Figures) -> dict[str, object]:
    """The keys of `vllm bench serve` as far as they mean the same; the whole run beside them, for `--compare`."""
    fields: dict[str, object] = {
        "duration": figures.duration,
        "completed": figures.completed,
        "total_input_tokens": figures.total_input,
        "total_output_tokens": figures.total_output,
        "request_throughput": figures.request_throughput,
        "request_goodput": figures.goodput,
        "slo_attainment": figures.slo_attainment,
        "output_throughput": figures.output_throughput,
        "prefix_hit_rate": figures.hit_rate,
    }
    for key in LATENCIES:
        distribution: Distribution = getattr(figures, key)
        for name in ("mean", "std", "maximum", "p50", "p90", "p95", "p99"):
            value = getattr(distribution, name) * 1000
            fields[f"{name.replace('maximum', 'max')}_{key}_ms"] = None if math.isnan(value) else value
    return fields | {"run": msgspec.to_builtins(figures)}
