"""Workers as processes on this host: plans to the first stage over Unix sockets, results from the last.

They live and die together. One that dies is noticed at once by the end of its socket, one that stands still by a look
at its state; either ends the executor, and the rest of them with it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TypeVar

import msgspec

from orcinus.core.kv.tiers import OnDisk
from orcinus.core.plan import IterationPlan, IterationResult
from orcinus.errors import SystemFault
from orcinus.executor import WorkerDied
from orcinus.executor.frames import Frames
from orcinus.executor.idle import Idle
from orcinus.executor.messages import Done, FromWorker, Ready, Said, Start, WorkerFailed
from orcinus.parallel import TIMEOUT_SECONDS, PeerLost, Place, places
from orcinus.parallel.shared import SPIN_SECONDS, with_timeout
from orcinus.parallel.wiring import Wiring
from orcinus.worker.build import Memory, Say, WorkerConfig, WorkerDescription, check_layout

# How often to look whether somebody stands still while nothing comes.
_LOOK_SECONDS = 0.5
# A worker's last words may come before those of the one that it lost.
_CAUSE_SECONDS = 0.5
_LEAVE_SECONDS = 3.0
_FOREIGN_SIGNALS = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


Report = TypeVar("Report")


class WorkerProcess:
    """One of them, and the socket on which it reports."""

    def __init__(self, place: Place, process: subprocess.Popen[bytes], frames: Frames) -> None:
        self.place = place
        self.process = process
        self.frames = frames
        self._decode = msgspec.msgpack.Decoder(FromWorker).decode

    def report(self) -> FromWorker | None:
        """What it says next; waits for it. None when it has gone."""
        try:
            frame = self.frames.receive()
        except OSError:
            return None
        return None if frame is None else self._decode(frame)

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


class ProcessWorkers:
    """Implements `Workers`, and with memory `Executor`.

    Started from a thread, they end when that thread ends: the kernel's parent-death signal counts threads.
    """

    def __init__(self, workers: list[WorkerProcess], wiring: Wiring, say: Say) -> None:
        self._workers = workers
        self._wiring = wiring
        self._say = say
        self._plans = [Frames(with_timeout(end, TIMEOUT_SECONDS)) for end in wiring.plans]
        self._encode = msgspec.msgpack.Encoder().encode
        self._by_descriptor = {worker.frames.socket.fileno(): worker for worker in workers}
        self._poller = select.poll()
        for descriptor in self._by_descriptor:
            self._poller.register(descriptor, select.POLLIN)
        self._answering = next(worker for worker in workers if worker.place.answers)
        self.descriptions: list[WorkerDescription] = []
        # A disk is for one worker.
        self.on_disk = OnDisk()
        self._idle = Idle()

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
                started.append(WorkerProcess(place, _spawn(start), Frames(wiring.parents[place.index])))
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
        """Of the workers, by index."""
        return [worker.process.pid for worker in self._workers]

    def idle_shares(self) -> tuple[float, ...]:
        """Of each stage, the share of the time with plans under way in which it had none to work on."""
        return self._idle.shares(time.perf_counter())

    def with_memory(self, memory: Memory) -> ProcessWorkers:
        """See `Workers`."""
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.frames.send(self._encode(memory))
        self._wait_for_all(Ready)
        return self

    def submit(self, plan: IterationPlan) -> None:
        """Send the plan to each rank of the first stage."""
        self._idle.submitted(time.perf_counter())
        frame = self._encode(plan)
        for rank in self._plans:
            try:
                rank.send(frame)
            except OSError as error:
                raise self._cause(WorkerDied(f"a worker takes no plans: {error.strerror}")) from error

    def collect(self) -> IterationResult:
        """What the last stage answers. Anything else that a worker says is its end, or another's."""
        while True:
            _, said = self._hear()
            if isinstance(said, Done):
                self._idle.collected(said.result.stage_times, time.perf_counter())
                return said.result

    def check(self) -> None:
        """Whether all of them live, for an engine that has nothing to run. Doesn't wait.

        Raises:
            WorkerDied: one is gone, or stands still.
        """
        if self._poller.poll(0):
            self._hear()
        self._refuse_stopped()

    def close(self) -> None:
        """Nothing more comes: they leave by themselves, or are made to."""
        self._wiring.close()
        _end(self._workers)

    def _wait_for_all(self, kind: type[Report]) -> list[Report]:
        """One message of a kind from each worker, by index."""
        found: dict[int, Report] = {}
        while len(found) < len(self._workers):
            worker, said = self._hear()
            if isinstance(said, kind):
                found[worker.place.index] = said
        return [found[index] for index in sorted(found)]

    def _hear(self) -> tuple[WorkerProcess, FromWorker]:
        """The next thing that one of them says.

        Raises:
            WorkerDied, or what a worker failed of.
        """
        worker = self._talking()
        said = worker.report()
        if said is None:
            raise self._cause(WorkerDied(f"{worker.place} is gone; its output may say why"))
        if isinstance(said, WorkerFailed):
            raise self._cause(said.fault())
        if isinstance(said, Said):
            self._say(said.line)
        return worker, said

    def _talking(self) -> WorkerProcess:
        """Somebody with something to say; waits for one, and looks after the others meanwhile."""
        # Several messages may have come at once.
        for worker in self._workers:
            if worker.frames.has_message:
                return worker
        while not (ready := self._poller.poll(_LOOK_SECONDS * 1000)):
            self._refuse_stopped()
        return self._by_descriptor[ready[0][0]]

    def _refuse_stopped(self) -> None:
        for worker in self._workers:
            if worker.is_stopped:
                raise WorkerDied(f"{worker.place} was stopped", by_others=True)

    def _cause(self, fault: SystemFault) -> SystemFault:
        """What was done to one of them, if that explains `fault`: the others can only say that they miss it."""
        if not isinstance(fault, WorkerDied | PeerLost):
            return fault
        deadline = time.monotonic() + _CAUSE_SECONDS
        while time.monotonic() < deadline:
            for worker in self._workers:
                if (cause := worker.fault) is not None:
                    return cause
            time.sleep(0.01)
        return fault if isinstance(fault, WorkerDied) else WorkerDied(str(fault))


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
