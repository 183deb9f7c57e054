"""`orcinus serve` with a key and two front ends, in processes that can't unpickle; and what /proc tells of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MODEL = Path(__file__).parents[2] / "models" / "orcinus-tiny"
KEY = "sk-a-key-that-nobody-may-read"
# Read by every Python process that finds it on its path, before anything else.
POISON = """
import os, pickle, sys

def loads(*arguments, **options):
    with open(os.environ["POISON_LOG"], "a") as log:
        log.write("unpickled\\n")
    raise RuntimeError("this process must not unpickle")

pickle.loads = pickle.load = loads
with open(os.environ["POISON_LOG"], "a") as log:
    log.write(f"poisoned {os.getpid()}\\n")
"""


@dataclass
class House:
    """The running server."""

    process: subprocess.Popen[str]
    url: str
    log_file: Path
    poison_log: Path

    @property
    def headers(self) -> dict[str, str]:
        """Of a client with the key."""
        return {"authorization": f"Bearer {KEY}"}

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    def log(self) -> str:
        """Everything that it said."""
        return self.log_file.read_text()

    def pids(self) -> list[int]:
        """Itself and all its descendants."""
        return tree(self.process.pid)


@contextmanager
def open_house(folder: Path) -> Iterator[House]:
    """Start the server; it ends with the block."""
    (folder / "sitecustomize.py").write_text(POISON)
    log_file, poison_log = folder / "log", folder / "poison"
    environment = {"ORCINUS_API_KEY": KEY, "PYTHONPATH": str(folder), "POISON_LOG": str(poison_log)}
    options = ["--port", "0", "--threads", "1", "--api-server-count", "2", "--kv-cache-gib", "0.05"]
    command = [sys.executable, "-m", "orcinus.cli", "serve", str(MODEL), *options]
    with log_file.open("w") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log, text=True, env=os.environ | environment)
    with process:
        try:
            yield House(process, _url(process, log_file), log_file, poison_log)
        finally:
            process.terminate()
            process.wait(60)


def _url(process: subprocess.Popen[str], log_file: Path) -> str:
    while process.poll() is None:
        if found := re.search(r"Serving on (\S+)", log_file.read_text()):
            return found[1]
        time.sleep(0.05)
    raise AssertionError(f"the server never served:\n{log_file.read_text()}")


def tree(pid: int) -> list[int]:
    """A process and all that came of it."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [pid, *(each for task in tasks for child in task.read_text().split() for each in tree(int(child)))]
