"""Workers on their way to be an executor: loaded first, and given memory when it is known how much all of them need."""

from __future__ import annotations

from typing import Protocol

from orcinus.core.kv.tiers import OnDisk
from orcinus.executor import Executor
from orcinus.worker.build import Memory, WorkerDescription


class Workers(Protocol):
    """Workers that have their weights and wait for their memory."""

    @property
    def descriptions(self) -> list[WorkerDescription]:
        """One each, by index."""
        ...

    @property
    def on_disk(self) -> OnDisk:
        """What earlier engines have left on the disk that came with the memory."""
        ...

    def with_memory(self, memory: Memory) -> Executor:
        """Give it to each of them."""
        ...

    def close(self) -> None:
        """Let them go, should nothing come of it."""
        ...
