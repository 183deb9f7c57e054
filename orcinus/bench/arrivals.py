"""When requests arrive: instants drawn before the load starts, so that no answer can delay them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import accumulate


def gamma_arrivals(count: int, rate: float, burstiness: float, rng: random.Random) -> list[float]:
    """Seconds after the first request at which each of `count` requests arrives; the first is at 0.

    Args:
        rate: mean requests a second; infinity sends all at once.
        burstiness: shape of the Gamma-distributed gaps, as in vLLM's bench: 1 is Poisson, less is burstier, more is
            more regular. Gaps have mean 1 / rate and coefficient of variation 1 / sqrt(burstiness).
    """
    if math.isinf(rate):
        return [0.0] * count
    gaps = (rng.gammavariate(burstiness, 1 / (rate * burstiness)) for _ in range(count - 1))
    return list(accumulate(gaps, initial=0.0))[:count]


def stretched(instants: Sequence[float], rate: float) -> list[float]:
    """A trace's instants, stretched or squeezed to a mean of `rate` requests a second; infinity sends all at once."""
    if math.isinf(rate):
        return [0.0] * len(instants)
    span = instants[-1] if instants else 0.0
    if span == 0:
        return list(instants)
    factor = (len(instants) - 1) / rate / span
    return [instant * factor for instant in instants]
