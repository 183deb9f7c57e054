"""What a right answer is, and tasks files that aren't."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orcinus.bench.tasks import Exercise, read_tasks
from orcinus.errors import ConfigurationError

MESSAGES = [{"role": "user", "content": "What is 12 + 7?"}]


@pytest.mark.parametrize(
    ("check", "answer", "given", "right"),
    [
        ("exact", "19", " 19\n", True),
        ("exact", "19", "19.", False),
        ("exact", "a b", "a  b", False),
        ("json", '{"a": 1, "b": [true, null]}', '{ "b":[true,null],"a":1 }', True),
        ("json", '{"a": 1}', '{"a": 1.0}', True),
        ("json", '{"a": 1}', '{"a": true}', False),
        ("json", "[1, 2]", "[2, 1]", False),
        ("json", "[1, 2]", "[1, 2, 3]", False),
        ("json", '{"a": 1}', '{"a": 1, "b": 2}', False),
        ("json", '{"a": 1}', '{"a": "1"}', False),
        ("json", '{"a": 1}', 'Here: {"a": 1}', False),
        ("pattern", r"Once .* end\.", "Once upon\na time. The end.", True),
        ("pattern", r"Once .* end\.", "Once a day. The end. Really", False),
        ("pattern", r"\d+", "19\n", True),
    ],
)
def test_an_answer_is_right_as_its_check_says(check: str, answer: str, given: str, right: bool) -> None:
    assert Exercise("t", MESSAGES, answer, check).is_right(given) is right


def line(**changes: object) -> str:
    return json.dumps({"task": "add", "messages": MESSAGES, "answer": "19", "check": "exact"} | changes)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (line() + "\nnot json", "line 2"),
        (line() + "\n\n" + line(check="fuzzy"), "line 3: .*fuzzy"),
        ('{"task": "add"}', "line 1: .*messages"),
        (line(messages=[]), "line 1: .*messages"),
        (line(messages=[{"role": "user"}]), "line 1: .*content"),
        (line(answer=19), "line 1: .*answer"),
        (line(check="json", answer="{"), "line 1"),
        (line(check="pattern", answer="("), "line 1: .*unterminated"),
        ("", "is empty"),
    ],
)
def test_a_malformed_tasks_file_names_the_line(tmp_path: Path, content: str, complaint: str) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text(content)
    with pytest.raises(ConfigurationError, match=complaint):
        read_tasks(file)


def test_a_limit_takes_the_first_of_each_task(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text("\n".join(line(task=task, answer=str(n)) for n, task in enumerate("abaabb")))
    assert [(e.task, e.answer) for e in read_tasks(file, 2)] == [("a", "0"), ("b", "1"), ("a", "2"), ("b", "4")]
    assert len(read_tasks(file)) == 6
