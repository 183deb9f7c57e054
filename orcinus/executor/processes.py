"""Workers as processes on this host: plans to the first stage over Unix sockets, results from the last.

They live and die together. One that dies is noticed at once by the end of its socket, one that stands still by a look
at its state; either ends the executor, and the rest of them with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from orcinus.executor import WorkerDied
from orcinus.executor.crew import Crew, Reporter
from orcinus.executor.frames import Frames
from orcinus.executor.messages import Start
from orcinus.parallel import TIMEOUT_SECONDS, Place, places
from orcinus.parallel.shared import SPIN_SECONDS, with_timeout
from orcinus.parallel.wiring import Wiring
from orcinus.worker.build import Say, WorkerConfig, WorkerDescription, check_layout

_LEAVE_SECONDS = 3.0
_FOREIGN_SIGNALS = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


class WorkerProcess(Reporter):
    """One of them."""

    def __init__(self, place: Place, process: subprocess.Popen[bytes], reports: socket.socket) -> None:
        super().__init__(place, reports)
        self.process = process

    @property
    def is_stopped(self) -> bool:
        """Somebody has sent it SIGSTOP."""
        with contextlib.suppress(OSError):
            # The state follows the name, which may hold spaces and parentheses.
            stat = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8")
            return stat.rpartition(")")[2].split()[0] in "Tt"
        return False

    @property
    def fault(self) -> WorkerDied | None:
        """What somebody else has done to it, or None."""
        code = self.process.poll()
        if code is not None and code < 0:
            number = signal.Signals(-code)
            return WorkerDied(f"{self.place} was ended by {number.name}", by_others=number in _FOREIGN_SIGNALS)
        return WorkerDied(f"{self.place} was stopped", by_others=True) if self.is_stopped else None


class ProcessWorkers(Crew[WorkerProcess]):
    """Implements `Workers`, and with memory `Executor`.

    Started from a thread, they end when that thread ends: the kernel's parent-death signal counts threads.
    """

    def __init__(self, workers: list[WorkerProcess], wiring: Wiring, say: Say) -> None:
        super().__init__(workers, [Frames(with_timeout(end, TIMEOUT_SECONDS)) for end in wiring.plans], say)
        self._wiring = wiring

    @classmethod
    def start(cls, config: WorkerConfig, tensor_size: int, num_stages: int, say: Say) -> ProcessWorkers:
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
                start = Start(config, place, wiring.ends[place.index], os.getpid(), spin_seconds)
                started.append(WorkerProcess(place, _spawn(start), wiring.parents[place.index]))
                wiring.started(place.index)
        except BaseException:
            wiring.close()
            _end(started)
            raise
        workers = cls(started, wiring, say)
        try:
            workers.descriptions = workers._wait_for_all(WorkerDescription)
        except BaseException:
            workers.close()
            raise
        return workers

    @property
    def pids(self) -> list[int]:
        """See `Crew`."""
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        """See `Crew`."""
        self._wiring.close()
        _end(self._workers)

    def _lost(self) -> WorkerDied | None:
        # One that has ended is heard of by the end of its socket.
        stopped = [worker.place for worker in self._workers if worker.is_stopped]
        return WorkerDied(f"{stopped[0]} was stopped", by_others=True) if stopped else None

    def _culprit(self) -> WorkerDied | None:
        return next((fault for worker in self._workers if (fault := worker.fault) is not None), None)


def _spawn(start: Start) -> subprocess.Popen[bytes]:
    # Threads that spin while they wait would starve the other workers.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    return subprocess.Popen(
        [sys.executable, "-m", "orcinus.executor.worker_process", msgspec.json.encode(start).decode()],
        stdin=subprocess.DEVNULL,
        pass_fds=start.ends.descriptors,
        env=environment,
    )


def _end(workers: list[WorkerProcess]) -> None:
    """Those who haven't left in time are killed, those who stand still at once."""
    deadline = time.monotonic() + _LEAVE_SECONDS
    for worker in workers:
        if worker.is_stopped:
            worker.process.kill()
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
