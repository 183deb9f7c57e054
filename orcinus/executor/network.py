"""Workers on several hosts, seen from the engine: the same frames as over Unix sockets, on connections that both sides
have proven. Where they live, and how one is ended there, is somebody else's business (`Hosts`)."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

import msgspec

from orcinus.core.kv.tiers import OnDisk
from orcinus.core.plan import IterationPlan, IterationResult
from orcinus.errors import SystemFault
from orcinus.executor import WorkerDied
from orcinus.executor.frames import Frames
from orcinus.executor.idle import Idle
from orcinus.executor.joining import JOIN_SECONDS, Greeting, Invitation, Team, to_driver
from orcinus.executor.messages import Done, FromWorker, Ready, Said, WorkerFailed
from orcinus.parallel import TIMEOUT_SECONDS, PeerLost, Place, places
from orcinus.parallel.handshake import DRIVER, Address, Channel, Hello, Listener, close_all, make_secret
from orcinus.parallel.shared import with_timeout
from orcinus.worker.build import Memory, Say, WorkerConfig, WorkerDescription, check_layout

# How often to ask the hosts while nothing comes.
_LOOK_SECONDS = 0.5
# A worker's last words may come before the end of the one that it lost.
_CAUSE_SECONDS = 1.0

Report = TypeVar("Report")


class Hosts(Protocol):
    """Those who run the workers."""

    def lost(self) -> WorkerDied | None:
        """Who has ended, as far as they know. Doesn't wait."""
        ...

    def close(self) -> None:
        """See that no worker is left."""
        ...


Launch = Callable[[list[bytes]], Hosts]
"""Starts a worker for each invitation, and returns at once."""


class RemoteWorker:
    """One of them, and the connection on which it reports."""

    def __init__(self, place: Place, reports: socket.socket) -> None:
        self.place = place
        self.frames = Frames(reports)
        self.pid = 0
        self.address: Address = ("", 0)
        self.has_failed = False
        self._decode = msgspec.msgpack.Decoder(FromWorker).decode

    def greeting(self) -> Greeting | None:
        """Its first words. None when it has gone."""
        frame = self._receive()
        return None if frame is None else msgspec.msgpack.decode(frame, type=Greeting)

    def report(self) -> FromWorker | None:
        """What it says next; waits for it. None when it has gone."""
        frame = self._receive()
        return None if frame is None else self._decode(frame)

    @property
    def is_gone(self) -> bool:
        """It hung up without last words."""
        if self.has_failed or self.frames.has_message:
            return False
        try:
            return not self.frames.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _receive(self) -> bytes | None:
        try:
            return self.frames.receive()
        except OSError:
            return None


