"""Processes that we start: they die with us, their end is noticed at once, and they can be ended for certain."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from orcinus.engine import leash

_SHUTDOWN_GRACE, _TERMINATE_GRACE = 5.0, 3.0


class ChildProcess:
    """A process of ours in a group of its own, and a socket to it. Dies with us. Belongs to one event loop.

    Args:
        command: its argv; `--control FD` is added, the other end of the socket.
        inherit: descriptors that it may use as well.
        kind: of socket; messages with bounds, unless said otherwise.
        environment: variables besides ours.
    """

    def __init__(
        self,
        command: list[str],
        inherit: tuple[int, ...] = (),
        kind: socket.SocketKind = socket.SOCK_SEQPACKET,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        leashed = [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), *command]
        with theirs:
            self._process = subprocess.Popen(
                [*leashed, "--control", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
                pass_fds=(theirs.fileno(), *inherit),
            )
        self.end: socket.socket = ours
        self.exited = asyncio.Event()
        _watch_exit(self._process, asyncio.get_running_loop(), self.exited)

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""
        return self._process.pid

    @property
    def returncode(self) -> int:
        """Once it has exited; negative for a signal."""
        return self._process.wait()

    @property
    def is_stopped(self) -> bool:
        """Somebody has sent it SIGSTOP."""
        with contextlib.suppress(OSError):
            # The state follows the name, which may hold spaces and parentheses.
            return Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] in "Tt"
        return False

    def kill(self) -> None:
        """It and everything that it started."""
        self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """To the whole group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    async def exit_within(self, seconds: float) -> bool:
        """Wait for its end; whether it came in time."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.exited.wait(), seconds)
        return self.exited.is_set()

    async def leave(self) -> None:
        """It has been asked to leave: give it time, then tell it, then make it."""
        if not await self.exit_within(_SHUTDOWN_GRACE):
            self.signal(signal.SIGTERM)
            await self.exit_within(_TERMINATE_GRACE)
        self.kill()
        await self.exited.wait()
        self.end.close()

    def exit_reason(self) -> str:
        """For people."""
        code = self.returncode
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def _watch_exit(process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop, exited: asyncio.Event) -> None:
    """By pidfd where the system has it, else by a thread that waits."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        threading.Thread(target=_wait_for_exit, args=(process, loop, exited), daemon=True).start()
        return

    def reap() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        process.wait()
        exited.set()

    loop.add_reader(descriptor, reap)


def _wait_for_exit(process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop, exited: asyncio.Event) -> None:
    process.wait()
    # A closed loop means that nobody waits for it any more.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(exited.set)


@contextlib.contextmanager
def private_directory(parent: Path | None = None) -> Iterator[Path]:
    """A directory that nobody else can enter, for as long as the block lasts."""
    directory = Path(tempfile.mkdtemp(prefix="orcinus-", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
