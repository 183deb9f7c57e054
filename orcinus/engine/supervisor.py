"""Owns the engine process: starts it, watches its progress, replaces it when it dies or hangs. Without torch.

A dead engine is noticed by its exit, a hanging one by its beat: no progress for max(5 s, 10 × its slowest iteration)
(DESIGN.md §4). Live streams don't end with it: their front ends resume them on the next one.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from orcinus.core.quarantine import Investigation, Suspects
from orcinus.engine.beat import Pulse
from orcinus.engine.channel import Channel
from orcinus.engine.child import ChildProcess
from orcinus.engine.messages import (
    EngineDescription,
    EngineDown,
    EngineGone,
    EngineUp,
    Failed,
    FrontGone,
    OrderToEngine,
    Ping,
    ReportFromEngine,
    Shutdown,
)
from orcinus.errors import EngineDied, SystemFault

logger = logging.getLogger(__name__)

PING_SECONDS = 0.5
HANG_SECONDS, HANG_ITERATIONS = 5.0, 10
# An engine that dies sooner after its start than this, so many times in a row, isn't started again.
STABLE_SECONDS, MAX_SHORT_LIVES = 30.0, 5
# Ends that engines don't make themselves: somebody else wanted it dead, or told it to leave.
_FOREIGN_ENDS = frozenset({0, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


class EngineWatcher(Protocol):
    """Told of the engine's life; front ends, or what carries the news to them."""

    def engine_up(self, news: EngineUp) -> None:
        """Requests can be sent there."""
        ...

    def engine_down(self, news: EngineDown) -> None:
        """Nothing can be sent for a while."""
        ...

    def engine_gone(self, news: EngineGone) -> None:
        """Nothing can be sent any more."""
        ...


@dataclass(slots=True)
class _Life:
    """One engine process, from its start to its end."""

    epoch: int
    process: ChildProcess
    channel: Channel[OrderToEngine, ReportFromEngine]
    pulse: Pulse
    socket_path: Path
    started_at: float = 0.0
    hung: bool = False
    is_up: bool = False

    @property
    def ended_by_others(self) -> bool:
        """Once it is dead: whether somebody else wanted it so."""
        code = self.process.returncode
        return code <= 0 and -code in _FOREIGN_ENDS and not self.hung


