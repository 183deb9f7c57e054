"""One real server for the whole folder: the corpus and the wire leave it as they found it, and that is checked."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import httpx
import pytest
from door import FrontDoor, HealthWatch
from real_server import RealServer, serve_tiny


def _drain(server: RealServer) -> list[str]:
    """What the server says from now on, so that it never waits for us to read."""
    said: list[str] = []
    assert server.process.stderr is not None
    threading.Thread(target=said.extend, args=(server.process.stderr,), daemon=True).start()
    return said


@pytest.fixture(scope="session")
def door() -> Iterator[FrontDoor]:
    """The server; at the end it must be idle, have answered every /health, and leave in good order."""
    # `n` is served up to 128, so as many sequences have to fit into a batch.
    with serve_tiny("--max-batch-size", "128") as server:
        said = _drain(server)
        with httpx.Client(base_url=server.url, timeout=60) as client, HealthWatch(server.url) as watch:
            door = FrontDoor(server.url, client)
            yield door
            door.check_unharmed()
            door.check_idle()
        assert watch.complaints == []
    assert "Traceback" not in "".join(said), "".join(said)
