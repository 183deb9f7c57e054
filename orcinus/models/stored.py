"""A tensor in a file, before it is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies, under which name, and its shape. `offset` counts from the file's first byte.

    Args:
        dtype: as the file names it.
    """

    file: Path
    name: str
    offset: int
    shape: tuple[int, ...]
    num_bytes: int
    dtype: str
