"""One real server for the clients that others wrote."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

for folder in ("server", "text"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))

from real_server import RealServer, serve_tiny


@pytest.fixture(scope="session")
def tiny() -> Iterator[RealServer]:
    """One server for all tests that leave it as it was."""
    with serve_tiny() as server:
        yield server
