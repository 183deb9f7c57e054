"""The front end's side of the engine: sends requests, hands out their progress, resumes them on the next engine.

Each live stream keeps the log of its tokens. When an engine dies, the log is what the next one is given: the answer
goes on where it was, with the same bits (promise 2), and nothing is delivered twice. Without torch.
"""

from __future__ import annotations

import asyncio
import logging
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from math import inf
from types import TracebackType
from typing import Protocol

import msgspec
import zmq
import zmq.asyncio

from orcinus.core.credit import Cost, Credit
from orcinus.core.explain import Cause, Interval, Life
from orcinus.core.progress import Progress
from orcinus.core.request import TOKEN_TYPECODE, FinishReason, Request
from orcinus.engine.clock import MonotonicClock
from orcinus.engine.messages import (
    Abort,
    Add,
    EngineDescription,
    EngineDown,
    EngineGone,
    EngineUp,
    Explain,
    Explained,
    FromEngine,
    Hello,
    Outputs,
    Ping,
    Timeline,
    ToEngine,
    Watch,
)
from orcinus.errors import EngineDied, InvalidRequest, Overloaded

# Codes of the errors that end streams from this side. They are stable.
ENGINE_DIED = "engine_died"
SHUTTING_DOWN = "shutting_down"
# The state of the queues is asked for so often; it is for metrics.
_STATS_SECONDS = 1.0
EXPLAIN_SECONDS = 5.0
MAX_OUTAGES = 256

logger = logging.getLogger(__name__)


class Watcher(Protocol):
    """Looks on while a front end works."""

    def see_engine_down(self) -> None:
        """The engine has died."""

    def see_engine_up(self) -> None:
        """Another engine serves from here on: it numbers its iterations and sequences anew."""

    def see_iterations(self, frame: Timeline) -> None:
        """What the engine has run lately."""

    def see_progress(self, request: Request, progress: Progress) -> None:
        """What came for a live request of this front end."""

    def end(self) -> None:
        """There will be nothing more to see."""


