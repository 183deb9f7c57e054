"""Time is given to core, never read by it."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Seconds that only ever grow. Real, virtual or recorded."""

    def now(self) -> float:
        """The present instant."""
        ...


class VirtualClock:
    """Time that moves when told: for the simulator, for replay, for tests."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        """The present instant."""
        return self._now

    def advance_to(self, instant: float) -> None:
        """Move to `instant`, which lies not in the past."""
        assert instant >= self._now, f"time can't go back from {self._now} to {instant}"
        self._now = instant
