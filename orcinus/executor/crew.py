"""Workers that run apart from the engine: plans go to the first stage, results come from the last, they end together.
How the death of one is looked for, and what it is put down to, its kind of worker knows."""

from __future__ import annotations

import select
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from typing import Generic, Self, TypeVar

import msgspec

from orcinus.core.kv.tiers import OnDisk
from orcinus.core.plan import IterationPlan, IterationResult
from orcinus.errors import SystemFault
from orcinus.executor import WorkerDied
from orcinus.executor.child import Deed
from orcinus.executor.frames import Frames
from orcinus.executor.idle import Idle
from orcinus.executor.messages import Done, FromWorker, GoesOn, Ready, Said, WorkerFailed
from orcinus.parallel import PeerLost, Place, is_cut
from orcinus.worker.build import Memory, OnProgress, Say, WorkerDescription

# How often to look after the others while nothing comes.
_LOOK_SECONDS = 0.5
# A worker's last words may come before the end of the one that it lost.
_CAUSE_SECONDS = 1.0
_WORDS_MS = 10

Report = TypeVar("Report")


class Reporter:
    """A worker, and the connection on which it reports."""

    def __init__(self, place: Place, reports: socket.socket) -> None:
        self.place = place
        self.frames = Frames(reports)
        # Why nothing more comes from it, if it is not an ordinary end.
        self._error: OSError | None = None
        self._decode = msgspec.msgpack.Decoder(FromWorker).decode

    def report(self) -> FromWorker | None:
        """What it says next; waits for it. None when it has gone."""
        frame = self._receive()
        return None if frame is None else self._decode(frame)

    def _receive(self) -> bytes | None:
        try:
            return self.frames.receive()
        except OSError as error:
            self._error = error
            return None

    def gone(self) -> WorkerDied:
        """For one that has gone without last words."""
        if self._error is not None and is_cut(self._error):
            return WorkerDied(f"{self.place} is cut off: {self._error}", by_others=True)
        return WorkerDied(f"{self.place} is gone; its output may say why")


Member = TypeVar("Member", bound=Reporter)


class Crew(ABC, Generic[Member]):
    """Implements `Workers`, and with memory `Executor`.

    Args:
        workers: by index.
        plans: to each rank of the first stage.
        on_progress: called while one of them works, `SIGN_SECONDS` apart or more.
    """

    def __init__(
        self, workers: Sequence[Member], plans: Sequence[Frames], say: Say, on_progress: OnProgress = lambda: None
    ) -> None:
        self._workers = list(workers)
        self._plans = list(plans)
        self._say = say
        self._on_progress = on_progress
        self._encode = msgspec.msgpack.Encoder().encode
        self._by_descriptor = {worker.frames.socket.fileno(): worker for worker in self._workers}
        self._poller = select.poll()
        for descriptor in self._by_descriptor:
            self._poller.register(descriptor, select.POLLIN)
        self.descriptions: list[WorkerDescription] = []
        # A disk is for one worker.
        self.on_disk = OnDisk()
        self._idle = Idle()

    @property
    @abstractmethod
    def pids(self) -> list[int]:
        """Of the workers, by index, each on its own host."""

    @abstractmethod
    def close(self) -> None:
        """Nothing more comes: they leave by themselves, or are made to."""

    @abstractmethod
    def _lost(self) -> WorkerDied | None:
        """Who is gone or stands still and has not been heard of. Doesn't wait."""

    @abstractmethod
    def _culprit(self) -> WorkerDied | None:
        """What was done to one of them, as far as is known yet. Doesn't wait."""

    def idle_shares(self) -> tuple[float, ...]:
        """Of each stage, the share of the time with plans under way in which it had none to work on."""
        return self._idle.shares(time.perf_counter())

    def with_memory(self, memory: Memory) -> Self:
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
                raise self._cause(WorkerDied(f"a worker takes no plans: {error}", by_others=is_cut(error))) from error

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
        self._refuse_lost()

    def _tell_all(self, message: msgspec.Struct) -> None:
        frame = self._encode(message)
        # Who has gone is noticed by what he doesn't answer.
        for worker in self._workers:
            with suppress(OSError):
                worker.frames.send(frame)

    def _wait_for_all(self, kind: type[Report]) -> list[Report]:
        """One message of a kind from each worker, by index."""
        found: dict[int, Report] = {}
        while len(found) < len(self._workers):
            worker, said = self._hear()
            if isinstance(said, kind):
                found[worker.place.index] = said
        return [found[index] for index in sorted(found)]

    def _hear(self) -> tuple[Member, FromWorker]:
        """The next thing that one of them says.

        Raises:
            WorkerDied, or what a worker failed of.
        """
        worker = self._talking()
        said = worker.report()
        if said is None:
            raise self._cause(worker.gone())
        if isinstance(said, WorkerFailed):
            raise self._cause(said.fault())
        if isinstance(said, Said):
            self._say(said.line)
        if isinstance(said, GoesOn):
            self._on_progress()
        return worker, said

    def _talking(self) -> Member:
        """Somebody with something to say; waits for one, and looks after the others meanwhile."""
        # Several messages may have come at once.
        for worker in self._workers:
            if worker.frames.has_message:
                return worker
        while not (ready := self._poller.poll(_LOOK_SECONDS * 1000)):
            self._refuse_lost()
        return self._by_descriptor[ready[0][0]]

    def _refuse_lost(self) -> None:
        if (lost := self._lost()) is not None:
            raise lost

    def _cause(self, fault: SystemFault) -> SystemFault:
        """What has become of one of them, if that explains `fault`: the others can only say that they miss it."""
        if not isinstance(fault, WorkerDied | PeerLost):
            return fault
        # The silence before may have cost most of the time that an engine has.
        self._on_progress()
        deadline = time.monotonic() + (0.0 if fault.by_others else _CAUSE_SECONDS)
        while (cause := self._culprit()) is None and time.monotonic() < deadline:
            if (cause := self._last_words()) is not None:
                break
        if cause is not None:
            return cause
        if isinstance(fault, WorkerDied):
            return fault
        return self._missing() or WorkerDied(str(fault), by_others=fault.by_others)

    def _last_words(self) -> WorkerDied | None:
        """What another one knows of a cause outside; waits a moment for it.

        When a link is cut, one side sees that nothing comes through, and the other that it has hung up.
        """
        talking = [worker for worker in self._workers if worker.frames.has_message]
        for worker in talking or [self._by_descriptor[ready] for ready, _ in self._poller.poll(_WORDS_MS)]:
            fault = self._fault_of(worker)
            if fault is not None and fault.by_others:
                return WorkerDied(str(fault), by_others=True)
        return None

    def _fault_of(self, worker: Member) -> SystemFault | None:
        said = worker.report()
        if said is None:
            self._poller.unregister(worker.frames.socket)
            return worker.gone()
        return said.fault() if isinstance(said, WorkerFailed) else None

    def _missing(self) -> WorkerDied | None:
        """Somebody else who has gone without a word, if that can be told."""
        return None


def died_of(place: Place, deed: Deed) -> WorkerDied:
    """What was done to a worker, as its end."""
    return WorkerDied(f"{place} {deed.words}", by_others=deed.by_others)
