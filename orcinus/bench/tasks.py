"""Tasks whose answers can be checked: the file they come in, and what a right answer is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from orcinus.bench.asks import Message
from orcinus.bench.files import numbered_lines
from orcinus.errors import ConfigurationError


class Exercise(msgspec.Struct, frozen=True):
    """One line of a tasks file; other keys are ignored.

    Args:
        answer: the text itself, a JSON document, or a regular expression, as `check` says.
        check: exact (equal but for white space around it), json (equal values), pattern (matches as a whole, and a
            dot matches line ends too).
    """

    task: str
    messages: list[Message]
    answer: str
    check: Literal["exact", "json", "pattern"] = "exact"

    def is_right(self, given: str) -> bool:
        """Whether an endpoint's answer passes the check."""
        match self.check:
            case "exact":
                return given.strip() == self.answer.strip()
            case "json":
                return _is_same_document(given, self.answer)
            case "pattern":
                return re.fullmatch(self.answer, given.strip(), re.DOTALL) is not None


def read_tasks(file: Path, limit: int | None = None) -> list[Exercise]:
    """The exercises in order, at most `limit` of each task.

    Raises:
        ConfigurationError: a file or line that can't be used; the message names the line.
    """
    decoder = msgspec.json.Decoder(Exercise)
    exercises = []
    for number, line in numbered_lines(file):
        try:
            exercises.append(_checked(decoder.decode(line)))
        except (msgspec.DecodeError, re.error, ValueError) as error:
            raise ConfigurationError(f"{file}, line {number}: {error}") from error
    return _first_of_each(exercises, limit)


def _checked(exercise: Exercise) -> Exercise:
    if not exercise.messages:
        raise ValueError("`messages` is empty")
    if exercise.check == "json":
        msgspec.json.decode(exercise.answer)
    if exercise.check == "pattern":
        re.compile(exercise.answer)
    return exercise


def _first_of_each(exercises: Sequence[Exercise], limit: int | None) -> list[Exercise]:
    taken: dict[str, int] = {}
    kept = []
    for exercise in exercises:
        taken[exercise.task] = taken.get(exercise.task, 0) + 1
        if limit is None or taken[exercise.task] <= limit:
            kept.append(exercise)
    return kept


def _is_same_document(given: str, expected: str) -> bool:
    try:
        return _is_same_value(msgspec.json.decode(given), msgspec.json.decode(expected))
    except msgspec.DecodeError:
        return False


def _is_same_value(left: object, right: object) -> bool:
    """Python's equality, but that true isn't 1."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_is_same_value(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_is_same_value, left, right))
    return isinstance(left, bool) == isinstance(right, bool) and left == right
