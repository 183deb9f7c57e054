"""How long iterations take, learnt from those that ended; and the token budget that keeps them within a target.

Seconds = a constant + a price for each decoding sequence + a price for each prefill token, fitted as results come in
(recursive least squares that forget). No clock is read: the seconds are told.
"""

from __future__ import annotations

from math import isfinite

Vector = tuple[float, float, float]

# Features are scaled, so that one unit of each weighs about as much.
_DECODES, _TOKENS = 64.0, 512.0
# How much of what was learnt is left after each iteration: about the last 200 count.
_MEMORY = 0.995
# Realtime iterations may be longer by this share for the best effort that pads them (REEF; SYSTEMS.md §8).
PADDING = 0.02
# Doubt before anything was seen, and the most there ever is: what isn't seen for long isn't forgotten without bound.
_DOUBT = 1e3


class Pace:
    """The fit. Prices below 0 count as 0."""

    def __init__(self) -> None:
        self.num_seen = 0
        self._prices: list[float] = [0.0, 0.0, 0.0]
        self._doubt: list[list[float]] = [[_DOUBT * (row == column) for column in range(3)] for row in range(3)]

    def observe(self, decodes: int, prefill_tokens: int, seconds: float) -> None:
        """One iteration ended after `seconds`; a clock that jumped teaches nothing."""
        if seconds <= 0.0 or not isfinite(seconds):
            return
        self.num_seen += 1
        features: Vector = (1.0, decodes / _DECODES, prefill_tokens / _TOKENS)
        # Relative errors count: a long iteration is no more worth than a short one.
        scale = 1.0 / seconds
        self._learn((features[0] * scale, features[1] * scale, features[2] * scale), 1.0)

    def seconds(self, decodes: int, prefill_tokens: int) -> float:
        """What such an iteration takes; 0 before anything was seen."""
        constant, decode, token = self._prices
        return max(constant, 0.0) + max(decode, 0.0) * decodes / _DECODES + max(token, 0.0) * prefill_tokens / _TOKENS

    def decode_seconds(self) -> float:
        """The shortest iteration: one sequence decodes."""
        return self.seconds(1, 0)

    def prefill_seconds(self, tokens: int) -> float:
        """A prompt of so many tokens, alone and in one iteration."""
        return self.seconds(0, tokens)

    def prefill_within(self, seconds: float, decodes: int) -> float:
        """Most prefill tokens beside `decodes` in an iteration of `seconds`; infinite while they seem free."""
        left = seconds - self.seconds(decodes, 0)
        price = max(self._prices[2], 0.0) / _TOKENS
        return left / price if price > 0.0 else float("inf")

    def padding(self, decodes: int) -> float:
        """Tokens of whatever kind that make an iteration of `decodes` longer by `PADDING` at most; infinite if free."""
        price = max(self._prices[1] / _DECODES, self._prices[2] / _TOKENS)
        return PADDING * self.seconds(decodes, 0) / price if price > 0.0 else float("inf")

    def _learn(self, features: Vector, target: float) -> None:
        doubt, prices = self._doubt, self._prices
        gain = [row[0] * features[0] + row[1] * features[1] + row[2] * features[2] for row in doubt]
        weight = _MEMORY + sum(map(float.__mul__, gain, features))
        error = target - sum(map(float.__mul__, prices, features))
        for row in range(3):
            share = gain[row] / weight
            prices[row] += share * error
            for column in range(row + 1):
                doubt[row][column] -= share * gain[column]
                doubt[column][row] = doubt[row][column]
        if doubt[0][0] + doubt[1][1] + doubt[2][2] < _MEMORY * _DOUBT:
            for each in doubt:
                each[:] = [value / _MEMORY for value in each]


class TokenBudget:
    """Prefill tokens that an iteration may run beside its decodes (Sarathi-Serve, OSDI '24; SYSTEMS.md §12).

    Args:
        limit: tokens that an iteration may never exceed, decodes included.
        tile: chunks are multiples of it; and the least that is given, whatever the target, or prompts would starve.
        target: seconds that an iteration should take at most; None asks for the limit.
    """

    def __init__(self, pace: Pace, limit: int, tile: int, target: float | None) -> None:
        self._pace = pace
        self._limit = limit
        self._tile = tile
        self._target = target

    def prefill(self, decodes: int) -> int:
        """Tokens for prompts beside `decodes`, whose own are set aside."""
        most = self._limit - decodes
        if self._target is None or self._pace.num_seen == 0:
            return most
        within = self._pace.prefill_within(self._target, decodes)
        if within >= most:
            return most
        return min(most, max(self._tile, int(within) // self._tile * self._tile))
