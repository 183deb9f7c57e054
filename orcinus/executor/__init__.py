"""Runs workers. Looks into no plan. Imports without torch."""

from __future__ import annotations

from typing import Protocol

from orcinus.core.plan import IterationPlan, IterationResult
from orcinus.errors import EngineDied


class WorkerDied(EngineDied):
    """A worker is gone, or stands still; those that held the model with it can't go on."""

    def __init__(self, message: str, *, by_others: bool = False) -> None:
        super().__init__(message)
        self.by_others = by_others


class Executor(Protocol):
    """Plans go in by `submit` and come out as results by `collect`, in the same order."""

    def submit(self, plan: IterationPlan) -> None:
        """Take a plan; returns at once."""
        ...

    def collect(self) -> IterationResult:
        """The result of the oldest plan not yet collected; waits for it.

        Raises:
            WorkerDied: it won't come.
        """
        ...

    def close(self) -> None:
        """Let the workers go."""
        ...