class EngineSupervisor:
    """One engine at a time, and a new one when it dies. Belongs to one event loop.

    Args:
        command: argv of the engine process; socket, beat, control channel and suspects are added. It is told what the
            first engine found out at its start, so that the next ones are the same.
        directory: a private one, for sockets.
        watchers: told of every change.
        say: told in a line what happens, for people.
    """

    def __init__(
        self,
        command: Callable[[EngineDescription | None], list[str]],
        directory: Path,
        watchers: list[EngineWatcher],
        say: Callable[[str], None],
    ) -> None:
        self._command = command
        self._directory = directory
        self._watchers = watchers
        self._say = say
        self._investigation = Investigation()
        self._suspects = Suspects()
        self._life: _Life | None = None
        self._description: EngineDescription | None = None
        self._num_lives = 0
        self._short_lives = 0
        self._task: asyncio.Task[None] | None = None
        self.latest: EngineUp | EngineDown | EngineGone = EngineDown("the engine has not been started")
        self.num_restarts = 0

    async def start(self) -> EngineDescription:
        """Start the first engine, wait until it is ready, and go on watching.

        Raises:
            ConfigurationError, CheckpointError, EngineDied: it can't start; the message is the engine's own.
        """
        description = await self._bring_up()
        self._task = asyncio.create_task(self._supervise())
        return description

    def replace_engine(self) -> None:
        """It speaks nonsense: end it, and start another."""
        if self._life is not None:
            self._life.process.kill()

    def front_gone(self, identity: bytes) -> None:
        """A front end has died: the engine is to drop its work."""
        if self._life is not None:
            self._life.channel.send(FrontGone(identity))

    async def close(self) -> None:
        """End the engine: first asked, then told, then killed. Leaves no process behind."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._tell(EngineGone("the server is shutting down"))
        if self._life is not None:
            self._life.channel.send(Shutdown())
            # A stopped process hears nothing.
            if self._life.process.is_stopped or not self._life.is_up:
                self._life.process.kill()
            await self._life.process.leave()

    # ---- one life

    async def _bring_up(self) -> EngineDescription:
        life = self._life = self._spawn()
        report = asyncio.create_task(life.channel.receive())
        exited = asyncio.create_task(life.process.exited.wait())
        try:
            stopped = 0
            while not report.done() and not exited.done():
                await asyncio.wait({report, exited}, timeout=PING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                # It has no beat yet, so nobody else would notice. Looks are counted, not seconds: those in which the
                # supervisor stood still as well don't count.
                stopped = stopped + 1 if life.process.is_stopped else 0
                if stopped * PING_SECONDS > HANG_SECONDS:
                    life.process.kill()
            # Its last words may still be on the way.
            if not report.done():
                await asyncio.wait({report}, timeout=0.1)
            said = report.result() if report.done() and report.exception() is None else None
        finally:
            report.cancel()
            exited.cancel()
        if not isinstance(said, EngineDescription):
            life.process.kill()
            await life.process.exited.wait()
            life.channel.close()
            raise _start_fault(said, life.process)
        life.is_up = True
        life.started_at = asyncio.get_running_loop().time()
        if self._description is not None and self._description.fingerprint != said.fingerprint:
            logger.warning(
                "the new engine's numerics differ: %s, before %s", said.fingerprint, self._description.fingerprint
            )
        self._description = self._description or said
        self._tell(EngineUp(life.epoch, str(life.socket_path), said))
        return said

    def _spawn(self) -> _Life:
        epoch = self._num_lives
        self._num_lives += 1
        socket_path, beat_path = self._directory / f"engine-{epoch}", self._directory / f"beat-{epoch}"
        pulse = Pulse(beat_path)
        process = ChildProcess(
            [
                *self._command(self._description),
                *("--socket", str(socket_path)),
                *("--beat", str(beat_path)),
                *("--suspects", msgspec.json.encode(self._suspects).decode()),
            ]
        )
        self._say(f"engine process {process.pid} started")
        channel: Channel[OrderToEngine, ReportFromEngine] = Channel(
            process.end, msgspec.msgpack.Decoder(ReportFromEngine)
        )
        return _Life(epoch, process, channel, pulse, socket_path)

    async def _supervise(self) -> None:
        """Watch one engine after the other, until they can't live."""
        while True:
            assert self._life is not None
            await self._watch(self._life)
            reason = f"the engine process {self._life.process.exit_reason()}"
            if self._life.hung:
                reason = "the engine made no progress, so it was ended"
            self._draw_conclusions(self._life)
            self._tell(EngineDown(reason))
            self._say(f"{reason}; starting another")
            self._life.channel.close()
            if not await self._restart(reason):
                return

    async def _watch(self, life: _Life) -> None:
        """Until it is dead; a hanging one is killed."""
        loop = asyncio.get_running_loop()
        seen, seen_at = life.pulse.count, loop.time()
        while not await life.process.exit_within(PING_SECONDS):
            life.channel.send(Ping())
            if life.pulse.count != seen:
                seen, seen_at = life.pulse.count, loop.time()
            elif loop.time() - seen_at > max(HANG_SECONDS, HANG_ITERATIONS * life.pulse.slowest):
                # A process that somebody stopped didn't do it itself.
                life.hung = not life.process.is_stopped
                life.process.kill()
        life.process.kill()

    def _draw_conclusions(self, life: _Life) -> None:
        """Who is suspected of this death?"""
        if life.ended_by_others:
            self._suspects = self._investigation.after_kill()
            return
        self._suspects = self._investigation.after_crash(life.pulse.running())
        lived = asyncio.get_running_loop().time() - life.started_at
        # Trying suspects costs lives that say nothing about the engine.
        self._short_lives = 0 if lived > STABLE_SECONDS or self._suspects.groups else self._short_lives + 1

    async def _restart(self, reason: str) -> bool:
        """Another engine, or the end if they die too soon too often."""
        while self._short_lives <= MAX_SHORT_LIVES:
            try:
                await self._bring_up()
            except SystemFault as fault:
                reason = str(fault)
                assert self._life is not None
                self._short_lives += not self._life.ended_by_others
                await asyncio.sleep(min(2.0**self._short_lives, 10.0) / 4)
            else:
                self.num_restarts += 1
                return True
        self._tell(EngineGone(f"{reason}; {self._short_lives} engines in a row died too soon"))
        return False

    def _tell(self, news: EngineUp | EngineDown | EngineGone) -> None:
        self.latest = news
        for watcher in self._watchers:
            tell(watcher, news)


def tell(watcher: EngineWatcher, news: EngineUp | EngineDown | EngineGone) -> None:
    """One piece of news to one watcher."""
    match news:
        case EngineUp():
            watcher.engine_up(news)
        case EngineDown():
            watcher.engine_down(news)
        case EngineGone():
            watcher.engine_gone(news)


def _start_fault(said: Failed | None, process: ChildProcess) -> SystemFault:
    if said is not None:
        return said.fault()
    return EngineDied(f"the engine process {process.exit_reason()} before it was ready; its output says why")
