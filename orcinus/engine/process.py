"""The engine as a process: an inbox, core, a worker, an outbox for each front end. Started by `EngineSupervisor`."""

from __future__ import annotations

import gc
import sys
import time
from collections import defaultdict
from pathlib import Path

import msgspec
import zmq

from orcinus.core.explain import explain
from orcinus.core.progress import Progress
from orcinus.core.quarantine import Quarantine, Suspects
from orcinus.core.request import FinishReason, Request
from orcinus.engine.beat import Beat
from orcinus.engine.build import build_engine
from orcinus.engine.channel import Channel
from orcinus.engine.clock import MonotonicClock
from orcinus.engine.config import EngineConfig
from orcinus.engine.loop import Engine
from orcinus.engine.messages import (
    Abort,
    Add,
    Explain,
    Explained,
    Failed,
    FrontGone,
    Hello,
    OrderToEngine,
    Outputs,
    Ping,
    ReportFromEngine,
    Shutdown,
    ToEngine,
    Watch,
    exit_code_of,
)
from orcinus.engine.timeline import Observer
from orcinus.errors import InvalidRequest, SystemFault
from orcinus.executor import WorkerDied
from orcinus.executor.crew import Crew

# How long suspects are waited for after an engine's start: their front ends are told of it at once.
ABSENT_SECONDS = 1.0
# Who looks on is told of the latest iterations no sooner than this after the last time.
FRAME_SECONDS = 0.2
# The supervisor takes it for an end that somebody else wanted, and holds it against no request.
FOREIGN_END = 0
# With nothing to do, workers are looked after so often.
_LOOK_MS = 500

Control = Channel[ReportFromEngine, OrderToEngine]


class EngineProcess:
    """Carries messages to the engine and progress back, until told to stop or left alone."""

    def __init__(
        self, engine: Engine, socket: zmq.Socket[bytes], control: Control, beat: Beat, suspects: Suspects
    ) -> None:
        self._engine = engine
        self._socket = socket
        self._control = control
        self._beat = beat
        # Workers that are processes can die while there is nothing to ask them.
        self._workers = engine.executor if isinstance(engine.executor, Crew) else None
        self._quarantine = Quarantine(suspects)
        self._started_at = time.monotonic()
        self._decode = msgspec.msgpack.Decoder(ToEngine).decode
        self._encode = msgspec.msgpack.Encoder().encode
        self._front_by_request: dict[str, bytes] = {}
        self._open_answers: dict[str, int] = {}
        self._outbox: defaultdict[bytes, list[Progress]] = defaultdict(list)
        self._members_version = -1
        self._is_stopping = False
        self._watchers: set[bytes] = set()
        self._observer = Observer(engine.scheduler)
        self._framed_at = 0.0

    def run(self) -> None:
        """The loop: drain the inbox, carry out one decision, send what it gave."""
        is_idle = False
        while not self._is_stopping:
            self._drain(wait=is_idle)
            self._release_suspects()
            self._note_members()
            started_at = time.monotonic()
            progress = self._engine.step()
            ended_at = time.monotonic()
            self._beat.slow_down(ended_at - started_at)
            self._beat.beat()
            is_idle = progress is None
            if self._watchers:
                self._observer.note(progress or (), started_at, ended_at)
                self._show(ended_at, is_idle=is_idle)
            self._put(progress or [])
            self._send()

    # ---- in

    def _drain(self, *, wait: bool) -> None:
        """Take every message that has come; with `wait`, until there is at least one."""
        if wait:
            poller = zmq.Poller()
            poller.register(self._socket, zmq.POLLIN)
            poller.register(self._control.socket, zmq.POLLIN)
            # Suspects who don't come must not hold up the others for good.
            look = None if self._workers is None else _LOOK_MS
            poller.poll(100 if self._quarantine.is_active else look)
            if self._workers is not None:
                self._workers.check()
        self._obey()
        while not self._is_stopping:
            try:
                front, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            message = self._read(frames)
            if message is not None:
                self._take(front, message)

    def _read(self, frames: list[bytes]) -> ToEngine | None:
        """None for what no front end of ours would send: it must not cost the others anything."""
        try:
            (frame,) = frames
            message: ToEngine = self._decode(frame)
        except (msgspec.MsgspecError, ValueError, InvalidRequest) as error:
            _say(f"a message that can't be read was dropped: {error}")
            return None
        return message

    def _obey(self) -> None:
        """The supervisor's orders; without a supervisor there is nobody to serve for."""
        try:
            while (order := self._control.take()) is not None:
                match order:
                    case Shutdown():
                        self._is_stopping = True
                    case FrontGone(identity=identity):
                        self._forget_front(identity)
                    case Ping():
                        self._beat.beat()
        except EOFError:
            self._is_stopping = True

    def _take(self, front: bytes, message: ToEngine) -> None:
        match message:
            case Add(request=request):
                self._front_by_request[request.request_id] = front
                self._open_answers[request.request_id] = request.params.n
                self._begin(request)
            case Abort(request_id=request_id, index=index, cause=cause):
                self._abort(request_id, index, cause)
            case Hello() | Ping():
                self._outbox[front] += []
            case Watch(on=on):
                self._watch(front, on)
            case Explain():
                self._explain(front, message)

    def _begin(self, request: Request) -> None:
        if self._quarantine.refuses(request.request_id):
            self._put(_refusal(request))
        elif self._quarantine.is_active:
            self._quarantine.hold(request)
        else:
            self._put(self._engine.add(request))

    def _abort(self, request_id: str, index: int | None, cause: FinishReason) -> None:
        if self._quarantine.is_active and index is None and self._quarantine.drop(request_id):
            count = self._open_answers.get(request_id, 0)
            self._put([Progress(request_id, each, finish_reason=cause) for each in range(count)])
        else:
            self._put(self._engine.abort(request_id, index, cause))

    def _watch(self, front: bytes, on: bool) -> None:
        if on and not self._watchers:
            self._observer = Observer(self._engine.scheduler)
        (self._watchers.add if on else self._watchers.discard)(front)

    def _explain(self, front: bytes, asked: Explain) -> None:
        """Between two iterations; reading a full journal takes some milliseconds."""
        events, now = self._engine.scheduler.journal, time.monotonic()
        lives = (explain(events, request_id, now) for request_id in asked.request_ids)
        answer = Explained(asked.ticket, tuple(life for life in lives if life is not None))
        self._socket.send_multipart((front, self._encode(answer)))

    def _forget_front(self, identity: bytes) -> None:
        self._watchers.discard(identity)
        for request_id in [key for key, front in self._front_by_request.items() if front == identity]:
            self._abort(request_id, None, FinishReason.ABORT)
        self._outbox.pop(identity, None)

    def _release_suspects(self) -> None:
        if not self._quarantine.is_active:
            return
        if time.monotonic() - self._started_at > ABSENT_SECONDS:
            running = frozenset(group.request.request_id for group in self._engine.scheduler.groups())
            self._quarantine.give_up_absent(running)
        for request in self._quarantine.due():
            self._put(self._engine.add(request))

    def _note_members(self) -> None:
        """Write down who runs, whenever that changes: it is read if this process dies in the next iteration."""
        counts = self._engine.scheduler.journal.counts
        version = counts["Added"] + counts["Finished"]
        if version != self._members_version:
            self._members_version = version
            self._beat.running([group.request.request_id for group in self._engine.scheduler.groups()])

    # ---- out

    def _put(self, several: list[Progress]) -> None:
        """Sort progress by front end; forget requests whose last answer has ended."""
        for progress in several:
            request_id = progress.request_id
            self._quarantine.settle(request_id)
            front = self._front_by_request.get(request_id)
            if front is None:
                continue
            self._outbox[front].append(progress)
            if progress.finish_reason is not None:
                self._open_answers[request_id] -= 1
                if self._open_answers[request_id] == 0:
                    del self._open_answers[request_id], self._front_by_request[request_id]

    def _send(self) -> None:
        """One frame for each front end that has something to read."""
        if not self._outbox:
            return
        scheduler = self._engine.scheduler
        for front, progress in self._outbox.items():
            outputs = Outputs(
                tuple(progress),
                num_waiting=len(scheduler.waiting),
                num_running=scheduler.num_running,
                free_blocks=scheduler.pool.num_free,
                total_blocks=scheduler.pool.num_blocks,
                iterations=scheduler.num_iterations,
                preemptions=scheduler.journal.counts["Preempted"],
                cached_blocks=scheduler.pool.num_cached,
                stage_idle=() if self._workers is None else self._workers.idle_shares(),
                host_blocks=len(scheduler.tiers.host),
                disk_blocks=len(scheduler.tiers.disk),
                spilled_blocks=scheduler.tiers.num_spilled,
                stored_blocks=scheduler.tiers.num_stored,
                restored_blocks=scheduler.tiers.num_restored,
                lost_blocks=scheduler.tiers.num_lost,
            )
            self._socket.send_multipart((front, self._encode(outputs)))
        self._outbox.clear()

    def _show(self, now: float, *, is_idle: bool) -> None:
        """To each front end that watches; before a wait also what is not due yet."""
        if is_idle or now - self._framed_at >= FRAME_SECONDS:
            self._framed_at = now
            frame = self._encode(self._observer.frame())
            for front in self._watchers:
                self._socket.send_multipart((front, frame))


