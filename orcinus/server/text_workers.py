"""Text that may take long, in processes that can be ended: the event loop and other requests don't notice (S11)."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec

from orcinus.engine.child import ChildProcess
from orcinus.errors import Overloaded, RequestFailed
from orcinus.text import worker
from orcinus.text.jobs import Job, Outcome, TextSide
from orcinus.text.worker import HEAD_BYTES, READY, frame, frame_length, too_expensive

logger = logging.getLogger(__name__)

# Below this many characters another process costs more than what it takes off the event loop.
INLINE_CHARACTERS = 2_000
# Waiting for one outcome, however little processor time the worker gets; and for a worker to start.
MAX_SECONDS, START_SECONDS = 8.0, 60.0
LAST_WORDS_SECONDS = 1.0
# What may wait.
MAX_JOBS, MAX_CHARACTERS = 256, 64 * 2**20
_OUTCOMES: msgspec.msgpack.Decoder[Outcome] = msgspec.msgpack.Decoder(Outcome)
# Ends that the text at hand is the reason of: the processor time is up, memory is up (in Rust, which aborts).
_OWN_ENDS = frozenset({-signal.SIGPROF, -signal.SIGABRT})


class TextWorkers:
    """A few worker processes, started when first needed and replaced when they end. Belongs to one event loop.

    Args:
        model: folder of the checkpoint.
        side: the same checkpoint's text side, for what is short.
        num_workers: processes at most.
    """

    def __init__(self, model: Path, side: TextSide, num_workers: int = 2) -> None:
        self._model = model
        self._side = side
        self._idle: list[_Worker] = []
        self._free = asyncio.Semaphore(num_workers)
        self._owners: dict[str, asyncio.Lock] = {}
        self._waiting: Counter[str] = Counter()
        self._num_characters = 0
        self._jobs: set[asyncio.Task[Outcome]] = set()
        self.num_replaced = 0

    async def do(self, job: Job, num_characters: int, owner: str, *, is_program: bool = False) -> Outcome:
        """The outcome of one job.

        Args:
            num_characters: how long its text is, about.
            owner: whose it is; one owner's jobs take turns, so that they don't take every worker.
            is_program: it runs a program from the checkpoint, however short the text.

        Raises:
            InvalidRequest: what the job raised, or it took too long or too much memory.
            Overloaded: too much is waiting.
            RequestFailed: workers died of something else, twice.
        """
        if num_characters <= INLINE_CHARACTERS and not is_program:
            return self._side.do(job)
        waiting = self._waiting.total()
        if waiting >= MAX_JOBS or (waiting and self._num_characters + num_characters > MAX_CHARACTERS):
            raise Overloaded("too much text is waiting to be read; try again", retry_after=MAX_SECONDS)
        self._waiting[owner] += 1
        self._num_characters += num_characters
        # Its client may leave, but a worker in the middle of a job is of no use to the next one.
        task = asyncio.create_task(self._queue(job, owner))
        self._jobs.add(task)
        task.add_done_callback(partial(self._forget, owner, num_characters))
        return await asyncio.shield(task)

    def warm_up(self) -> None:
        """Start the first worker now rather than with the first long text."""
        self._idle.append(_Worker(self._model))

    async def close(self) -> None:
        """End all of them."""
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        for idle in self._idle:
            await idle.end()

    async def _queue(self, job: Job, owner: str) -> Outcome:
        async with self._turn(owner), self._free:
            outcome = await self._try(job)
            return outcome if outcome is not None else await self._try_again(job)

    def _forget(self, owner: str, num_characters: int, task: asyncio.Task[Outcome]) -> None:
        self._jobs.discard(task)
        self._num_characters -= num_characters
        self._waiting[owner] -= 1
        if not self._waiting[owner]:
            del self._waiting[owner]
            self._owners.pop(owner, None)
        if not task.cancelled():
            # Retrieved, in case that its client has left.
            task.exception()

    @asynccontextmanager
    async def _turn(self, owner: str) -> AsyncIterator[None]:
        """One job of each owner at a time; where nobody shows a key, all are one owner and nobody waits for it."""
        if not owner:
            yield
            return
        async with self._owners.setdefault(owner, asyncio.Lock()):
            yield

    async def _try(self, job: Job) -> Outcome | None:
        """None if a worker died of something that the job didn't do."""
        process = self._idle.pop() if self._idle else _Worker(self._model)
        try:
            outcome = await process.do(job)
        except BaseException:
            await process.end()
            raise
        if process.is_alive:
            self._idle.append(process)
        else:
            self.num_replaced += 1
        return outcome

    async def _try_again(self, job: Job) -> Outcome:
        """Somebody else ended the worker; once is misfortune."""
        outcome = await self._try(job)
        if outcome is None:
            raise RequestFailed("the processes that read text have died", code="internal_error")
        return outcome


class _Worker:
    """One process."""

    def __init__(self, model: Path) -> None:
        # One thread and one arena: what it maps counts against its memory.
        environment = {"MALLOC_ARENA_MAX": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-m", worker.__name__, str(model)]
        self._process = ChildProcess(command, kind=socket.SOCK_STREAM, environment=environment)
        self._process.end.setblocking(False)
        self._is_ready = False
        self.is_alive = True

    async def do(self, job: Job) -> Outcome | None:
        """The outcome of a job; None if the process died of something else. Dead afterwards unless `is_alive`."""
        try:
            if not self._is_ready:
                await asyncio.wait_for(self._receive(len(READY)), START_SECONDS)
                self._is_ready = True
            return await asyncio.wait_for(self._exchange(job), MAX_SECONDS)
        except TimeoutError:
            logger.warning("a text took longer than %g s to read; its process is replaced", MAX_SECONDS)
            await self.end()
            return too_expensive()
        except (EOFError, ConnectionError):
            # It is on its way out: let it say why, and tell its own end from ours.
            await self._process.exit_within(LAST_WORDS_SECONDS)
            await self.end()
            return too_expensive() if self._process.returncode in _OWN_ENDS else None

    async def end(self) -> None:
        """For certain."""
        self.is_alive = False
        self._process.kill()
        await self._process.exited.wait()
        self._process.end.close()

    async def _exchange(self, job: Job) -> Outcome:
        loop, end = asyncio.get_running_loop(), self._process.end
        await loop.sock_sendall(end, frame(job))
        length = frame_length(await self._receive(HEAD_BYTES))
        return _OUTCOMES.decode(await self._receive(length))

    async def _receive(self, count: int) -> bytes:
        loop, end = asyncio.get_running_loop(), self._process.end
        received = bytearray()
        while len(received) < count:
            piece = await loop.sock_recv(end, count - len(received))
            if not piece:
                raise EOFError
            received += piece
        return bytes(received)
