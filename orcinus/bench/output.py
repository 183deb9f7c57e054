"""Where results go: tables to a terminal or a pipe, JSON to standard output or a file."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
from rich.console import Console, RenderableType

from orcinus.errors import ConfigurationError

# A pipe has no width of its own, and a table cut at 80 columns loses figures.
_PIPE_WIDTH = 140


def show(result: RenderableType, *, to_stderr: bool = False) -> None:
    """Print a table."""
    stream = sys.stderr if to_stderr else sys.stdout
    Console(file=stream, width=None if stream.isatty() else _PIPE_WIDTH, highlight=False).print(result)


def write_json(result: object, file: Path | None) -> None:
    """To `file`; None and - are standard output.

    Raises:
        ConfigurationError: it can't be written.
    """
    content = msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n"
    if file is None or file == Path("-"):
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    try:
        file.write_bytes(content)
    except OSError as error:
        raise ConfigurationError(f"{file} can't be written: {error}") from error
