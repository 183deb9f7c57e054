"""May another request come in? Decided in the front end, at once: a refusal never waits for an iteration.

A request costs its worst case, (prompt + max_tokens) · n tokens of KV and n sequences. What is live beyond the engine's
capacity waits; how long follows from the pace at which costs have been given back. Pure: instants come as arguments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from orcinus.core.request import Request

# Seconds of work that the pace remembers.
MEMORY = 10.0
# Before anything has ended: as if the whole capacity turned over in this time.
ASSUMED_TURNOVER = 10.0
LEAST_RETRY, MOST_RETRY = 1.0, 60.0


@dataclass(frozen=True, slots=True)
class Cost:
    """Of requests, or what an engine can hold at a time."""

    tokens: int = 0
    sequences: int = 0

    @classmethod
    def of(cls, request: Request) -> Cost:
        """The worst case of one request."""
        n = request.params.n
        return cls((request.num_prompt_tokens + request.max_tokens) * n, n)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.tokens + other.tokens, self.sequences + other.sequences)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.tokens - other.tokens, self.sequences - other.sequences)


class Credit:
    """What one front end may still let in.

    Args:
        capacity: its share of the engine's.
        max_wait: seconds that a newcomer may have to expect to wait; more is a refusal.
    """

    def __init__(self, capacity: Cost, max_wait: float) -> None:
        self._capacity = capacity
        self._max_wait = max_wait
        self._live = Cost()
        self._seen_at = 0.0
        self._busy = 0.0
        self._tokens = 0.0
        self._sequences = 0.0

    def resize(self, capacity: Cost) -> None:
        """Another engine may hold more, or less."""
        self._capacity = capacity

    def expected_wait(self, newcomer: Cost, now: float) -> float:
        """Seconds until so much has been given back that `newcomer` fits."""
        self._elapse(now)
        excess = self._live + newcomer - self._capacity
        by_tokens = excess.tokens / self._pace(self._tokens, self._capacity.tokens)
        return max(0.0, by_tokens, excess.sequences / self._pace(self._sequences, self._capacity.sequences))

    def retry_after(self, newcomer: Cost, now: float) -> float | None:
        """None if `newcomer` may come in, else the seconds after which it could; 1 to 60.

        An idle engine takes anything: whether a single request fits is the door's question.
        """
        wait = self.expected_wait(newcomer, now)
        if wait <= self._max_wait or self._live == Cost():
            return None
        return min(max(wait - self._max_wait, LEAST_RETRY), MOST_RETRY)

    def take(self, cost: Cost, now: float) -> None:
        """A request has come in."""
        self._elapse(now)
        self._live += cost

    def give_back(self, cost: Cost, now: float) -> None:
        """It has ended, however."""
        self._elapse(now)
        self._live -= cost
        self._tokens += cost.tokens
        self._sequences += cost.sequences

    def _elapse(self, now: float) -> None:
        """Only time with work counts: an idle hour says nothing about the pace."""
        passed, self._seen_at = max(0.0, now - self._seen_at), now
        if self._live != Cost():
            kept = math.exp(-passed / MEMORY)
            self._busy = self._busy * kept + passed
            self._tokens *= kept
            self._sequences *= kept

    def _pace(self, given_back: float, capacity: int) -> float:
        """Given back a second; never 0."""
        if self._busy == 0.0 or given_back == 0.0:
            return max(capacity, 1) / ASSUMED_TURNOVER
        return given_back / self._busy
