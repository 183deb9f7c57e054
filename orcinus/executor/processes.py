"""Workers as processes on this host: plans to the first stage over Unix sockets, results from the last.

They live and die together. One that dies is noticed at once by the end of its socket, one that stands still by a look
at its state; either ends the executor, and the rest of them with it.
"""

from __future__ import annotations

import os
import socket
import time

import msgspec

from orcinus.executor import WorkerDied
from orcinus.executor.child import Child
from orcinus.executor.crew import Crew, Reporter, died_of
from orcinus.executor.frames import Frames
from orcinus.executor.messages import Start
from orcinus.parallel import TIMEOUT_SECONDS, Place, places
from orcinus.parallel.shared import SPIN_SECONDS, with_timeout
from orcinus.parallel.wiring import Wiring
from orcinus.worker.build import OnProgress, Say, WorkerConfig, WorkerDescription, check_layout

_LEAVE_SECONDS = 3.0


class WorkerProcess(Reporter):
    """One of them."""

    def __init__(self, place: Place, child: Child, reports: socket.socket) -> None:
        super().__init__(place, reports)
        self.child = child


class ProcessWorkers(Crew[WorkerProcess]):
    """Implements `Workers`, and with memory `Executor`.

    Started from a thread, they end when that thread ends (`Child`).
    """

    def __init__(self, workers: list[WorkerProcess], wiring: Wiring, say: Say, on_progress: OnProgress) -> None:
        plans = [Frames(with_timeout(end, TIMEOUT_SECONDS)) for end in wiring.plans]
        super().__init__(workers, plans, say, on_progress)
        self._wiring = wiring

    @classmethod
    def start(
        cls,
        config: WorkerConfig,
        tensor_size: int,
        num_stages: int,
        say: Say,
        on_progress: OnProgress = lambda: None,
    ) -> ProcessWorkers:
        """Start T x P processes, and wait until each has loaded its part.

        Raises:
            ConfigurationError, CheckpointError, BatchVarianceError: what one of them finds wrong.
            WorkerDied: one ended without a word.
        """
        check_layout(config, tensor_size, num_stages)
        wiring = Wiring.of(tensor_size, num_stages)
        cores = len(os.sched_getaffinity(0))
        spin_seconds = SPIN_SECONDS if tensor_size * num_stages <= cores else 0.0
        started: list[WorkerProcess] = []
        try:
            for place in places(tensor_size, num_stages):
                start = Start(config, place, wiring.ends[place.index], spin_seconds)
                started.append(WorkerProcess(place, _spawn(start), wiring.parents[place.index]))
                wiring.started(place.index)
        except BaseException:
            wiring.close()
            _end(started)
            raise
        workers = cls(started, wiring, say, on_progress)
        try:
            workers.descriptions = workers._wait_for_all(WorkerDescription)
        except BaseException:
            workers.close()
            raise
        return workers

    @property
    def pids(self) -> list[int]:
        """See `Crew`."""
        return [worker.child.pid for worker in self._workers]

    def close(self) -> None:
        """See `Crew`."""
        self._wiring.close()
        _end(self._workers)

    def _lost(self) -> WorkerDied | None:
        # One that has ended is heard of by the end of its socket.
        return self._culprit() if any(worker.child.is_stopped for worker in self._workers) else None

    def _culprit(self) -> WorkerDied | None:
        deeds = ((worker.place, worker.child.deed) for worker in self._workers)
        return next((died_of(place, deed) for place, deed in deeds if deed is not None), None)


def _spawn(start: Start) -> Child:
    words = [msgspec.json.encode(start).decode()]
    return Child("orcinus.executor.worker_process", words, inherit=start.ends.descriptors)


def _end(workers: list[WorkerProcess]) -> None:
    """Those who haven't left in time are killed, those who stand still at once."""
    deadline = time.monotonic() + _LEAVE_SECONDS
    for worker in workers:
        worker.child.end(deadline - time.monotonic())
