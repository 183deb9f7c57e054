"""The engine as a process: an inbox, core, a worker, an outbox. Started by `EngineClient`, talks msgpack over ZMQ."""

from __future__ import annotations

import sys

import msgspec
import zmq

from orcinus.core.progress import Progress
from orcinus.engine.build import build_engine
from orcinus.engine.clock import MonotonicClock
from orcinus.engine.config import EngineConfig
from orcinus.engine.loop import Engine
from orcinus.engine.messages import Abort, Add, Failed, FromEngine, Outputs, Shutdown, ToEngine
from orcinus.errors import CheckpointError, SystemFault

EXIT_BAD_CONFIGURATION = 2
EXIT_BAD_CHECKPOINT = 3


class EngineProcess:
    """Carries messages to the engine and progress back, until told to stop."""

    def __init__(self, engine: Engine, socket: zmq.Socket[bytes]) -> None:
        self._engine = engine
        self._socket = socket
        self._decode = msgspec.msgpack.Decoder(ToEngine).decode
        self._outbox: list[Progress] = []
        self._is_stopping = False

    def run(self) -> None:
        """The loop: drain the inbox, carry out one decision, send what it gave."""
        is_idle = False
        while not self._is_stopping:
            self._drain(wait=is_idle)
            progress = self._engine.step()
            is_idle = progress is None
            self._outbox += progress or []
            self._send()

    def _drain(self, *, wait: bool) -> None:
        """Take every message that has come; with `wait`, at least one."""
        if wait:
            self._socket.poll()
        while not self._is_stopping:
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._take(self._decode(frame))

    def _take(self, message: ToEngine) -> None:
        match message:
            case Add(request=request):
                self._outbox += self._engine.add(request)
            case Abort(request_id=request_id, index=index, cause=cause):
                self._outbox += self._engine.abort(request_id, index, cause)
            case Shutdown():
                self._is_stopping = True

    def _send(self) -> None:
        if not self._outbox:
            return
        scheduler = self._engine.scheduler
        send(
            self._socket,
            Outputs(
                tuple(self._outbox),
                num_waiting=len(scheduler.waiting),
                num_running=scheduler.num_running,
                free_blocks=scheduler.pool.num_free,
                total_blocks=scheduler.pool.num_blocks,
                iterations=scheduler.num_iterations,
                preemptions=scheduler.journal.counts["Preempted"],
            ),
        )
        self._outbox = []


def send(socket: zmq.Socket[bytes], message: FromEngine) -> None:
    """One message as one frame."""
    socket.send(msgspec.msgpack.encode(message))


def main(arguments: list[str]) -> int:
    """`--config JSON --socket PATH`: build the engine, say so (or why not), serve until told to stop."""
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    config = msgspec.json.decode(options["--config"], type=EngineConfig)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.linger = 1000
    socket.connect(f"ipc://{options['--socket']}")
    try:
        return _serve(config, socket)
    finally:
        socket.close()
        context.term()


def _serve(config: EngineConfig, socket: zmq.Socket[bytes]) -> int:
    try:
        engine, description = build_engine(config, MonotonicClock(), _say)
    except SystemFault as fault:
        exit_code = EXIT_BAD_CHECKPOINT if isinstance(fault, CheckpointError) else EXIT_BAD_CONFIGURATION
        send(socket, Failed(str(fault), exit_code))
        return exit_code
    send(socket, description)
    try:
        EngineProcess(engine, socket).run()
    finally:
        engine.close()
    return 0


def _say(line: str) -> None:
    sys.stderr.write(f"engine: {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
