"""Recorded loads: Mooncake's JSON lines and the Azure LLM inference CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from orcinus.bench.files import numbered_lines
from orcinus.errors import ConfigurationError

# Mooncake: each entry of `hash_ids` stands for so many tokens of the prompt; equal ids are equal tokens.
MOONCAKE_BLOCK = 512
_AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


@dataclass(frozen=True, slots=True)
class TraceEntry:
    """One recorded request.

    Args:
        at: seconds after the first one of the trace.
        block_ids: what the prompt shares with others, by `MOONCAKE_BLOCK` tokens; empty if the trace doesn't tell.
    """

    at: float
    num_prompt: int
    num_output: int
    block_ids: tuple[int, ...] = ()


class _MooncakeLine(msgspec.Struct):
    """`timestamp` in milliseconds."""

    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


def read_trace(file: Path) -> list[TraceEntry]:
    """The entries in order of arrival, the first at 0. A name that ends in .csv is Azure's form, any other Mooncake's.

    Raises:
        ConfigurationError: a file that can't be used; the message names the line.
    """
    lines = numbered_lines(file)
    read = _azure(file, lines) if file.suffix == ".csv" else _mooncake(file, lines)
    entries = sorted(read, key=lambda entry: entry.at)
    if not entries:
        raise ConfigurationError(f"{file} has no entry")
    first = entries[0].at
    return [TraceEntry(e.at - first, e.num_prompt, e.num_output, e.block_ids) for e in entries]


def _mooncake(file: Path, lines: list[tuple[int, str]]) -> Iterator[TraceEntry]:
    decoder = msgspec.json.Decoder(_MooncakeLine)
    for number, line in lines:
        try:
            entry = decoder.decode(line)
        except msgspec.DecodeError as error:
            raise ConfigurationError(f"{file}, line {number}: {error}") from error
        yield _checked(
            file, number, TraceEntry(entry.timestamp / 1000, entry.input_length, entry.output_length, entry.hash_ids)
        )


def _azure(file: Path, lines: list[tuple[int, str]]) -> Iterator[TraceEntry]:
    """No field of these files spans lines."""
    rows = csv.DictReader(line for _, line in lines)
    missing = [name for name in _AZURE_COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise ConfigurationError(f"{file}, line 1: no column {', '.join(missing)}; found {rows.fieldnames}")
    for (number, _), row in zip(lines[1:], rows, strict=False):
        try:
            at, prompt, output = (row[name] for name in _AZURE_COLUMNS)
            entry = TraceEntry(_seconds(at), int(prompt), int(output))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"{file}, line {number}: {error}") from error
        yield _checked(file, number, entry)


def _seconds(timestamp: str) -> float:
    moment = datetime.fromisoformat(timestamp)
    # Without a zone it isn't ours: daylight saving would tear a hole into the trace.
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _checked(file: Path, line: int, entry: TraceEntry) -> TraceEntry:
    if entry.num_prompt < 1 or entry.num_output < 0:
        raise ConfigurationError(
            f"{file}, line {line}: {entry.num_prompt} tokens in and {entry.num_output} out; at least 1 and 0"
        )
    return entry
