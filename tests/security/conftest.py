"""Servers to look at from outside: one over a fake engine, one for real with a key and two front ends."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

for folder in ("server", "text", "security"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))

from guarded import House, open_house
from served import Served, serve_fake
from tokenizer_files import write_tokenizer


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Without a key."""
    with serve_fake(write_tokenizer(tmp_path_factory.mktemp("served"))) as server:
        yield server


@pytest.fixture(scope="session")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """With two keys."""
    folder = write_tokenizer(tmp_path_factory.mktemp("locked"))
    with serve_fake(folder, TEST_KEYS="right-key-of-ann,right-key-of-bob") as server:
        yield server


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """`orcinus serve` for real."""
    with open_house(tmp_path_factory.mktemp("house")) as house:
        yield house
