"""Recorded loads that `orcinus bench` doesn't replay: BurstGPT's CSV and ShareGPT's conversations."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import msgspec

from orcinus.bench.files import numbered_lines
from orcinus.bench.traces import TraceEntry, read_trace
from orcinus.errors import ConfigurationError

_BURSTGPT_COLUMNS = ("Timestamp", "Request tokens", "Response tokens")
# ShareGPT holds texts; without its model's tokenizer this many bytes are taken for a token.
BYTES_PER_TOKEN = 4

# (tokens asked, tokens answered), turn by turn.
Conversation = list[tuple[int, int]]


def read_any_trace(file: Path) -> list[TraceEntry]:
    """Azure's or BurstGPT's CSV, told apart by their first line, or Mooncake's JSON lines; the first entry at 0.

    Raises:
        ConfigurationError: a file that can't be used; the message names the line.
    """
    lines = numbered_lines(file)
    if file.suffix != ".csv" or "Request tokens" not in lines[0][1]:
        return read_trace(file)
    entries = sorted(_burstgpt(file, lines), key=lambda entry: entry.at)
    if not entries:
        raise ConfigurationError(f"{file} has no request that was answered")
    return [TraceEntry(entry.at - entries[0].at, entry.num_prompt, entry.num_output) for entry in entries]


def _burstgpt(file: Path, lines: list[tuple[int, str]]) -> Iterator[TraceEntry]:
    """Timestamps are seconds. A response of 0 tokens is a failure of the recorded service: nobody saw an answer."""
    rows = csv.DictReader(line for _, line in lines)
    missing = [name for name in _BURSTGPT_COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise ConfigurationError(f"{file}, line 1: no column {', '.join(missing)}; found {rows.fieldnames}")
    for (number, _), row in zip(lines[1:], rows, strict=False):
        try:
            at, prompt, output = (float(row[name]) for name in _BURSTGPT_COLUMNS)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"{file}, line {number}: {error}") from error
        if prompt >= 1 and output >= 1:
            yield TraceEntry(at, int(prompt), int(output))


class _Turn(msgspec.Struct):
    """One message; other keys are ignored."""

    value: str
    speaker: str = msgspec.field(name="from")


class _Talk(msgspec.Struct):
    conversations: list[_Turn]


def read_conversations(file: Path) -> list[Conversation]:
    """ShareGPT's JSON: lengths of questions and answers, in order; a question without an answer is left out.

    Raises:
        ConfigurationError: a file that can't be used.
    """
    try:
        talks = msgspec.json.decode(file.read_bytes(), type=list[_Talk])
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigurationError(f"{file} can't be read as ShareGPT conversations: {error}") from error
    conversations = [turns for talk in talks if (turns := _turns(talk))]
    if not conversations:
        raise ConfigurationError(f"{file} has no question that was answered")
    return conversations


def _turns(talk: _Talk) -> Conversation:
    messages = talk.conversations
    return [
        (_tokens(asked.value), _tokens(answered.value))
        for asked, answered in pairwise(messages)
        if asked.speaker in ("human", "user") and answered.speaker in ("gpt", "assistant", "chatgpt")
    ]


def _tokens(text: str) -> int:
    return max(1, -(-len(text.encode()) // BYTES_PER_TOKEN))
