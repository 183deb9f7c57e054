"""One fake server for all tests that leave it as it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "text"))

from served import Served, serve_fake
from tokenizer_files import write_tokenizer


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for all tests that leave it as it was."""
    with serve_fake(write_tokenizer(tmp_path_factory.mktemp("served"))) as server:
        yield server
