"""A cost model from measured iterations: non-negative least squares on relative errors (Lawson and Hanson, 1974)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec
import numpy as np
from numpy.typing import NDArray

from orcinus.errors import ConfigurationError
from orcinus.simulate.cost import Features, MeasuredCost

Array = NDArray[np.float64]

# Where the broken line may bend: at few rows each one counts, later only the kernels' row tiles do.
_KNOTS = (
    1,
    2,
    3,
    4,
    6,
    8,
    9,
    12,
    16,
    20,
    24,
    32,
    48,
    64,
    96,
    128,
    192,
    256,
    384,
    512,
    768,
    1024,
    1536,
    2048,
    3072,
    4096,
    8192,
    16384,
)
# Another job on the machine makes an iteration slow, never fast: errors beyond so many typical ones weigh less.
_TOLERANCE = 2.0
_ROUNDS = 8


class Sample(msgspec.Struct, frozen=True):
    """One iteration that was run."""

    features: Features
    seconds: float


class Residuals(msgspec.Struct, frozen=True):
    """How far the model is off, as a share, over iterations that it has not seen; `bias` is that of their sum."""

    count: int
    p50: float
    p95: float
    bias: float


def fit(samples: Sequence[Sample]) -> MeasuredCost:
    """The broken line and prices that fit best, none of them negative.

    Raises:
        ConfigurationError: too few iterations.
    """
    if len(samples) < 8:
        raise ConfigurationError(f"{len(samples)} iterations are too few to fit a cost model; it takes at least 8")
    knots = _useful_knots([sample.features.tokens for sample in samples])
    columns = np.array([_row(sample.features, knots) for sample in samples])
    seconds = np.array([sample.seconds for sample in samples])
    prices = _robust(columns / seconds[:, None], np.ones(len(samples)))
    heights = np.cumsum(prices[: len(knots)])
    decode, context, pair, row = prices[len(knots) :].tolist()
    return MeasuredCost(
        knots=tuple(knots),
        heights=tuple(heights.tolist()),
        decode=decode,
        context_token=context,
        pair=pair,
        row=row,
    )


def residuals(cost: MeasuredCost, held_out: Sequence[Sample]) -> Residuals:
    """Of iterations that were left out of the fit."""
    predicted = np.array([cost.seconds(sample.features) for sample in held_out])
    seconds = np.array([sample.seconds for sample in held_out])
    errors = np.abs(predicted / seconds - 1)
    p50, p95 = np.percentile(errors, (50, 95))
    return Residuals(len(held_out), float(p50), float(p95), float(predicted.sum() / seconds.sum() - 1))


def nonnegative_least_squares(columns: Array, values: Array) -> Array:
    """The x >= 0 that makes |columns x - values| least."""
    count = columns.shape[1]
    solution, is_free = np.zeros(count), np.zeros(count, dtype=bool)
    threshold = 1e-10 * float(np.abs(columns.T @ values).max(initial=1e-300))
    # Each pass frees one; the limit only guards against rounding that would free and bind the same one for ever.
    for _ in range(3 * count):
        gain = np.where(is_free, -np.inf, columns.T @ (values - columns @ solution))
        if gain.max() <= threshold:
            break
        is_free[gain.argmax()] = True
        solution, is_free = _step_inside(columns, values, solution, is_free)
    return solution


def _step_inside(
    columns: Array, values: Array, solution: Array, is_free: NDArray[np.bool_]
) -> tuple[Array, NDArray[np.bool_]]:
    """Towards the least squares of the free ones, binding whoever would turn negative on the way."""
    while True:
        aim = np.zeros_like(solution)
        aim[is_free] = np.linalg.lstsq(columns[:, is_free], values, rcond=None)[0]
        turning = is_free & (aim <= 0)
        if not turning.any():
            return aim, is_free
        share = float((solution[turning] / np.maximum(solution[turning] - aim[turning], 1e-300)).min())
        solution = np.maximum(solution + share * (aim - solution), 0.0)
        is_free = is_free & ~(turning & (solution <= 1e-14 * max(solution.max(), 1e-300)))
        if turning[is_free].any() and share >= 1:
            return solution, is_free


def _useful_knots(tokens: Sequence[int]) -> list[int]:
    """Those with iterations around them; the first and the last frame all."""
    low, high = min(tokens), max(tokens)
    inner = [knot for knot in _KNOTS if low < knot < high]
    knots, seen = [low], sorted(tokens)
    for knot in inner:
        if any(knots[-1] < count <= knot for count in seen):
            knots.append(knot)
    return [*knots, max(high, knots[-1] + 1)]


def _row(features: Features, knots: list[int]) -> list[float]:
    """Rises between knots, so that more tokens never cost less; then the other prices."""
    tokens = features.tokens
    rises = [min(max((tokens - left) / (right - left), 0.0), 1.0) for left, right in pairwise(knots)]
    return [1.0, *rises, features.decodes, features.context, features.pairs, features.rows]


def _robust(columns: Array, values: Array) -> Array:
    """Huber's weights, by turns with the fit."""
    scale = np.maximum(np.abs(columns).max(axis=0), 1e-300)
    weights, prices = np.ones(len(values)), np.zeros(columns.shape[1])
    for _ in range(_ROUNDS):
        root = np.sqrt(weights)
        prices = nonnegative_least_squares(columns / scale * root[:, None], values * root) / scale
        errors = np.abs(columns @ prices - values)
        bound = _TOLERANCE * max(float(np.median(errors)), 1e-6)
        weights = np.minimum(1.0, bound / np.maximum(errors, 1e-12))
    return prices
