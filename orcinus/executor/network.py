"""Workers on several hosts, seen from the engine: the same frames as over Unix sockets, on connections that both sides
have proven. Where they live, and how one is ended there, is somebody else's business (`Hosts`)."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from orcinus.errors import SystemFault
from orcinus.executor import WorkerDied
from orcinus.executor.crew import Crew, Reporter
from orcinus.executor.frames import Frames
from orcinus.executor.joining import JOIN_SECONDS, Greeting, Invitation, Team, to_driver
from orcinus.executor.messages import FromWorker, WorkerFailed
from orcinus.parallel import TIMEOUT_SECONDS, Place, places
from orcinus.parallel.credentials import Credentials, issue
from orcinus.parallel.handshake import DRIVER, Address, Channel, Hello, Listener, close_all
from orcinus.worker.build import OnProgress, Say, WorkerConfig, WorkerDescription, check_layout


class Hosts(Protocol):
    """Those who run the workers."""

    def lost(self) -> WorkerDied | None:
        """Who has ended, as far as they know. Doesn't wait."""
        ...

    def culprit(self) -> WorkerDied | None:
        """Likewise, but only one who was made to."""
        ...

    def close(self) -> None:
        """See that no worker is left."""
        ...


Launch = Callable[[list[bytes]], Hosts]
"""Starts a worker for each invitation, and returns at once."""


class RemoteWorker(Reporter):
    """One of them."""

    def __init__(self, place: Place, reports: ssl.SSLSocket) -> None:
        super().__init__(place, reports)
        self.pid = 0
        self.address: Address = ("", 0)
        self._has_failed = False

    def greeting(self) -> Greeting | None:
        """Its first words. None when it has gone."""
        frame = self._receive()
        return None if frame is None else msgspec.msgpack.decode(frame, type=Greeting)

    def report(self) -> FromWorker | None:
        """See `Reporter`."""
        said = super().report()
        self._has_failed |= isinstance(said, WorkerFailed)
        return said

    @property
    def is_gone(self) -> bool:
        """It hung up without last words. What it said before that is dropped."""
        while not (is_at_end := self.frames.is_at_end) and self.frames.has_message:
            self.report()
        return is_at_end and not self._has_failed


class NetworkWorkers(Crew[RemoteWorker]):
    """Implements `Workers`, and with memory `Executor`."""

    def __init__(
        self,
        hosts: Hosts,
        grid: Sequence[Place],
        ends: Mapping[Hello, ssl.SSLSocket],
        say: Say,
        on_progress: OnProgress,
    ) -> None:
        super().__init__(
            [RemoteWorker(place, ends[Hello(Channel.REPORTS, place.index, DRIVER)]) for place in grid],
            [Frames(ends[Hello(Channel.PLANS, place.index, DRIVER)]) for place in grid if place.is_first],
            say,
            on_progress,
        )
        for plans in self._plans:
            plans.socket.settimeout(TIMEOUT_SECONDS)
        self._hosts = hosts
        self._ends = list(ends.values())

    @classmethod
    def over(
        cls,
        config: WorkerConfig,
        tensor_size: int,
        num_stages: int,
        say: Say,
        on_progress: OnProgress = lambda: None,
        *,
        host: str,
        launch: Launch,
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
        credentials = issue([DRIVER, *(place.index for place in grid)])
        listener = Listener(host, credentials[DRIVER], DRIVER)
        with contextlib.ExitStack() as undo:
            undo.callback(listener.close)
            hosts = launch([_invitation(credentials[place.index], listener.address, place) for place in grid])
            undo.callback(hosts.close)
            expected = [hello for place in grid for hello in to_driver(place)]
            ends = listener.accept(expected, JOIN_SECONDS, lambda: _raise(hosts.lost()))
            undo.callback(close_all, list(ends.values()))
            workers = cls(hosts, grid, ends, say, on_progress)
            workers._introduce(config)
            workers.descriptions = workers._wait_for_all(WorkerDescription)
            undo.pop_all()
        return workers

    @property
    def pids(self) -> list[int]:
        """See `Crew`."""
        return [worker.pid for worker in self._workers]

    @property
    def hosts(self) -> list[str]:
        """Addresses of the workers' hosts, by index."""
        return [worker.address[0] for worker in self._workers]

    def close(self) -> None:
        """See `Crew`."""
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

    def _lost(self) -> WorkerDied | None:
        return self._hosts.lost()

    def _culprit(self) -> WorkerDied | None:
        return self._hosts.culprit()

    def _missing(self) -> WorkerDied | None:
        for worker in self._workers:
            # Read on, for why it ended.
            if worker.is_gone and worker.report() is None:
                return worker.gone()
        return None


def _raise(fault: SystemFault | None) -> None:
    if fault is not None:
        raise fault


def _invitation(own: Credentials, driver: Address, place: Place) -> bytes:
    return msgspec.msgpack.encode(Invitation(own, driver, place))
