"""A running server for the tests: real processes, a real port, a fake engine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from orcinus.text.tokenizer import Tokenizer

SERVE_FAKE = Path(__file__).parent / "serve_fake.py"


@dataclass
class Served:
    """A server process, where it listens, and what its engine says of itself."""

    process: subprocess.Popen[str]
    url: str
    engine_log: TextIO
    loaded: Tokenizer | None

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the served checkpoint."""
        assert self.loaded is not None
        return self.loaded

    @property
    def address(self) -> tuple[str, int]:
        """For raw sockets."""
        host, port = self.url.removeprefix("http://").rsplit(":", 1)
        return host, int(port)

    def next_event(self, *wanted: str) -> list[str]:
        """The engine's next line with all these words, waiting for it."""
        for line in self.engine_log:
            words = line.split()
            if set(wanted) <= set(words):
                return words
        raise AssertionError(f"the engine left without {wanted}")


@contextmanager
def serve_fake(folder: Path, *options: str, **environment: str) -> Iterator[Served]:
    """Run the server over the tokenizer in `folder`; it ends with the block."""
    log = folder / f"engine-log-{len(list(folder.iterdir()))}"
    os.mkfifo(log)
    # Opened for writing too, so that opening never waits and reading never ends before the engine has begun.
    with open(os.open(log, os.O_RDWR), encoding="utf-8") as engine_log:
        process = subprocess.Popen(
            [sys.executable, str(SERVE_FAKE), str(folder), "--log", str(log), *options],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        with process:
            try:
                assert process.stdout is not None
                url = process.stdout.readline().strip()
                assert url, f"the server exited with {process.wait()}"
                yield Served(process, url, engine_log, Tokenizer.load(folder))
            finally:
                process.terminate()
