"""Our server over the fake engine, and makers of servers that misbehave."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / room) for room in ("server", "text")]

from served import Served, serve_fake
from tokenizer_files import write_tokenizer


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The real server; its engine repeats each prompt, and it takes 8 requests at a time."""
    with serve_fake(write_tokenizer(tmp_path_factory.mktemp("bench-served"))) as server:
        yield server
