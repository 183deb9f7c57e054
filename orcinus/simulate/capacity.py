"""How much load a configuration bears: the highest rate at which a latency stays within its target."""

from __future__ import annotations

from collections.abc import Callable


def highest_rate(
    latency_at: Callable[[float], float], target: float, low: float = 0.01, high: float = 1000.0, steps: int = 14
) -> float:
    """The most requests a second at which `latency_at(rate)` stays within `target`, by bisection; `low` if none does.

    Latency must grow with the rate; with equal draws at each rate, only squeezed together, it very nearly does.
    """
    for _ in range(steps):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if latency_at(middle) <= target else (low, middle)
    return low
