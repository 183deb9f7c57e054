"""The workers of a model as threads of the test's process, over the sockets and the shared memory of processes.

A process that imports torch takes seconds to start; what workers do is the same either way.
"""

from __future__ import annotations

import socket
import threading

import msgspec

from orcinus.core.clock import VirtualClock
from orcinus.core.kv.tiers import OnDisk
from orcinus.core.plan import IterationPlan, IterationResult
from orcinus.engine.build import engine_over, worker_config
from orcinus.engine.config import EngineConfig
from orcinus.engine.loop import Engine
from orcinus.errors import SystemFault
from orcinus.executor.frames import Frames
from orcinus.executor.messages import Done, FromWorker, Ready, Start, WorkerFailed
from orcinus.executor.worker_process import Parent, work
from orcinus.parallel import places
from orcinus.parallel.wiring import Ends, Wiring
from orcinus.worker.build import Memory, WorkerDescription


class ThreadWorkers:
    """Implements `Workers` and `Executor`. `frames` are the plans as they went over the wire, if kept."""

    def __init__(self, config: EngineConfig) -> None:
        self._wiring = Wiring.of(config.tensor_parallel_size, config.pipeline_parallel_size)
        for end in self._wiring.parents:
            end.settimeout(60)
        self._reports = [Frames(end) for end in self._wiring.parents]
        self._plans = [Frames(end) for end in self._wiring.plans]
        self._threads = []
        self.frames: list[bytes] = []
        self.on_disk = OnDisk()
        for place in places(config.tensor_parallel_size, config.pipeline_parallel_size):
            start = Start(worker_config(config), place, self._wiring.ends[place.index], 0.0)
            # Its own from here on.
            self._wiring.ends[place.index] = Ends()
            self._threads.append(threading.Thread(target=run_worker, args=(start,), daemon=True))
            self._threads[-1].start()
        self._answering = self._reports[-config.tensor_parallel_size]
        self.descriptions = [expect(frames, WorkerDescription) for frames in self._reports]

    def with_memory(self, memory: Memory) -> ThreadWorkers:
        for frames in self._reports:
            frames.send(msgspec.msgpack.encode(memory))
        for frames in self._reports:
            expect(frames, Ready)
        return self

    def submit(self, plan: IterationPlan) -> None:
        frame = msgspec.msgpack.encode(plan)
        self.frames.append(frame)
        for rank in self._plans:
            rank.send(frame)

    def collect(self) -> IterationResult:
        return expect(self._answering, Done).result

    def close(self) -> None:
        for end in self._wiring.plans:
            end.close()
        # One that waits for its memory hears that none will come.
        for end in self._wiring.parents:
            end.shutdown(socket.SHUT_WR)
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive(), "a worker doesn't leave"
        self._wiring.close()


def run_worker(start: Start) -> None:
    parent = Parent(Frames(socket.socket(fileno=start.ends.parent)))
    try:
        work(start, parent)
    except SystemFault as fault:
        parent.tell(WorkerFailed.of(fault))
    finally:
        parent.close()


def expect(frames: Frames, kind: type) -> FromWorker:
    """The next message of a kind; anything said for people is passed over."""
    while True:
        frame = frames.receive()
        assert frame is not None, "a worker has gone"
        said = msgspec.msgpack.decode(frame, type=FromWorker)
        if isinstance(said, WorkerFailed):
            raise said.fault()
        if isinstance(said, kind):
            return said


def engine_of_threads(config: EngineConfig) -> Engine:
    """An engine over workers that are threads."""
    return engine_over(ThreadWorkers(config), config, VirtualClock())[0]
