"""Runs workers. Looks into no plan."""

from __future__ import annotations

from typing import Protocol

from orcinus.core.plan import IterationPlan, IterationResult


class Executor(Protocol):
    """Plans go in by `submit` and come out as results by `collect`, in the same order."""

    def submit(self, plan: IterationPlan) -> None:
        """Take a plan; returns at once."""
        ...

    def collect(self) -> IterationResult:
        """The result of the oldest plan not yet collected; waits for it."""
        ...

    def close(self) -> None:
        """Let the workers go."""
        ...
