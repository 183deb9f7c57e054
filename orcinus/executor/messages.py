"""What a worker process and its parent say to each other beside plans, which go another way."""

from __future__ import annotations

import msgspec

from orcinus.core.plan import IterationResult
from orcinus.errors import (
    BatchVarianceError,
    CheckpointError,
    ConfigurationError,
    MemoryPlanError,
    PlanError,
    SystemFault,
)
from orcinus.executor import WorkerDied
from orcinus.parallel import LinkLost, PeerLost, Place
from orcinus.parallel.wiring import Ends
from orcinus.worker.build import Memory, WorkerConfig, WorkerDescription


class Start(msgspec.Struct, frozen=True, tag="start"):
    """A worker's place and what it inherits, as its argument."""

    config: WorkerConfig
    place: Place
    ends: Ends
    spin_seconds: float


class Said(msgspec.Struct, frozen=True, tag="said"):
    """A line for people."""

    line: str


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The memory is taken, plans may come."""


class GoesOn(msgspec.Struct, frozen=True, tag="goes_on"):
    """Amid a plan: it works, and isn't hung."""


class Done(msgspec.Struct, frozen=True, tag="done"):
    """What a plan gave."""

    result: IterationResult


class WorkerFailed(msgspec.Struct, frozen=True, tag="failed"):
    """Last words. `kind` is a key of `_FAULTS`, or empty."""

    message: str
    kind: str = ""

    @classmethod
    def of(cls, fault: SystemFault) -> WorkerFailed:
        """As words."""
        kinds = [kind for kind, known in _FAULTS.items() if isinstance(fault, known)]
        return cls(str(fault), kinds[0] if kinds else "")

    def fault(self) -> SystemFault:
        """What it is on this side."""
        return _FAULTS.get(self.kind, WorkerDied)(self.message)


_FAULTS: dict[str, type[SystemFault]] = {
    "configuration": ConfigurationError,
    "checkpoint": CheckpointError,
    "memory": MemoryPlanError,
    "batch_variance": BatchVarianceError,
    "plan": PlanError,
    "link": LinkLost,
    "peer": PeerLost,
}

ToWorker = Memory
"""From the parent, once."""
FromWorker = WorkerDescription | Said | Ready | GoesOn | Done | WorkerFailed
"""To the parent."""
