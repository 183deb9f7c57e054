"""The script that compares our answers with those of `transformers`: it agrees on the model in the repository, and it
can disagree."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).absolute().parents[2]
sys.path.insert(0, str(REPOSITORY / "benchmarks"))

from eval_parity import Pair, report, share_equal

from orcinus.bench.tasks import Exercise

QUESTIONS = [
    ("add", "What is 12 + 7?", "19"),
    ("add", "What is 58 + 14?", "72"),
    ("reverse_list", "Reverse the list 3, 14, 15.", "15, 14, 3"),
    ("reverse_list", "Reverse the list 92, 6.", "6, 92"),
    ("sort", "Sort 31, 7, 12.", "7, 12, 31"),
    ("sort", "Sort 64, 2, 33, 5.", "2, 5, 33, 64"),
]


def exercise(task: str, question: str, answer: str) -> Exercise:
    return Exercise(task, [{"role": "user", "content": question}], answer)


@pytest.mark.slow
def test_the_model_in_the_repository_answers_as_with_transformers(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.jsonl"
    lines = [{"task": t, "messages": [{"role": "user", "content": q}], "answer": a} for t, q, a in QUESTIONS]
    tasks.write_text("\n".join(map(json.dumps, lines)))
    script = REPOSITORY / "benchmarks" / "eval_parity.py"
    command = [sys.executable, str(script), str(REPOSITORY / "models" / "orcinus-tiny"), str(tasks)]
    command += ["--dtypes", "float32", "--threads", "1", "--max-tokens", "60"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    overall = next(line.split() for line in done.stdout.splitlines() if "overall" in line)
    assert (overall[1], overall[-1]) == ("6", "100.00%")


def test_one_answer_in_a_hundred_that_differs_misses_both_bars(capsys: pytest.CaptureFixture[str]) -> None:
    same = [Pair(exercise("a", "q", "1"), "1", "1")] * 99
    pairs = [*same, Pair(exercise("a", "q", "1"), "1", "1 ")]
    assert share_equal(pairs) == 0.99
    assert not report("bfloat16", pairs)
    assert not report("float32", pairs)
    assert report("bfloat16", [*same, *same, *pairs])
    assert not report("float32", [*same, *same, *pairs])
    assert report("float32", same)
    # Both are right by the check, which forgives the space; they still aren't equal.
    assert "100.0%" in capsys.readouterr().out
