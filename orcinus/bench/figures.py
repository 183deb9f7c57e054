"""From observations to figures; names as in `vllm bench serve`, words as in DESIGN.md, section 6."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from orcinus.bench.asks import Observation
from orcinus.bench.goal import Goal

# A generator that is later than this at its p99 no longer makes the load that was asked for.
LATE_SECONDS = 0.010


@dataclass(frozen=True, slots=True)
class Summary:
    """A distribution of seconds; all NaN if it is empty. Percentiles interpolate linearly, as numpy's default does."""

    count: int
    mean: float
    median: float
    std: float
    maximum: float
    percentiles: dict[float, float]

    @classmethod
    def of(cls, values: Sequence[float], percentiles: Sequence[float]) -> Self:
        """Of any number of values; the standard deviation is the population's."""
        if not values:
            return cls(0, math.nan, math.nan, math.nan, math.nan, dict.fromkeys(percentiles, math.nan))
        array = np.asarray(values, dtype=np.float64)
        return cls(
            len(values),
            float(array.mean()),
            float(np.median(array)),
            float(array.std()),
            float(array.max()),
            {p: float(np.percentile(array, p)) for p in percentiles},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineFigures:
    """One run. Latencies, tokens and throughput are of the requests that completed; failures are counted beside them.

    Args:
        duration: first request sent to last one ended, seconds.
        failures: how many of each kind.
        examples: the first of each kind, in the server's words.
        good: requests that met the goal; None without one.
        num_counted: completed requests whose output tokens were counted by chunks, for want of a usage.
        num_chunks: chunks that brought something of the completed answers.
        peak_concurrency: most requests out at a time, failed ones included.
        lateness: of the generator itself, released after scheduled.
        stalls: of the generator itself, woken after it wanted to be, all through the run.
        queueing: released to sent: only a concurrency limit makes it more than nothing.
    """

    completed: int
    failed: int
    failures: dict[str, int]
    examples: dict[str, str]
    duration: float
    total_input: int
    total_output: int
    good: int | None
    num_counted: int
    num_chunks: int
    peak_concurrency: int
    ttft: Summary
    tpot: Summary
    itl: Summary
    e2el: Summary
    lateness: Summary
    stalls: Summary
    queueing: Summary

    @property
    def request_throughput(self) -> float:
        """Completed requests a second."""
        return self.completed / self.duration

    @property
    def request_goodput(self) -> float | None:
        """Requests a second that met every target."""
        return None if self.good is None else self.good / self.duration

    @property
    def slo_attainment(self) -> float | None:
        """Share of all requests, failed ones included, that met every target."""
        return None if self.good is None else self.good / (self.completed + self.failed)

    @property
    def input_throughput(self) -> float:
        """Prompt tokens a second."""
        return self.total_input / self.duration

    @property
    def output_throughput(self) -> float:
        """Generated tokens a second."""
        return self.total_output / self.duration

    @property
    def lags(self) -> bool:
        """Whether the generator itself was too late to be believed."""
        return max(self.lateness.percentiles[99], self.stalls.percentiles[99]) > LATE_SECONDS


def summarise(
    observations: Sequence[Observation],
    stalls: Sequence[float],
    prompt_lengths: Sequence[int] | None,
    goal: Goal,
    percentiles: Sequence[float],
) -> OnlineFigures:
    """The figures of at least one observation.

    Args:
        stalls: how late the generator woke up, each time.
        prompt_lengths: of each prompt as it was made, for servers that send no usage.
    """
    whole = [o for o in observations if o.failure is None]
    failures = [o.failure for o in observations if o.failure is not None]

    def summary(values: Sequence[float]) -> Summary:
        return Summary.of(values, percentiles)

    return OnlineFigures(
        completed=len(whole),
        failed=len(observations) - len(whole),
        failures=dict(Counter(failure.label for failure in failures).most_common()),
        examples={failure.label: failure.detail for failure in reversed(failures)},
        duration=max(o.ended_at for o in observations) - min(o.sent_at for o in observations),
        total_input=_total_input(observations, prompt_lengths),
        total_output=sum(o.num_output for o in whole),
        good=sum(map(goal.met_by, whole)) if goal else None,
        num_counted=sum(o.output_tokens is None for o in whole),
        num_chunks=sum(len(o.token_instants) for o in whole),
        peak_concurrency=peak_concurrency(observations),
        ttft=summary([o.ttft for o in whole]),
        tpot=summary([o.tpot for o in whole if o.tpot is not None]),
        itl=summary([gap for o in whole for gap in o.gaps]),
        e2el=summary([o.e2el for o in whole]),
        lateness=Summary.of([o.released_at - o.scheduled_at for o in observations], (99,)),
        stalls=Summary.of(stalls or [0.0], (99,)),
        queueing=summary([o.sent_at - o.released_at for o in observations]),
    )


def _total_input(observations: Sequence[Observation], prompt_lengths: Sequence[int] | None) -> int:
    lengths = prompt_lengths or [0] * len(observations)
    return sum(
        length if o.prompt_tokens is None else o.prompt_tokens
        for o, length in zip(observations, lengths, strict=True)
        if o.failure is None
    )


def peak_concurrency(observations: Sequence[Observation]) -> int:
    """Most requests out at the same time; one that ends as another starts isn't counted with it."""
    steps = sorted([(o.ended_at, -1) for o in observations] + [(o.sent_at, 1) for o in observations])
    peak = out = 0
    for _, step in steps:
        out += step
        peak = max(peak, out)
    return peak