def _refusal(request: Request) -> list[Progress]:
    return [
        Progress(
            request.request_id,
            index,
            finish_reason=FinishReason.ERROR,
            error_code="request_crashes_engine",
            error_message="this request ended the engine twice while it ran alone, so it is not tried again",
        )
        for index in range(request.params.n)
    ]


def main(arguments: list[str]) -> int:
    """`--config JSON --socket PATH --beat PATH --control FD [--suspects JSON]`: build, report, serve, leave."""
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    config = msgspec.json.decode(options["--config"], type=EngineConfig)
    suspects = msgspec.json.decode(options.get("--suspects", "{}"), type=Suspects)
    control: Control = Channel.inherited(int(options["--control"]), msgspec.msgpack.Decoder(OrderToEngine))
    beat = Beat(Path(options["--beat"]))
    try:
        engine, description = build_engine(config, MonotonicClock(), _say, beat.beat)
    except SystemFault as fault:
        control.send(Failed(str(fault), exit_code_of(fault)))
        return FOREIGN_END if fault.by_others else exit_code_of(fault)
    # What is loaded stays: to look through it all would hold up an iteration for 95 ms now and then.
    gc.collect()
    gc.freeze()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        socket = _listen(context, Path(options["--socket"]))
        control.send(description)
        EngineProcess(engine, socket, control, beat, suspects).run()
    except WorkerDied as fault:
        _say(str(fault))
        # To let the others go takes seconds, of which the silence before may have left few.
        beat.beat()
        return FOREIGN_END if fault.by_others else 1
    finally:
        engine.close()
        context.destroy(linger=1000)
    return 0


def _listen(context: zmq.Context[zmq.Socket[bytes]], path: Path) -> zmq.Socket[bytes]:
    """The socket of all front ends. Its queues have no bound of their own: a frame dropped would be tokens lost, and
    what can wait there is bounded by the answers admitted."""
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, 64 * 2**20)
    socket.bind(f"ipc://{path}")
    return socket


def _say(line: str) -> None:
    sys.stderr.write(f"engine: {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
