"""Every error that Orcinus raises on purpose.

OrcinusError
├── ClientError            the caller's fault: a 4xx that names the parameter
│   ├── InvalidRequest     a value that can't be served, whatever the load
│   └── Overloaded         nothing wrong with the request; try again after `retry_after`
├── RequestFailed          this request's fault or misfortune: it ends alone
└── SystemFault            ours, or the machine's: loud, and the process says what to do
    ├── ConfigurationError a flag, a file or a combination that can't be started
    ├── CheckpointError    a checkpoint that is missing, damaged or unknown
    │   └── UnknownModel   a sound one, of a model that isn't in our table
    ├── MemoryPlanError    the weights or the KV pool don't fit
    ├── BatchVarianceError the kernels can't keep a request's bits apart from its company
    ├── EngineDied         the engine process ended; its requests can be resumed
    │   └── WorkerDied     one of its workers did (orcinus.executor)
    ├── PeerLost           a worker misses another one (orcinus.parallel)
    └── PlanError          a plan that contradicts the worker's state: a bug in core
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OrcinusError(Exception):
    """Base of the tree above."""


class ClientError(OrcinusError):
    """The caller's fault. `param` names the parameter in the caller's own words."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class InvalidRequest(ClientError):
    """A value that can't be served, whatever the load."""


class Overloaded(ClientError):
    """The queue is full, or too full for this request's deadline; `retry_after` is in seconds."""

    def __init__(self, message: str, *, retry_after: float, code: str = "engine_overloaded") -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after


class RequestFailed(OrcinusError):
    """One request ended in an error; no other was touched. `code` is stable, for programs."""

    def __init__(self, message: str, *, code: str = "internal_error") -> None:
        super().__init__(message)
        self.code = code


class SystemFault(OrcinusError):
    """Ours, or the machine's.

    `by_others`: somebody else ended a part of us, or the network did, so no request is to blame, and it may pass.
    """

    by_others = False


class ConfigurationError(SystemFault):
    """A flag, a file or a combination that can't be started."""


class CheckpointError(SystemFault):
    """A checkpoint that is missing, damaged or of an unknown kind."""


class UnknownModel(CheckpointError):
    """A checkpoint of an architecture that our table doesn't have; `transformers` may."""


class MemoryPlanError(SystemFault):
    """The weights or the KV pool don't fit."""


class BatchVarianceError(SystemFault):
    """The kernels at hand would let a request's bits depend on its company."""


class EngineDied(SystemFault):
    """The engine process ended while requests were running."""


class PlanError(SystemFault):
    """A plan that contradicts the worker's state."""


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest known name, or nothing if none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