class Stream:
    """The progress of one live request: iterate over it. Leaving its `with` block before the end aborts it.

    Each answer ends exactly once: what comes after its `finish_reason` is dropped here.

    Args:
        arrival: set whenever something has arrived or the stream has ended. Several streams may share one, so that
            one reader can wait for all of them.

    Attributes:
        has_begun: the engine of the day has answered something.
    """

    def __init__(self, client: EngineClient, request: Request, arrival: asyncio.Event) -> None:
        self.request = request
        self.arrival = arrival
        self.has_begun = False
        self._client = client
        self._open = set(range(request.params.n))
        self._aborted: dict[int, FinishReason] = {}
        self._arrived: deque[Progress] = deque()
        resumed = request.resumed or (b"",) * request.params.n
        self._logs = [array(TOKEN_TYPECODE, line) for line in resumed]
        # Prompt log-probabilities handed out, and those that the next engine will give once more.
        self._num_prompt_logprobs = 0
        self._num_repeated = 0

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
        still_wanted = self._open - self._aborted.keys()
        meant = still_wanted if index is None else {index} & still_wanted
        if meant:
            self._aborted |= dict.fromkeys(meant, cause)
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
            if one.index not in self._open:
                continue
            self._logs[one.index].extend(one.tokens)
            if not self.has_begun and (one.tokens or one.pooled):
                self.has_begun = True
                self._client.begin(self)
            self._arrived.append(self._without_repeated(one))
            if one.finish_reason is not None:
                self._open.discard(one.index)
        if not self._open:
            self._client.forget(self)
        self.arrival.set()

    def _without_repeated(self, progress: Progress) -> Progress:
        """What was handed out before the last engine died isn't handed out again."""
        if not progress.prompt_logprobs:
            return progress
        repeated = min(self._num_repeated, len(progress.prompt_logprobs))
        self._num_repeated -= repeated
        new = progress.prompt_logprobs[repeated:]
        self._num_prompt_logprobs += len(new)
        return msgspec.structs.replace(progress, prompt_logprobs=new) if repeated else progress

    def resumption(self) -> tuple[Request, list[Abort]]:
        """What the next engine is to be told: the request with what is known of its answers, and those that have ended
        outside (by a stop string, or unwanted) although their tokens don't say so."""
        request = self.request
        self._num_repeated = self._num_prompt_logprobs
        if any(self._logs):
            request = msgspec.structs.replace(request, resumed=tuple(log.tobytes() for log in self._logs))
        ended = {index: FinishReason.STOP for index in range(request.params.n) if index not in self._open}
        return request, [Abort(request.request_id, index, cause) for index, cause in (ended | self._aborted).items()]

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
    """One front end's streams, and its connection to the engine of the day. Belongs to one event loop.

    The supervisor says when an engine is up, down or gone (`EngineWatcher`). While it is down, requests wait.

    Args:
        identity: tells this front end from others.
        on_unreadable: called when the engine sends what no engine of ours sends; it is to be replaced.
        num_fronts: how many share the engine.
        max_wait: seconds that a newcomer may have to expect to wait; None lets everybody in.
    """

    def __init__(
        self,
        identity: bytes,
        on_unreadable: Callable[[], None],
        *,
        num_fronts: int = 1,
        max_wait: float | None = None,
    ) -> None:
        self._identity = identity
        self._on_unreadable = on_unreadable
        self._num_fronts = num_fronts
        self._credit = Credit(Cost(), inf if max_wait is None else max_wait)
        self._clock = MonotonicClock()
        self._streams: dict[str, Stream] = {}
        self._encode = msgspec.msgpack.Encoder().encode
        self._decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._gone = ""
        self._watcher: Watcher | None = None
        self._tickets: dict[int, asyncio.Future[tuple[Life, ...]]] = {}
        self._num_tickets = 0
        self.outages: deque[Interval] = deque(maxlen=MAX_OUTAGES)
        """Times without an engine, the latest ones."""
        self._down_at: float | None = None
        self._first_up: asyncio.Future[EngineDescription] = asyncio.get_running_loop().create_future()
        self.is_leaving = False
        """The server is about to leave: it serves what comes, but wants nothing more."""
        self.stats: Outputs | None = None
        """The state of the queues after the latest iteration, without its progress; None before the first."""

    @property
    def num_live(self) -> int:
        """Streams that haven't ended."""
        return len(self._streams)

    @property
    def alive(self) -> bool:
        """Whether an engine takes requests right now."""
        return self._socket is not None

    @property
    def hopeless(self) -> bool:
        """Whether no engine will come any more."""
        return bool(self._gone)

    async def ready(self) -> EngineDescription:
        """Wait for the first engine.

        Raises:
            EngineDied: there will be none.
        """
        return await asyncio.shield(self._first_up)

    def check_room(self, requests: Sequence[Request] = ()) -> None:
        """May these come in? Submit them in the same breath, or somebody else may have come.

        The answer doesn't depend on what they ask: without any, it is the one for a request that isn't read yet.

        Raises:
            Overloaded: the engine has more to do than newcomers should wait for.
        """
        retry_after = self._credit.retry_after(self._clock.now(), len(requests))
        if retry_after is not None:
            raise Overloaded("the engine has more work than it can begin in time; try again", retry_after=retry_after)

    def submit(self, request: Request, arrival: asyncio.Event | None = None) -> Stream:
        """Send a request on its way; `arrival` as in `Stream`. It waits while an engine is being restarted.

        Raises:
            EngineDied: there is no engine to serve it, and none will come.
        """
        if self._gone:
            raise EngineDied(self._gone)
        assert request.request_id not in self._streams, "request ids are unique among live requests"
        stream = self._streams[request.request_id] = Stream(self, request, arrival or asyncio.Event())
        self._credit.take(Cost.of(request), self._clock.now())
        self._send(Add(request))
        return stream

    def send_abort(self, abort: Abort) -> None:
        """For `Stream`: tell the engine, if there is one. A stream that is wanted no more isn't resumed on the next."""
        self._send(abort)

    def begin(self, stream: Stream) -> None:
        """For `Stream`: the first of its answer is there."""
        self._credit.begin(Cost.of(stream.request), self._clock.now())

    def forget(self, stream: Stream) -> None:
        """For `Stream`: it has ended."""
        if self._streams.pop(stream.request.request_id, None) is not None:
            self._credit.give_back(Cost.of(stream.request), self._clock.now(), has_begun=stream.has_begun)

    def end_streams(self, code: str, message: str) -> None:
        """End every live stream with an error, and the work on it."""
        for stream in list(self._streams.values()):
            stream.abort()
            stream.fail(code, message)

    async def explain(self, request_ids: Sequence[str]) -> tuple[Life, ...]:
        """What the engine of the day remembers of requests; nothing if there is none, or it doesn't answer in time."""
        if self._socket is None:
            return ()
        self._num_tickets += 1
        ticket, future = self._num_tickets, asyncio.get_running_loop().create_future()
        self._tickets[ticket] = future
        self._send(Explain(ticket, tuple(request_ids)))
        try:
            return await asyncio.wait_for(future, EXPLAIN_SECONDS)
        except TimeoutError:
            return ()
        finally:
            del self._tickets[ticket]

    # ---- who looks on

    def watch(self, watcher: Watcher) -> None:
        """Show `watcher` what goes on, on this engine and the next ones. It costs the engine a little."""
        self._watcher = watcher
        self._send(Watch(True))

    def unwatch(self) -> None:
        """Nobody looks on any more."""
        if self._watcher is not None:
            watcher, self._watcher = self._watcher, None
            self._send(Watch(False))
            watcher.end()

    # ---- the engine of the day

    def engine_up(self, news: EngineUp) -> None:
        """Connect, and resume every live stream, the eldest first."""
        self._disconnect()
        engine = news.description
        self._credit.resize(self._share_of(engine))
        socket = self._context.socket(zmq.DEALER)
        # No bounds: a message held back here would be a token lost; what can wait is bounded by the requests admitted.
        for option, value in ((zmq.SNDHWM, 0), (zmq.RCVHWM, 0), (zmq.LINGER, 0), (zmq.MAXMSGSIZE, 64 * 2**20)):
            socket.setsockopt(option, value)
        socket.setsockopt(zmq.IDENTITY, self._identity)
        socket.connect(f"ipc://{news.path}")
        self._socket = socket
        self._tasks = (asyncio.create_task(self._read(socket)), asyncio.create_task(self._ask_for_stats()))
        self._send(Hello())
        if self._down_at is not None:
            self.outages.append(Interval(Cause.ENGINE_DOWN, self._down_at, self._clock.now()))
            self._down_at = None
        if self._watcher is not None:
            self._watcher.see_engine_up()
            self._send(Watch(True))
        for stream in list(self._streams.values()):
            request, aborts = stream.resumption()
            self._send(Add(request))
            for abort in aborts:
                self._send(abort)
        if not self._first_up.done():
            self._first_up.set_result(news.description)

    def _share_of(self, engine: EngineDescription) -> Cost:
        """What this front end may fill of it."""
        bounds = engine.max_request_tokens, engine.max_batch_size, engine.max_batch_tokens
        return Cost(*(-(-bound // self._num_fronts) for bound in bounds))

    def engine_down(self, news: EngineDown) -> None:
        """Hear nothing of the dead engine any more: what it hadn't said, the next one will."""
        self._disconnect()
        self._down_at = self._clock.now()
        self._credit.begin_anew(self._down_at)
        for stream in self._streams.values():
            stream.has_begun = False
        if self._watcher is not None:
            self._watcher.see_engine_down()

    def engine_gone(self, news: EngineGone) -> None:
        """End all streams with an error."""
        self._gone = self._gone or news.reason
        self._disconnect()
        for stream in list(self._streams.values()):
            stream.fail(ENGINE_DIED, "the engine that served this request ended")
        if not self._first_up.done():
            self._first_up.set_exception(EngineDied(news.reason))
            # Nobody may be waiting any more: asyncio would complain about an error that nobody saw.
            self._first_up.exception()

    async def close(self) -> None:
        """End all streams and the connection."""
        self.unwatch()
        self.end_streams(SHUTTING_DOWN, "the server is shutting down")
        self._gone = self._gone or "the server is shutting down"
        tasks = self._tasks
        self._disconnect()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._first_up.cancel()
        self._context.destroy(linger=0)

    def _disconnect(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._tasks = ()
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None

    def _send(self, message: ToEngine) -> None:
        """Hand a message to ZMQ, which takes it at once."""
        if self._socket is not None:
            sent = asyncio.ensure_future(self._socket.send(self._encode(message)))
            # A send that was still waiting when the socket closed is of no more interest.
            sent.add_done_callback(lambda done: None if done.cancelled() else done.exception())

    async def _read(self, socket: zmq.asyncio.Socket) -> None:
        """Hand out the frames that the engine sends, until it is down."""
        while True:
            frame = await socket.recv()
            try:
                message = self._decoder.decode(frame)
            except (msgspec.DecodeError, ValueError, InvalidRequest):
                # Tokens are lost in it; the next engine will give them again.
                logger.exception("a frame of the engine can't be read, so it is replaced")
                self._on_unreadable()
                return
            match message:
                case Outputs():
                    self._dispatch(message)
                case Explained(ticket=ticket, lives=lives):
                    asked = self._tickets.get(ticket)
                    if asked is not None and not asked.done():
                        asked.set_result(lives)
                case Timeline() if self._watcher is not None:
                    self._watcher.see_iterations(message)

    async def _ask_for_stats(self) -> None:
        while True:
            await asyncio.sleep(_STATS_SECONDS)
            self._send(Ping())

    def _dispatch(self, outputs: Outputs) -> None:
        self.stats = msgspec.structs.replace(outputs, progress=())
        for progress in outputs.progress:
            stream = self._streams.get(progress.request_id)
            if stream is not None:
                stream.put((progress,))
                if self._watcher is not None:
                    self._watcher.see_progress(stream.request, progress)
