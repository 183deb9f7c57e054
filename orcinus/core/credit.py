"""May a request come in? Decided in the front end, at once: a refusal never waits for an iteration.

What decides is how long a newcomer would wait until it begins, behind those that came before it: until a sequence and
KV are free for it, and until the prompts ahead have been read. Its own size does not count. That makes the decision the
same before the request is read and after, and a long request is as likely to come in as a short one: in a queue that
is always full, it would otherwise never fit into what the short ones leave.

Pure: instants come as arguments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from orcinus.core.request import Request

# Seconds under load that a pace remembers, and how many the first guess is worth.
MEMORY, GUESS_SECONDS = 10.0, 1.0
# The first guesses: the whole capacity turns over in this time, and an iteration takes so long.
ASSUMED_TURNOVER, ASSUMED_ITERATION = 10.0, 0.25
# What an iteration has brought comes in one breath: the load is as it was before the first of it.
AT_ONCE = 0.001
LEAST_RETRY, MOST_RETRY = 1.0, 60.0
# Those who come back should find the queue so full, and take so much of the pace: neither is known exactly.
RETURN_FILL, RETURN_SHARE = 0.5, 0.85
# Where newcomers stand in line at the door, each moment that looks better than it is gets used. Since somebody was
# refused, for as long as he may have waited, this share of the wait is allowed: what comes of it is the whole.
CROWDED_SHARE = 0.85


@dataclass(frozen=True, slots=True)
class Cost:
    """Of requests, or what an engine can hold at a time.

    Args:
        tokens: of KV; a request's worst case.
        sequences: that run together.
        prompt: tokens to read; of an engine, in one iteration.
        requests: of an engine, none.
    """

    tokens: int = 0
    sequences: int = 0
    prompt: int = 0
    requests: int = 0

    @classmethod
    def of(cls, request: Request) -> Cost:
        """The worst case of one request. Its answers or beams share the work on the prompt."""
        n = request.num_sequences
        prompt = request.num_prompt_tokens
        return cls((prompt + request.max_tokens) * n, n, prompt, 1)

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.tokens + other.tokens,
            self.sequences + other.sequences,
            self.prompt + other.prompt,
            self.requests + other.requests,
        )

    def __sub__(self, other: Cost) -> Cost:
        return Cost(
            self.tokens - other.tokens,
            self.sequences - other.sequences,
            self.prompt - other.prompt,
            self.requests - other.requests,
        )


class Pace:
    """Units a second while there were always more to be done: what an idle engine does says nothing about its pace.

    Args:
        guess: what to assume at first.
    """

    def __init__(self, guess: float) -> None:
        self._least = guess / 1000
        self._done = guess * GUESS_SECONDS
        self._seconds = GUESS_SECONDS

    def pass_time(self, seconds: float) -> None:
        """So much time under load."""
        kept = math.exp(-seconds / MEMORY)
        self._done *= kept
        self._seconds = self._seconds * kept + seconds

    def count(self, units: int) -> None:
        """Done, under load."""
        self._done += units

    def wait(self, units: int) -> float:
        """Seconds until so many are done."""
        return units / max(self._done / self._seconds, self._least)


class Credit:
    """What one front end may still let in.

    Args:
        capacity: its share of the engine's.
        max_wait: seconds that a newcomer may have to expect to wait; more is a refusal.
    """

    def __init__(self, capacity: Cost, max_wait: float) -> None:
        self._max_wait = max_wait
        self._live = Cost()
        self._waiting = Cost()
        self._now = 0.0
        self._returns_at = 0.0
        self._refused_at = -math.inf
        self._load = _Load()
        self._set_capacity(capacity)

    def resize(self, capacity: Cost) -> None:
        """Another engine may hold more, or less; one that holds as much is taken to be as fast as the last one."""
        if capacity != self._capacity:
            self._set_capacity(capacity)

    def _set_capacity(self, capacity: Cost) -> None:
        self._capacity = capacity
        self._tokens = Pace(max(capacity.tokens, 1) / ASSUMED_TURNOVER)
        self._sequences = Pace(max(capacity.sequences, 1) / ASSUMED_TURNOVER)
        self._prompt = Pace(max(capacity.prompt, 1) / ASSUMED_ITERATION)
        self._requests = Pace(max(capacity.sequences, 1) / ASSUMED_TURNOVER)

    def expected_wait(self, now: float) -> float:
        """Seconds until somebody who came now would begin. Only those wait that haven't begun."""
        self._elapse(now)
        live, waiting, capacity = self._live, self._waiting, self._capacity
        tokens = min(live.tokens - capacity.tokens, waiting.tokens) + 1
        sequences = min(live.sequences - capacity.sequences, waiting.sequences) + 1
        # What fits into the next iteration doesn't wait.
        prompt = waiting.prompt if waiting.prompt > capacity.prompt else 0
        # Whatever there is too little of: so many have been in line, and so many have begun.
        requests = waiting.requests if tokens > 1 or sequences > 1 or prompt else 0
        return max(
            0.0,
            self._tokens.wait(tokens),
            self._sequences.wait(sequences),
            self._prompt.wait(prompt),
            self._requests.wait(requests),
        )

    def retry_after(self, now: float, requests: int = 1) -> float | None:
        """None if newcomers may come in, else the seconds after which these could; 1 to 60.

        Those that are refused are told different times, at the pace at which requests begin: if all come back as told,
        there is room for each. Who has to come later than in a minute is told a minute, and may be refused again.
        """
        wait = self.expected_wait(now)
        if self._waiting.requests == 0:
            # Those who were told to come back have come, or won't: the next one needn't line up behind them.
            self._returns_at = now
        is_crowded = now - self._refused_at < self._max_wait
        if wait <= self._max_wait * (CROWDED_SHARE if is_crowded else 1.0) or self._live == Cost():
            return None
        self._refused_at = now
        earliest = now + wait - self._max_wait * RETURN_FILL
        after_the_last = self._returns_at + self._requests.wait(max(requests, 1)) / RETURN_SHARE
        self._returns_at = min(max(earliest, after_the_last), now + MOST_RETRY)
        return max(self._returns_at - now, LEAST_RETRY)

    def take(self, cost: Cost, now: float) -> None:
        """A request has come in."""
        self._elapse(now)
        self._live += cost
        self._waiting += cost

    def begin(self, cost: Cost, now: float) -> None:
        """The first of its answer is there."""
        self._elapse(now)
        if self._load.prompt:
            self._prompt.count(cost.prompt)
        if self._load.any:
            self._requests.count(cost.requests)
        self._waiting -= cost

    def give_back(self, cost: Cost, now: float, *, has_begun: bool = True) -> None:
        """It has ended, however."""
        self._elapse(now)
        self._live -= cost
        if not has_begun:
            self._waiting -= cost
            return
        if self._load.tokens:
            self._tokens.count(cost.tokens)
        if self._load.sequences:
            self._sequences.count(cost.sequences)

    def begin_anew(self, now: float) -> None:
        """The engine has lost everything: all that is live waits once more, and newcomers wait behind it."""
        self._elapse(now)
        self._waiting = self._live

    def _elapse(self, now: float) -> None:
        """Let the paces see the time in which they were needed."""
        passed = now - self._now
        if passed < AT_ONCE:
            return
        self._now = now
        live, waiting, capacity = self._live, self._waiting, self._capacity
        self._load = _Load(
            live.tokens >= capacity.tokens, live.sequences >= capacity.sequences, waiting.prompt > capacity.prompt
        )
        for pace, is_needed in (
            (self._tokens, self._load.tokens),
            (self._sequences, self._load.sequences),
            (self._prompt, self._load.prompt),
            (self._requests, self._load.any),
        ):
            if is_needed:
                pace.pass_time(passed)


class _Load(NamedTuple):
    """Of what there was too little until now."""

    tokens: bool = False
    sequences: bool = False
    prompt: bool = False

    @property
    def any(self) -> bool:
        """Somebody waits."""
        return any(self)
