"""How long iterations take, learnt from those that ended; and the token budget that keeps them within a target.

Seconds = a constant + a price for each decoding sequence, each prefill token and each pair of a prefill token and one
before it, fitted as results come in (recursive least squares that forget). No clock is read: the seconds are told.
"""

from __future__ import annotations

from math import isfinite, sqrt

# Features are scaled, so that one unit of each weighs about as much.
_DECODES, _TOKENS, _PAIRS = 64.0, 512.0, 512.0 * 2048
# How much of what was learnt is left after each iteration: about the last 200 count.
_MEMORY = 0.995
# Realtime iterations may be longer by this share for the best effort that pads them (REEF; SYSTEMS.md §8).
PADDING = 0.02
# Our kernels of products work on 6 rows together, so fewer tokens than these take hardly less. A power of two, that
# blocks are multiples of.
ROW_TILE = 4
# Tokens that are no bound.
_ENDLESS = 2**40
# A token's products with the weights are more work than its attention to so many others, in any transformer.
_TOKEN_PAIRS = 64
# How fast the most prefill tokens of late are forgotten.
_FADING = 0.9
# Doubt of a price before anything was seen, and the most there ever is: what isn't seen for long isn't forgotten
# without bound.
_DOUBT = 1e3


class Pace:
    """The fit. Prices below 0 count as 0."""

    def __init__(self) -> None:
        self.num_seen = 0
        # Prefill tokens in an iteration: the most of late.
        self.most_tokens = 0.0
        self._prices: list[float] = [0.0] * 4
        self._doubt: list[list[float]] = [[_DOUBT * (row == column) for column in range(4)] for row in range(4)]

    def observe(self, decodes: int, prefill_tokens: int, seconds: float, pairs: int = 0) -> None:
        """One iteration ended after `seconds`; a clock that jumped teaches nothing."""
        if seconds <= 0.0 or not isfinite(seconds):
            return
        self.num_seen += 1
        if prefill_tokens:
            self.most_tokens = max(prefill_tokens, _FADING * self.most_tokens)
        features = (1.0, decodes / _DECODES, prefill_tokens / _TOKENS, pairs / _PAIRS)
        # Relative errors count: a long iteration is no more worth than a short one.
        self._learn([feature / seconds for feature in features], 1.0)

    def seconds(self, decodes: int, prefill_tokens: int, pairs: int = 0) -> float:
        """What such an iteration takes; 0 before anything was seen."""
        constant, decode, token, pair = (max(price, 0.0) for price in self._prices)
        return constant + decode * decodes / _DECODES + token * prefill_tokens / _TOKENS + pair * pairs / _PAIRS

    def decode_seconds(self) -> float:
        """The shortest iteration: one sequence decodes."""
        return self.seconds(1, 0)

    def prefill_seconds(self, tokens: int) -> float:
        """A prompt of so many tokens, alone and in one iteration."""
        return self.seconds(0, tokens, pairs_of(0, tokens))

    @property
    def depth_price(self) -> float:
        """What each token before it adds to the price of a prefill token, as a share of that price."""
        token = self._token_price()
        return max(self._prices[3], 0.0) / _PAIRS / token if token > 0.0 else 0.0

    def prefill_within(self, seconds: float, decodes: int) -> float:
        """Most prefill tokens beside `decodes` in an iteration of `seconds`, if nothing comes before them; infinite
        while they seem free."""
        left = seconds - self.seconds(decodes, 0)
        price = self._token_price()
        return left / price if price > 0.0 else float("inf")

    def padding(self, decodes: int) -> float:
        """Tokens of whatever kind that make an iteration of `decodes` longer by `PADDING` at most; infinite if free."""
        price = max(self._prices[1] / _DECODES, self._prices[2] / _TOKENS)
        return PADDING * self.seconds(decodes, 0) / price if price > 0.0 else float("inf")

    def _token_price(self) -> float:
        """Chunks of equal size don't tell tokens from pairs: what a token costs may have been put down to these."""
        return max(self._prices[2] / _TOKENS, _TOKEN_PAIRS * self._prices[3] / _PAIRS, 0.0)

    def _learn(self, features: list[float], target: float) -> None:
        doubt, prices = self._doubt, self._prices
        gain = [sum(map(float.__mul__, row, features)) for row in doubt]
        weight = _MEMORY + sum(map(float.__mul__, gain, features))
        error = target - sum(map(float.__mul__, prices, features))
        for row in range(4):
            share = gain[row] / weight
            prices[row] += share * error
            for column in range(row + 1):
                doubt[row][column] -= share * gain[column]
                doubt[column][row] = doubt[row][column]
        fades = [sqrt(min(1 / _MEMORY, _DOUBT / max(doubt[row][row], 1e-300))) for row in range(4)]
        for row, fade in enumerate(fades):
            doubt[row] = [value * fade * other for value, other in zip(doubt[row], fades, strict=True)]


def pairs_of(start: int, tokens: int) -> int:
    """Each of `tokens` behind `start` others with all before it and itself."""
    return tokens * start + tokens * (tokens + 1) // 2


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
        """Tokens for prompts beside `decodes`, if each costs what a prompt's first one costs.

        With a target that may be more than the limit, of which less fits where more lies before it.
        """
        if self._target is None or self._pace.num_seen == 0:
            return self._limit - decodes
        within = self._pace.prefill_within(self._target, decodes)
        return max(self._tile, int(min(within, _ENDLESS)) // self._tile * self._tile)

    def growth(self) -> int:
        """Twice as many tokens as of late at most: so a wrong estimate can't hold everybody up for long."""
        if self._target is None or self._pace.num_seen == 0:
            return _ENDLESS
        return max(self._tile, int(2 * self._pace.most_tokens))

    @property
    def depth_price(self) -> float:
        """See `Pace`; 0 where no iteration has to keep to a time."""
        return 0.0 if self._target is None else self._pace.depth_price
