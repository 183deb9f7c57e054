"""A real terminal for a program: what is typed reaches it as keys, what it writes is read as a person would see it."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

LIMIT_SECONDS = 60.0
CTRL_C = "\x03"
CTRL_D = "\x04"
# The program must own the terminal, or Ctrl-C would be a character and not a signal.
_OWN_TERMINAL = (
    "import fcntl, os, sys, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\nos.execv(sys.executable, sys.argv[1:])"
)
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """The keyboard and the screen of a running program."""

    def __init__(self, process: subprocess.Popen[bytes], device: int) -> None:
        self.process = process
        self.raw = b""
        self._device = device
        self._seen = 0

    @property
    def screen(self) -> str:
        """All that was written, without colours."""
        return _COLOURS.sub("", self.raw.decode(errors="replace").replace("\r\n", "\n"))

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._device, keys.encode())

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read until this is written after what was last waited for."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while True:
            found = re.search(pattern, self.screen[self._seen :])
            if found:
                self._seen += found.end()
                return found
            assert time.monotonic() < deadline, f"{pattern!r} never came; the screen: {self.screen!r}"
            assert self._read(1.0), f"the program left without {pattern!r}; the screen: {self.screen!r}"

    def interrupt_prompt(self, prompt: str) -> None:
        """Ctrl-C at the prompt, once the program sleeps there.

        A signal between the showing of a prompt and the wait for keys is seen with the next key only: Python's readline
        module waits without looking for it again. People press Ctrl-C once more; a test would wait for ever.
        """
        self.wait_for(prompt)
        deadline = time.monotonic() + LIMIT_SECONDS
        while psutil.Process(self.process.pid).status() != psutil.STATUS_SLEEPING:
            assert time.monotonic() < deadline, f"the program never waits; the screen: {self.screen!r}"
            time.sleep(0.01)
        self.type(CTRL_C)

    def finish(self) -> int:
        """Read to the end; the exit status."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while self._read(1.0):
            assert time.monotonic() < deadline, f"the program never left; the screen: {self.screen!r}"
        return self.process.wait(LIMIT_SECONDS)

    def _read(self, seconds: float) -> bool:
        """Whatever comes in this time; False when the program has closed its end."""
        if not select.select([self._device], [], [], seconds)[0]:
            return True
        try:
            received = os.read(self._device, 65536)
        except OSError:
            return False
        self.raw += received
        return bool(received)


@contextmanager
def terminal(*arguments: str, **environment: str) -> Iterator[Terminal]:
    """Run `orcinus` with these arguments in a terminal of its own; what still runs at the end is killed."""
    device, programs_side = os.openpty()
    command = [sys.executable, "-c", _OWN_TERMINAL, sys.executable, "-m", "orcinus.cli", *arguments]
    process = subprocess.Popen(
        command,
        stdin=programs_side,
        stdout=programs_side,
        stderr=programs_side,
        start_new_session=True,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"} | environment,
    )
    os.close(programs_side)
    with process:
        try:
            yield Terminal(process, device)
        finally:
            process.kill()
            os.close(device)
