"""The worker in the engine's own process: nothing between them but a queue."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from orcinus.core.plan import IterationPlan, IterationResult

if TYPE_CHECKING:
    from orcinus.worker.worker import Worker


class InlineExecutor:
    """A plan runs when its result is asked for."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._plans: deque[IterationPlan] = deque()

    def submit(self, plan: IterationPlan) -> None:
        """Queue the plan."""
        self._plans.append(plan)

    def collect(self) -> IterationResult:
        """Run the oldest plan."""
        return self._worker.execute(self._plans.popleft())

    def close(self) -> None:
        """Drop what was queued."""
        self._plans.clear()
