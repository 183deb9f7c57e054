"""A worker as a child of whoever runs it on its host: what has been done to it, and its end. Imports without torch."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

_LOOK_SECONDS = 0.2
# A worker's exit code when the driver, whom it would tell why it leaves, can't be reached.
UNHEARD = 3
_FOREIGN_SIGNALS = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


class Deed(msgspec.Struct, frozen=True):
    """What became of a worker. `by_others`: somebody else did it, so it is no fault of what it ran."""

    words: str
    by_others: bool


class Child:
    """Runs a module of ours. Ends with the thread that starts it: the kernel's parent-death signal counts threads.

    Args:
        words: of its command line, before the process to end with.
        inherit: descriptors that it keeps.
        said: its input.
        host: command that runs another one where the child shall live.
    """

    def __init__(
        self,
        module: str,
        words: Sequence[str],
        inherit: Sequence[int] = (),
        said: bytes = b"",
        host: Sequence[str] = (),
    ) -> None:
        self._process = subprocess.Popen(
            [*host, sys.executable, "-m", module, str(os.getpid()), *words],
            stdin=subprocess.PIPE,
            pass_fds=inherit,
            # Threads that spin while they wait would starve the other workers.
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
        )
        assert self._process.stdin is not None
        # One that has ended already is noticed by its end.
        with contextlib.suppress(BrokenPipeError), self._process.stdin as its_input:
            its_input.write(said)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def is_stopped(self) -> bool:
        """Somebody has sent it SIGSTOP."""
        with contextlib.suppress(OSError):
            # The state follows the name, which may hold spaces and parentheses.
            stat = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8")
            return stat.rpartition(")")[2].split()[0] in "Tt"
        return False

    @property
    def deed(self) -> Deed | None:
        """What was done to it, if anything was. One that has left by itself has said why."""
        code = self._process.poll()
        if code is not None and code < 0:
            number = signal.Signals(-code)
            return Deed(f"was ended by {number.name}", number in _FOREIGN_SIGNALS)
        if code == UNHEARD:
            return Deed("never reached the driver", by_others=True)
        return Deed("was stopped", by_others=True) if self.is_stopped else None

    def wait(self) -> Deed | None:
        """For its end, or for what ends it: one that stands still is not waited for."""
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_LOOK_SECONDS)
                return self.deed
            if self.is_stopped:
                deed = self.deed
                self.end(0)
                return deed

    def end(self, seconds: float) -> None:
        """Killed if it hasn't left by then, at once if it stands still."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0 if self.is_stopped else max(0.0, seconds))
        self._process.kill()
        self._process.wait()
