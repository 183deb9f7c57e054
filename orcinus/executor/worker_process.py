"""A worker as a process: started by `ProcessWorkers`, told its place, and gone when its parent or a peer has gone."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import time
from contextlib import closing, suppress
from typing import NoReturn

import msgspec

from orcinus.core.plan import IterationPlan
from orcinus.errors import SystemFault
from orcinus.executor.frames import Frames
from orcinus.executor.messages import Done, FromWorker, GoesOn, Ready, Said, Start, WorkerFailed
from orcinus.executor.relay import Relay
from orcinus.parallel import Place
from orcinus.parallel.wiring import Links
from orcinus.worker.build import LoadedWorker, Memory, WorkerConfig
from orcinus.worker.worker import Worker

PR_SET_PDEATHSIG = 1
# Who looks for progress does so no more often.
SIGN_SECONDS = 0.5


class Parent:
    """The way to who started this worker, wherever he is."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._encode = msgspec.msgpack.Encoder().encode

    def tell(self, message: FromWorker) -> None:
        """Report.

        Raises:
            OSError: it has gone.
        """
        self._frames.send(self._encode(message))

    def close(self) -> None:
        """It hears the end."""
        self._frames.socket.close()

    def memory(self) -> Memory | None:
        """What it grants; None if it has gone or wants nothing more."""
        frame = self._frames.receive()
        return None if frame is None else msgspec.msgpack.decode(frame, type=Memory)


class Sign:
    """Called at every layer: tells the parent that the work goes on, if it hasn't been told just now."""

    def __init__(self, parent: Parent) -> None:
        self._parent = parent
        self._given_at = -SIGN_SECONDS

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._given_at >= SIGN_SECONDS:
            self._given_at = now
            self._parent.tell(GoesOn())


def main(arguments: list[str]) -> int:
    """`PARENT START`, the latter as JSON: load, report, run plans, leave."""
    live_with(int(arguments[0]))
    start = msgspec.json.decode(arguments[1], type=Start)
    parent = Parent(Frames(socket.socket(fileno=start.ends.parent)))
    try:
        work(start, parent)
    except SystemFault as fault:
        # Where the parent let everybody go amid a plan, there is nobody to tell, and nothing amiss.
        with suppress(OSError):
            parent.tell(WorkerFailed.of(fault))
        return 1
    except BrokenPipeError:
        return 1
    return 0


def work(start: Start, parent: Parent) -> None:
    """Be the worker that `start` describes, until there is nothing more to do.

    Raises:
        SystemFault: it can't go on.
    """
    ends = start.ends
    relay = Relay(
        socket.socket(fileno=ends.plans_in), socket.socket(fileno=ends.plans_out) if ends.plans_out >= 0 else None
    )
    with closing(Links.open(ends, start.place, start.spin_seconds)) as links:
        serve(start.config, start.place, links, relay, parent)


def serve(config: WorkerConfig, place: Place, links: Links, relay: Relay, parent: Parent) -> None:
    """Load, report, take memory, run plans.

    Raises:
        SystemFault: it can't go on.
    """

    def say(line: str) -> None:
        # All of them would say the same.
        if place.index == 0:
            parent.tell(Said(line))

    loaded = LoadedWorker.load(config, place, links, say)
    parent.tell(loaded.description)
    memory = parent.memory()
    if memory is None:
        return
    worker = loaded.with_memory(memory, on_progress=Sign(parent))
    parent.tell(Ready())
    _run(worker, relay, parent, answers=place.answers)


def _run(worker: Worker, relay: Relay, parent: Parent, *, answers: bool) -> None:
    """Plan by plan, until no more will come."""
    decode = msgspec.msgpack.Decoder(IterationPlan).decode
    while (frame := relay.next()) is not None:
        result = worker.execute(decode(frame))
        if answers:
            parent.tell(Done(result))


def live_with(parent_pid: int) -> None:
    """Die when it dies, even if this process stands still then; and leave interrupts at the terminal to it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # It may be gone already.
    if os.getppid() != parent_pid:
        sys.exit("the process that started this worker is gone")
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def leave(code: int) -> NoReturn:
    """At once: taking a torch process apart in order takes seconds, and the kernel needs no help."""
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
