"""Real time. The front end and the engine read the same clock, so their instants compare on one host."""

from __future__ import annotations

import time


class MonotonicClock:
    """Seconds since the machine started; never steps back."""

    def now(self) -> float:
        """The present instant."""
        return time.monotonic()
