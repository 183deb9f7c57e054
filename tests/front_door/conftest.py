"""One real server for the whole folder: the corpus and the wire leave it as they found it, and that is checked."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from wire import Wire

MODEL = Path(__file__).parents[2] / "models" / "orcinus-tiny"
# `n` is served up to 128, so as many sequences have to fit into a batch.
ARGUMENTS = (str(MODEL), "--port", "0", "--threads", "1", "--max-batch-size", "128")
_NORMAL = {
    "prompt": "What is 12 + 7?",
    "max_tokens": 6,
    "temperature": 0,
    "ignore_eos": True,
    "return_token_ids": True,
    "logprobs": 1,
}
_SETTLE_SECONDS, _LOOK_SECONDS = 20.0, 0.1


@dataclass
class FrontDoor:
    """A served model, and what a normal client sees of it."""

    url: str
    client: httpx.Client
    first_answer: object = field(init=False)

    def __post_init__(self) -> None:
        self.first_answer = self._normal_answer()

    @property
    def wire(self) -> Wire:
        """For bytes that no HTTP client would send."""
        host, port = self.url.removeprefix("http://").rsplit(":", 1)
        return Wire((host, int(port)))

    def check_unharmed(self) -> None:
        """A normal request is answered with the bits of the first time, and the server says that it is well."""
        assert self._normal_answer() == self.first_answer
        assert self.client.get("/health").status_code == 200

    def check_idle(self) -> None:
        """Nothing is left behind: no sequence, no KV block."""
        until = time.monotonic() + _SETTLE_SECONDS
        while (load := self._load()) != {"num_running": 0, "num_waiting": 0, "kv_cache_usage": 0}:
            assert time.monotonic() < until, f"the server doesn't come to rest: {load}"
            time.sleep(_LOOK_SECONDS)

    def _normal_answer(self) -> object:
        answer = self.client.post("/v1/completions", json=_NORMAL)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"], answer.json()["usage"]

    def _load(self) -> dict[str, float]:
        told = self.client.get("/load").json()
        return {name: told[name] for name in ("num_running", "num_waiting", "kv_cache_usage")}


class HealthWatch:
    """Asks for /health all the time, beside everything else; keeps what wasn't a 200."""

    def __init__(self, url: str) -> None:
        self.complaints: list[str] = []
        self._url = f"{url}/health"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on)

    def __enter__(self) -> HealthWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look_on(self) -> None:
        with httpx.Client(timeout=10) as client:
            while not self._over.wait(_LOOK_SECONDS):
                try:
                    status = client.get(self._url).status_code
                    if status != 200:
                        self.complaints.append(str(status))
                except httpx.HTTPError as error:
                    self.complaints.append(repr(error))


def _url_of(process: subprocess.Popen[str]) -> str:
    """Read what the server says until it serves."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"Serving on (\S+)", line):
            return found[1]
    raise AssertionError("the server never served:\n" + "".join(said))


def _drain(process: subprocess.Popen[str]) -> list[str]:
    """What the server says from now on, so that it never waits for us to read."""
    said: list[str] = []
    assert process.stderr is not None
    threading.Thread(target=said.extend, args=(process.stderr,), daemon=True).start()
    return said


@pytest.fixture(scope="session")
def door() -> Iterator[FrontDoor]:
    """The server; at the end it must be idle, have answered every /health, and leave in good order."""
    command = [sys.executable, "-m", "orcinus.cli", "serve", *ARGUMENTS]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            url = _url_of(process)
            said = _drain(process)
            with httpx.Client(base_url=url, timeout=60) as client, HealthWatch(url) as watch:
                door = FrontDoor(url, client)
                yield door
                door.check_unharmed()
                door.check_idle()
            assert watch.complaints == []
        finally:
            process.send_signal(signal.SIGTERM)
            ended = process.wait(timeout=60)
        assert ended == 0
        assert "Traceback" not in "".join(said), "".join(said)