class NetworkWorkers:
    """Implements `Workers`, and with memory `Executor`."""

    def __init__(self, hosts: Hosts, grid: Sequence[Place], ends: Mapping[Hello, socket.socket], say: Say) -> None:
        self._hosts = hosts
        self._ends = list(ends.values())
        self._say = say
        self._workers = [RemoteWorker(place, ends[Hello(Channel.REPORTS, place.index, DRIVER)]) for place in grid]
        self._plans = [
            Frames(with_timeout(ends[Hello(Channel.PLANS, place.index, DRIVER)], TIMEOUT_SECONDS))
            for place in grid
            if place.is_first
        ]
        self._encode = msgspec.msgpack.Encoder().encode
        self._by_descriptor = {worker.frames.socket.fileno(): worker for worker in self._workers}
        self._poller = select.poll()
        for descriptor in self._by_descriptor:
            self._poller.register(descriptor, select.POLLIN)
        self.descriptions: list[WorkerDescription] = []
        # A disk is for one worker.
        self.on_disk = OnDisk()
        self._idle = Idle()

    @classmethod
    def over(
        cls, config: WorkerConfig, tensor_size: int, num_stages: int, say: Say, *, host: str, launch: Launch
    ) -> NetworkWorkers:
        """Have T x P workers launched, and wait until each has loaded its part.

        Args:
            host: this machine's address between the workers.

        Raises:
            ConfigurationError, CheckpointError, BatchVarianceError: what one of them finds wrong.
            WorkerDied, PeerLost: one ended without a word, or never came.
        """
        check_layout(config, tensor_size, num_stages)
        grid = places(tensor_size, num_stages)
        secret = make_secret()
        listener = Listener(host, secret, DRIVER)
        with contextlib.ExitStack() as undo:
            undo.callback(listener.close)
            hosts = launch([_invitation(secret, listener.address, place) for place in grid])
            undo.callback(hosts.close)
            expected = [hello for place in grid for hello in to_driver(place)]
            ends = listener.accept(expected, JOIN_SECONDS, lambda: _raise(hosts.lost()))
            undo.callback(close_all, list(ends.values()))
            workers = cls(hosts, grid, ends, say)
            workers._introduce(config)
            workers.descriptions = workers._wait_for_all(WorkerDescription)
            undo.pop_all()
        return workers

    @property
    def pids(self) -> list[int]:
        """Of the workers, by index, each on its own host."""
        return [worker.pid for worker in self._workers]

    @property
    def hosts(self) -> list[str]:
        """Addresses of the workers' hosts, by index."""
        return [worker.address[0] for worker in self._workers]

    def idle_shares(self) -> tuple[float, ...]:
        """Of each stage, the share of the time with plans under way in which it had none to work on."""
        return self._idle.shares(time.perf_counter())

    def with_memory(self, memory: Memory) -> NetworkWorkers:
        """See `Workers`."""
        self._tell_all(memory)
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
            WorkerDied: one is gone.
        """
        if self._poller.poll(0):
            self._hear()
        _raise(self._hosts.lost())

    def close(self) -> None:
        """Nothing more comes: they leave by themselves, or are made to."""
        close_all(self._ends)
        self._hosts.close()

    def _introduce(self, config: WorkerConfig) -> None:
        """Everybody to everybody else."""
        for worker in self._workers:
            greeting = worker.greeting()
            if greeting is None:
                raise WorkerDied(f"{worker.place} is gone before it was one")
            if isinstance(greeting, WorkerFailed):
                raise greeting.fault()
            worker.pid, worker.address = greeting.pid, greeting.address
        self._tell_all(Team(config, [worker.address for worker in self._workers]))

    def _tell_all(self, message: Team | Memory) -> None:
        # Who has gone is noticed by what he doesn't answer.
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.frames.send(self._encode(message))

    def _wait_for_all(self, kind: type[Report]) -> list[Report]:
        """One message of a kind from each worker, by index."""
        found: dict[int, Report] = {}
        while len(found) < len(self._workers):
            worker, said = self._hear()
            if isinstance(said, kind):
                found[worker.place.index] = said
        return [found[index] for index in sorted(found)]

    def _hear(self) -> tuple[RemoteWorker, FromWorker]:
        """The next thing that one of them says.

        Raises:
            WorkerDied, or what a worker failed of.
        """
        worker = self._talking()
        said = worker.report()
        if said is None:
            raise self._cause(_gone(worker.place))
        if isinstance(said, WorkerFailed):
            worker.has_failed = True
            raise self._cause(said.fault())
        if isinstance(said, Said):
            self._say(said.line)
        return worker, said

    def _talking(self) -> RemoteWorker:
        """Somebody with something to say; waits for one, and asks the hosts meanwhile."""
        for worker in self._workers:
            if worker.frames.has_message:
                return worker
        while not (ready := self._poller.poll(_LOOK_SECONDS * 1000)):
            _raise(self._hosts.lost())
        return self._by_descriptor[ready[0][0]]

    def _cause(self, fault: SystemFault) -> SystemFault:
        """Who is gone, if that explains `fault`: the others can only say that they miss him."""
        if not isinstance(fault, PeerLost):
            return fault
        deadline = time.monotonic() + _CAUSE_SECONDS
        while time.monotonic() < deadline:
            for worker in self._workers:
                if worker.is_gone:
                    return _gone(worker.place)
            time.sleep(0.01)
        return WorkerDied(str(fault))


def _gone(place: Place) -> WorkerDied:
    return WorkerDied(f"{place} is gone; its output on its host may say why")


def _raise(fault: SystemFault | None) -> None:
    if fault is not None:
        raise fault


def _invitation(secret: bytes, driver: Address, place: Place) -> bytes:
    return msgspec.msgpack.encode(Invitation(secret, driver, place))
