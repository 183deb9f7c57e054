"""What a command said, and how a test asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

MODEL = Path(__file__).parents[2] / "models" / "orcinus-tiny"


@dataclass(frozen=True)
class Said:
    """What came out."""

    code: int
    out: str
    err: str


class Check(Protocol):
    """`orcinus serve --check` on the model in the repository, at any free port."""

    def __call__(self, *flags: str, toml: str | None = None, environment: Mapping[str, str] | None = None) -> Said: ...
