"""How much of the time the stages of a pipeline stand idle: the price of batches too few or too unequal."""

from __future__ import annotations

from collections.abc import Sequence


class Idle:
    """Adds up what each stage worked, and the time in which there were plans to work on."""

    def __init__(self) -> None:
        self._in_flight = 0
        self._began_at = 0.0
        self._elapsed = 0.0
        self._busy: list[float] = []

    def submitted(self, now: float) -> None:
        """A plan goes in."""
        if self._in_flight == 0:
            self._began_at = now
        self._in_flight += 1

    def collected(self, stage_times: Sequence[float], now: float) -> None:
        """A plan has come out: the seconds that each stage worked on it."""
        self._in_flight -= 1
        if self._in_flight == 0:
            self._elapsed += now - self._began_at
        before = self._busy or [0.0] * len(stage_times)
        self._busy = [busy + more for busy, more in zip(before, stage_times, strict=True)]

    def shares(self, now: float) -> tuple[float, ...]:
        """By stage, 0 to 1; nothing before the first plan has come out."""
        elapsed = self._elapsed + (now - self._began_at if self._in_flight else 0.0)
        return tuple(max(0.0, 1 - busy / elapsed) for busy in self._busy)
