"""GET /v1/live: what goes on right now, as server-sent events; the page draws them.

Nothing is collected while nobody looks. A reader that is too slow misses the eldest iterations, and nothing else waits
for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterator

import msgspec
from starlette.types import Receive, Scope, Send

from orcinus.core.clock import Clock
from orcinus.core.progress import Progress
from orcinus.core.request import Request
from orcinus.engine.messages import Iteration, Timeline
from orcinus.errors import Overloaded
from orcinus.server.answers import EngineFront
from orcinus.server.delivery import run_while_connected
from orcinus.server.streams import STREAM_HEADERS

LIVE_PATH = "/v1/live"
MAX_FEEDS = 32
# An event follows another no sooner than this; and no later than this, so that a reader knows that we live.
_SPACING_SECONDS, _QUIET_SECONDS = 0.2, 1.0
_WINDOW_SECONDS = 60.0
_MAX_VALUES, _MAX_OPEN, _MAX_FRAMES, _MAX_ITERATIONS = 4096, 4096, 32, 512
_RETRY_SECONDS = 5.0
_LABEL_DIGITS = 4


class Percentiles(msgspec.Struct):
    """Of the last minute, in seconds; None where nothing was measured."""

    count: int
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None


class LiveMember(msgspec.Struct, array_like=True):
    """A sequence: its number, a label for people, which answer of its request, and how long its prompt is."""

    key: int
    label: str
    index: int
    num_prompt_tokens: int


class LiveEvent(msgspec.Struct):
    """What the page is told; times are seconds of the engine's clock.

    Args:
        engine: counts the engines seen here; each numbers its iterations and sequences anew.
        is_alive: an engine takes requests at the moment.
        num_live: requests of this front end that haven't ended.
        ttft, tpot: of requests to this front end since somebody looks on.
    """

    at: float
    engine: int
    is_alive: bool
    num_live: int
    num_running: int
    num_waiting: int
    free_blocks: int
    total_blocks: int
    preemptions: int
    ttft: Percentiles
    tpot: Percentiles
    members: list[LiveMember]
    iterations: list[Iteration]


class LatencyWindow:
    """The values of the last minute, 4,096 at most."""

    def __init__(self) -> None:
        self._values: deque[tuple[float, float]] = deque(maxlen=_MAX_VALUES)

    def put(self, value: float, now: float) -> None:
        """One more."""
        self._values.append((now, value))

    def percentiles(self, now: float) -> Percentiles:
        """By nearest rank: each is a value that occurred."""
        while self._values and self._values[0][0] < now - _WINDOW_SECONDS:
            self._values.popleft()
        ordered = sorted(value for _, value in self._values)
        count = len(ordered)
        if not count:
            return Percentiles(0)
        p50, p90, p99 = (ordered[-(-count * percent // 100) - 1] for percent in (50, 90, 99))
        return Percentiles(count, p50, p90, p99)


class Latencies:
    """TTFT and TPOT of the requests that arrive while this looks on."""

    def __init__(self, since: float) -> None:
        self._since = since
        self._open: dict[tuple[str, int], tuple[float, int]] = {}
        self.ttft = LatencyWindow()
        self.tpot = LatencyWindow()

    def see(self, request: Request, progress: Progress, now: float) -> None:
        """What came for a request. The first tokens of an elder or a resumed one were not seen here."""
        if request.arrived_at < self._since or request.resumed:
            return
        answer = progress.request_id, progress.index
        first_at, num_tokens = self._open.pop(answer, (now, 0))
        if progress.tokens and not num_tokens:
            self.ttft.put(now - request.arrived_at, now)
        num_tokens += len(progress.tokens)
        if progress.finish_reason is None:
            self._open[answer] = first_at, num_tokens
            # Those that a client left are never seen to end.
            if len(self._open) > _MAX_OPEN:
                del self._open[next(iter(self._open))]
        elif num_tokens > 1:
            self.tpot.put((now - first_at) / (num_tokens - 1), now)


class Live:
    """All who look on at one front end; the engine is watched while there is at least one."""

    def __init__(self, client: EngineFront, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._feeds: set[Feed] = set()
        self._engine = 0
        self._latencies = Latencies(clock.now())

    def feed(self) -> Feed:
        """For one more reader.

        Raises:
            Overloaded: too many look on.
        """
        if len(self._feeds) >= MAX_FEEDS:
            raise Overloaded(f"{MAX_FEEDS} readers look on already; try again", retry_after=_RETRY_SECONDS)
        return Feed(self)

    @contextlib.contextmanager
    def opened(self, feed: Feed) -> Iterator[None]:
        """Show everything to `feed` meanwhile."""
        if not self._feeds:
            self._latencies = Latencies(self._clock.now())
            self._client.watch(self)
        self._feeds.add(feed)
        try:
            yield
        finally:
            self._feeds.discard(feed)
            if not self._feeds:
                self._client.unwatch()

    def event(self, frames: list[Timeline], newest: Timeline | None) -> LiveEvent:
        """The state of things, and the iterations of `frames`."""
        now = self._clock.now()
        state = newest or self._client.stats
        iterations = [iteration for frame in frames for iteration in frame.iterations][-_MAX_ITERATIONS:]
        members = {member.key: member for frame in frames for member in frame.members}
        return LiveEvent(
            at=now,
            engine=self._engine,
            is_alive=self._client.alive,
            num_live=self._client.num_live,
            num_running=state.num_running if state else 0,
            num_waiting=state.num_waiting if state else 0,
            free_blocks=state.free_blocks if state else 0,
            total_blocks=state.total_blocks if state else 0,
            preemptions=state.preemptions if state else 0,
            ttft=self._latencies.ttft.percentiles(now),
            tpot=self._latencies.tpot.percentiles(now),
            members=[
                LiveMember(key, label_of(member.request_id), member.index, member.num_prompt_tokens)
                for key, member in members.items()
            ],
            iterations=iterations,
        )

    # ---- as a watcher of the engine's client

    def see_engine_down(self) -> None:
        """Say so without delay."""
        for feed in self._feeds:
            feed.wake()

    def see_engine_up(self) -> None:
        """What is left to tell of the last engine would be taken for this one's."""
        self._engine += 1
        for feed in self._feeds:
            feed.forget()

    def see_iterations(self, frame: Timeline) -> None:
        """To all feeds."""
        for feed in self._feeds:
            feed.put(frame)

    def see_progress(self, request: Request, progress: Progress) -> None:
        """Measure."""
        self._latencies.see(request, progress, self._clock.now())

    def end(self) -> None:
        """The server leaves, or nobody looks on."""
        for feed in self._feeds:
            feed.end()


