"""The worker in the engine's own process: nothing between them but a queue."""

from __future__ import annotations

from collections import deque

from orcinus.core.kv.tiers import OnDisk
from orcinus.core.plan import IterationPlan, IterationResult
from orcinus.parallel import Place
from orcinus.parallel.wiring import Links
from orcinus.worker.build import LoadedWorker, Memory, OnProgress, Say, WorkerConfig, WorkerDescription
from orcinus.worker.worker import Worker


class InlineWorkers:
    """One worker, loaded here. `on_progress` is called whenever a layer is done."""

    def __init__(self, config: WorkerConfig, say: Say, on_progress: OnProgress | None = None) -> None:
        self._on_progress = on_progress
        self._loaded = LoadedWorker.load(config, Place(), Links(), say)
        self._say = say
        self.on_disk = OnDisk()
        self.descriptions: list[WorkerDescription] = [self._loaded.description]

    def with_memory(self, memory: Memory) -> InlineExecutor:
        """See `Workers`."""
        disk = None
        if memory.disk is not None:
            disk = self._loaded.open_disk(memory.disk, self._say)
            self.on_disk = disk.on_disk
        return InlineExecutor(self._loaded.with_memory(memory, disk, self._on_progress))

    def close(self) -> None:
        """Nothing to do."""


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
        self._worker.close()
