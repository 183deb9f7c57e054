"""The program `orcinus serve` with the model of the repository, on a free port, with one thread."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
MODEL = REPOSITORY / "models" / "orcinus-tiny"
END_SECONDS = 60


@dataclass(frozen=True)
class RealServer:
    """A running server: where it listens, and its supervisor."""

    url: str
    process: subprocess.Popen[str]

    def engine_pid(self) -> int:
        """Of the engine of the moment: the supervisor's child that runs `orcinus.engine.process`."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        (pid,) = [
            int(pid) for pid in children if b"orcinus.engine.process" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        return pid


@contextmanager
def serve_tiny(*options: str) -> Iterator[RealServer]:
    """Serve until the block ends; the server must then leave with 0."""
    with start(str(MODEL), "--port", "0", "--threads", "1", *options) as process:
        try:
            yield RealServer(url_of(process), process)
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(END_SECONDS)
        assert status == 0


def start(*arguments: str) -> subprocess.Popen[str]:
    """`orcinus serve` with these arguments."""
    command = [sys.executable, "-m", "orcinus.cli", "serve", *arguments]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def url_of(process: subprocess.Popen[str]) -> str:
    """Read what the server says until it serves."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        found = re.search(r"Serving on (\S+)", line)
        if found:
            return found[1]
    raise AssertionError("the server never served:\n" + "".join(said))
