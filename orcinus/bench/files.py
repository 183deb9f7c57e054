"""Text files with one thing a line."""

from __future__ import annotations

from pathlib import Path

from orcinus.errors import ConfigurationError


def numbered_lines(file: Path) -> list[tuple[int, str]]:
    """The lines of a text file that aren't blank, with their numbers from 1.

    Raises:
        ConfigurationError: it can't be read, or has no such line.
    """
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} can't be read: {error}") from error
    # Not splitlines: JSON may hold line separators of Unicode.
    lines = [(number, line) for number, line in enumerate(content.split("\n"), start=1) if line.strip()]
    if not lines:
        raise ConfigurationError(f"{file} is empty")
    return lines
