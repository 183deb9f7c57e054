"""When simulated requests arrive: Poisson, Gamma, on-off and diurnal. Deterministic by the generator given."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from itertools import islice

from orcinus.bench.arrivals import gamma_arrivals


def regular_or_bursty(count: int, rate: float, burstiness: float, rng: random.Random) -> Iterator[float]:
    """Gamma-distributed gaps, as `orcinus bench online` makes them; burstiness 1 is Poisson."""
    return iter(gamma_arrivals(count, rate, burstiness, rng))


def on_off(count: int, rate: float, on_seconds: float, off_seconds: float, rng: random.Random) -> Iterator[float]:
    """Poisson at a rate that gives `rate` over all, in phases of fixed length; nothing comes in the others."""
    period = on_seconds + off_seconds
    busy = islice(_poisson(rate * period / on_seconds, rng), count)
    # Time that only passes while the source is on, stretched by the pauses.
    return (at + at // on_seconds * off_seconds for at in busy)


def diurnal(count: int, rate: float, swing: float, period: float, rng: random.Random) -> Iterator[float]:
    """Poisson whose rate goes up and down by the share `swing` (0 to 1) once each `period`; it begins at its lowest."""

    def rate_at(at: float) -> float:
        return rate * (1 - swing * math.cos(2 * math.pi * at / period))

    return islice(_thinned(rate_at, rate * (1 + swing), rng), count)


def _poisson(rate: float, rng: random.Random) -> Iterator[float]:
    at = 0.0
    while True:
        at += rng.expovariate(rate)
        yield at


def _thinned(rate_at: Callable[[float], float], highest: float, rng: random.Random) -> Iterator[float]:
    """Lewis and Shedler, 1979: draw at the highest rate, keep each with the share that its instant's rate has of it."""
    return (at for at in _poisson(highest, rng) if rng.random() * highest < rate_at(at))