class Feed:
    """ASGI response: events until the client goes away or the server leaves."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._frames: deque[Timeline] = deque(maxlen=_MAX_FRAMES)
        self._newest: Timeline | None = None
        self._has_ended = False
        self._news = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Look on until somebody has enough of it."""
        with self._live.opened(self):
            await run_while_connected(receive, self._stream(send))

    def put(self, frame: Timeline) -> None:
        """The latest from the engine."""
        self._newest = frame
        self._frames.append(frame)
        self._news.set()

    def forget(self) -> None:
        """What isn't told yet is no longer worth telling."""
        self._newest = None
        self._frames.clear()
        self._news.set()

    def wake(self) -> None:
        """Something has changed."""
        self._news.set()

    def end(self) -> None:
        """There is nothing more to see."""
        self._has_ended = True
        self._news.set()

    async def _stream(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(STREAM_HEADERS)})
        async for event in self._events():
            body = b"data: " + msgspec.json.encode(event) + b"\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncIterator[LiveEvent]:
        while not self._has_ended:
            frames = list(self._frames)
            self._frames.clear()
            self._news.clear()
            yield self._live.event(frames, self._newest)
            await asyncio.sleep(_SPACING_SECONDS)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), _QUIET_SECONDS - _SPACING_SECONDS)


def label_of(request_id: str) -> str:
    """Enough of a request's id to tell it from others, and which of its prompts it is: `cmpl-3f2a…-1` is `3f2a.1`."""
    _, _, name = request_id.partition("-")
    digits, _, number = name.partition("~")[0].partition("-")
    return digits[:_LABEL_DIGITS] + ("" if number in ("", "0") else f".{number}")
