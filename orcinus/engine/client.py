"""The front end's side of the engine process: starts it, sends requests, hands out their progress. Without torch."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType

import msgspec
import zmq
import zmq.asyncio

from orcinus.core.progress import Progress
from orcinus.core.request import FinishReason, Request
from orcinus.engine import leash
from orcinus.engine.messages import Abort, Add, EngineDescription, FromEngine, Outputs, Shutdown, ToEngine
from orcinus.errors import CheckpointError, ConfigurationError, EngineDied, Overloaded, SystemFault

# Codes of the errors that end streams from this side. They are stable.
ENGINE_DIED = "engine_died"
SHUTTING_DOWN = "shutting_down"

# The exit codes that the engine gives a reason with; all others are EngineDied.
_FAULT_BY_EXIT_CODE: dict[int, type[SystemFault]] = {2: ConfigurationError, 3: CheckpointError}

logger = logging.getLogger(__name__)

_HIGH_WATER_MARK = 10_000
_MAX_UNSENT = 1_000
_MAX_MESSAGE_BYTES = 64 * 2**20
# How long the frames of a dead engine may take to arrive, and how long a living one may take to leave.
_LAST_WORDS = 0.1
_SHUTDOWN_GRACE = 5.0
_TERMINATE_GRACE = 3.0


class Stream:
    """The progress of one live request: iterate over it. Leaving its `with` block before the end aborts it.

    Each answer ends exactly once: what comes after its `finish_reason` is dropped here.

    Args:
        arrival: set whenever something has arrived or the stream has ended. Several streams may share one, so that
            one reader can wait for all of them.
    """

    def __init__(self, client: EngineClient, request: Request, arrival: asyncio.Event) -> None:
        self.request = request
        self.arrival = arrival
        self._client = client
        self._open = set(range(request.params.n))
        self._aborted: set[int] = set()
        self._arrived: deque[Progress] = deque()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Progress:
        """The next progress, in the order in which the engine sent it. Ends when all answers have."""
        while not self._arrived:
            if not self._open:
                raise StopAsyncIteration
            self.arrival.clear()
            await self.arrival.wait()
        return self._arrived.popleft()

    def arrived(self) -> list[Progress]:
        """Everything that is there already; never waits."""
        arrived = list(self._arrived)
        self._arrived.clear()
        return arrived

    def abort(self, index: int | None = None, cause: FinishReason = FinishReason.ABORT) -> None:
        """End one answer, or all of them, in the engine. Their last progress still comes, with `cause`."""
        meant = self._open - self._aborted if index is None else {index} & (self._open - self._aborted)
        if meant:
            self._aborted |= meant
            self._client.send_abort(Abort(self.request.request_id, index, cause))

    def close(self) -> None:
        """Nobody wants the rest: abort what is open, drop what has arrived."""
        self.abort()
        self._open.clear()
        self._arrived.clear()
        self.put(())

    def put(self, progress: Iterable[Progress]) -> None:
        """Called by the client with what the engine sent."""
        for one in progress:
            if one.index in self._open:
                self._arrived.append(one)
                if one.finish_reason is not None:
                    self._open.discard(one.index)
        if not self._open:
            self._client.forget(self)
        self.arrival.set()

    def fail(self, code: str, message: str) -> None:
        """End every open answer with an error."""
        self.put(
            Progress(
                self.request.request_id,
                index,
                finish_reason=FinishReason.ERROR,
                error_code=code,
                error_message=message,
            )
            for index in sorted(self._open)
        )

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class EngineClient:
    """Owns one engine process and the streams that it serves. Belongs to one event loop.

    Args:
        endpoint_dir: where to make the private (0700) directory of the socket; None takes the system's.
        command: argv of the engine process; `--socket PATH` is added, to which it connects a ZMQ PAIR socket.
    """

    def __init__(self, endpoint_dir: Path | None, command: list[str]) -> None:
        self._command = command
        self._parent_dir = endpoint_dir
        self._streams: dict[str, Stream] = {}
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
        self._unsent = 0
        self._link: _Link | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._exited = asyncio.Event()
        self._described: asyncio.Future[EngineDescription] | None = None
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._fault: SystemFault | None = None
        self.stats: Outputs | None = None
        """The state of the queues after the latest iteration, without its progress; None before the first."""

    @property
    def num_live(self) -> int:
        """Streams that haven't ended."""
        return len(self._streams)

    @property
    def alive(self) -> bool:
        """Whether the engine is ready and its process runs."""
        return self._fault is None and self._described is not None and self._described.done()

    async def start(self, on_progress: Callable[[str], None]) -> EngineDescription:
        """Start the process and wait until it is ready to serve.

        Raises:
            ConfigurationError, CheckpointError, EngineDied: it can't start; the message is the engine's own.
        """
        assert self._process is None, "an engine client starts once"
        self._described = asyncio.get_running_loop().create_future()
        self._link = _Link(self._parent_dir)
        self._process = _spawn([*self._command, "--socket", str(self._link.path)])
        on_progress(f"engine process {self._process.pid} started")
        threading.Thread(
            target=_wait_for_exit, args=(self._process, asyncio.get_running_loop(), self._exited), daemon=True
        ).start()
        reader = asyncio.create_task(self._read(self._link.socket, self._described))
        self._tasks = (reader, asyncio.create_task(self._watch(reader, self._described)))
        return await asyncio.shield(self._described)

    def submit(self, request: Request, arrival: asyncio.Event | None = None) -> Stream:
        """Send a request on its way; `arrival` as in `Stream`.

        Raises:
            EngineDied: there is no engine to serve it.
            Overloaded: the engine doesn't take messages any more.
        """
        if self._fault is not None or self._link is None:
            raise EngineDied(str(self._fault or "the engine has not been started"))
        if self._unsent >= _MAX_UNSENT:
            raise Overloaded("the engine takes no more requests at the moment", retry_after=1.0)
        assert request.request_id not in self._streams, "request ids are unique among live requests"
        stream = self._streams[request.request_id] = Stream(self, request, arrival or asyncio.Event())
        self._send(Add(request))
        return stream

    def send_abort(self, abort: Abort) -> None:
        """For `Stream`: tell the engine, if there is one."""
        if self._fault is None:
            self._send(abort)

    def forget(self, stream: Stream) -> None:
        """For `Stream`: it has ended."""
        self._streams.pop(stream.request.request_id, None)

    def end_streams(self, code: str, message: str) -> None:
        """End every live stream with an error, and the work on it."""
        for stream in list(self._streams.values()):
            stream.abort()
            stream.fail(code, message)

    async def close(self) -> None:
        """End all streams, then the engine: first asked, then told, then killed. Leaves nothing behind."""
        self.end_streams(SHUTTING_DOWN, "the server is shutting down")
        if self._process is not None:
            if self.alive:
                self._send(Shutdown())
                await self._exit_within(_SHUTDOWN_GRACE)
            self._signal(signal.SIGTERM)
            await self._exit_within(_TERMINATE_GRACE)
            self._signal(signal.SIGKILL)
            await self._exited.wait()
        self._fault = self._fault or EngineDied("the engine has been closed")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._link is not None:
            self._link.close()

    def _send(self, message: ToEngine) -> None:
        """Hand a message to ZMQ. What it doesn't take at once waits there, and is counted."""
        assert self._link is not None
        sent = asyncio.ensure_future(self._link.socket.send(self._encoder.encode(message)))
        if not sent.done():
            self._unsent += 1
            sent.add_done_callback(self._on_sent)

    def _on_sent(self, sent: asyncio.Future[zmq.MessageTracker | None]) -> None:
        self._unsent -= 1
        # A send that was still waiting when the socket closed is of no more interest.
        if not sent.cancelled():
            sent.exception()

    async def _read(self, socket: zmq.asyncio.Socket, described: asyncio.Future[EngineDescription]) -> None:
        """Hand out the frames that the engine sends, for ever.

        Raises:
            msgspec.DecodeError: a frame that no engine of ours sends.
        """
        while True:
            message = self._decoder.decode(await socket.recv())
            if isinstance(message, Outputs):
                self._dispatch(message)
            elif isinstance(message, EngineDescription):
                described.set_result(message)
            else:
                self._fault = _FAULT_BY_EXIT_CODE.get(message.exit_code, EngineDied)(message.message)

    async def _watch(self, reader: asyncio.Task[None], described: asyncio.Future[EngineDescription]) -> None:
        """Wait for the end of the process and of its last frames; then tell whoever waits for it."""
        exited = asyncio.create_task(self._exited.wait())
        await asyncio.wait({reader, exited}, return_when=asyncio.FIRST_COMPLETED)
        if reader.done():
            # Nobody would hand out progress any more: better no engine than one that nobody hears.
            logger.error("the engine's frames can't be read; ending it", exc_info=reader.exception())
            self._signal(signal.SIGKILL)
            await exited
        await asyncio.wait({reader}, timeout=_LAST_WORDS)
        reader.cancel()
        assert self._process is not None
        reason = _exit_reason(self._process.returncode)
        self._fault = self._fault or EngineDied(f"the engine process {reason}; its output says why")
        if not described.done():
            described.set_exception(self._fault)
            # Nobody may be waiting any more: asyncio would complain about an error that nobody saw.
            described.exception()
        for stream in list(self._streams.values()):
            stream.fail(ENGINE_DIED, "the engine that served this request ended")

    def _dispatch(self, outputs: Outputs) -> None:
        self.stats = msgspec.structs.replace(outputs, progress=())
        for progress in outputs.progress:
            stream = self._streams.get(progress.request_id)
            if stream is not None:
                stream.put((progress,))

    async def _exit_within(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._exited.wait(), seconds)

    def _signal(self, number: signal.Signals) -> None:
        """To the engine and everything it started: they are one process group."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


class _Link:
    """A PAIR socket in a directory that nobody else can enter."""

    def __init__(self, parent_dir: Path | None) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="orcinus-", dir=parent_dir))
        self.path = self.directory / "engine"
        self._context = zmq.asyncio.Context()
        self.socket = self._context.socket(zmq.PAIR)
        for option, value in (
            (zmq.SNDHWM, _HIGH_WATER_MARK),
            (zmq.RCVHWM, _HIGH_WATER_MARK),
            (zmq.LINGER, 0),
            (zmq.MAXMSGSIZE, _MAX_MESSAGE_BYTES),
        ):
            self.socket.setsockopt(option, value)
        try:
            self.socket.bind(f"ipc://{self.path}")
        except zmq.ZMQError as error:
            self.close()
            raise ConfigurationError(f"no socket can be made in {self.directory}: {error}") from error

    def close(self) -> None:
        """Close the socket and remove the directory."""
        self._context.destroy(linger=0)
        shutil.rmtree(self.directory, ignore_errors=True)


def _spawn(command: list[str]) -> subprocess.Popen[bytes]:
    """A process group of its own, so that the terminal's Ctrl-C reaches the server only; dies with this process."""
    leashed = [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), *command]
    return subprocess.Popen(leashed, stdin=subprocess.DEVNULL, start_new_session=True)


def _wait_for_exit(process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop, exited: asyncio.Event) -> None:
    """In a thread of its own: `waitpid` works on every system, whatever the event loop does with SIGCHLD."""
    process.wait()
    # A closed loop means that nobody waits for the engine any more.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(exited.set)


def _exit_reason(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"exited with code {code}"
