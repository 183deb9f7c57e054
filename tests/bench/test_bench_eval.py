"""`orcinus eval` against our server over the fake engine, whose answer is the rendered prompt up to its end token."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import openai
import pytest
from served import Served
from strange_servers import Handler, answers, serving
from test_bench_online import program

from orcinus.bench.evaluation import EvalConfig, Evaluation, eval_json, evaluate
from orcinus.bench.tasks import Exercise, read_tasks
from orcinus.errors import ConfigurationError

pytestmark = pytest.mark.slow
# What the fake engine answers to a question: the template's opening, read aloud.
ECHO = "user\n{}"
REPOSITORY = Path(__file__).parents[2]
MODEL = REPOSITORY / "models" / "orcinus-tiny"


def exercise(task: str, question: str, answer: str, check: str = "exact") -> dict[str, object]:
    return {"task": task, "messages": [{"role": "user", "content": question}], "answer": answer, "check": check}


def write_tasks(file: Path, *exercises: dict[str, object]) -> Path:
    file.write_text("\n".join(map(json.dumps, exercises)))
    return file


def config(url: str, **changes: object) -> EvalConfig:
    options = {"model": None, "api_key": None, "concurrency": 4, "max_tokens": 100, "timeout": 60.0}
    return EvalConfig(base_url=url, **options | changes)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return write_tasks(
        tmp_path / "tasks.jsonl",
        *(exercise("echo", f"number {n}", ECHO.format(f"number {n}")) for n in range(9)),
        exercise("echo", "ten", "something else"),
        exercise("shape", "story", r"user.*story", "pattern"),
        exercise("too long", "word " * 5000, "anything"),
    )


def test_the_program_prints_accuracies_by_task_and_overall(fake: Served, tasks: Path, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    done = program("eval", str(tasks), "--base-url", fake.url, "--json", "--answers", str(file), "--concurrency", "4")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "model": "fake",
        "tasks": {
            "echo": {"asked": 10, "right": 9, "failed": 0, "accuracy": 0.9},
            "shape": {"asked": 1, "right": 1, "failed": 0, "accuracy": 1.0},
            "too long": {"asked": 1, "right": 0, "failed": 1, "accuracy": 0.0},
        },
        "overall": {"asked": 12, "right": 10, "failed": 1, "accuracy": 10 / 12},
    }
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["given"] for line in lines[:3]] == [ECHO.format(f"number {n}") for n in range(3)]
    assert lines[9]["right"] is False
    assert "HTTP 400" in lines[11]["error"]


def test_the_table_shows_failures_and_as_many_mistakes_as_asked_for(fake: Served, tasks: Path) -> None:
    done = program("eval", str(tasks), "--base-url", f"{fake.url}/v1", "--show-mistakes", "2", "--concurrency", "3")
    assert done.returncode == 0, done.stderr
    for words in ("90.0%", "83.3%", "HTTP 400", "right is 'something else'"):
        assert words in done.stdout
    limited = program("eval", str(tasks), "--base-url", fake.url, "--limit", "2")
    assert "100.0%" in limited.stdout
    assert "something else" not in limited.stdout


def test_answers_are_those_that_the_openai_sdk_gets(fake: Served, tasks: Path) -> None:
    exercises = read_tasks(tasks)[:4]
    result = asyncio.run(evaluate(exercises, config(fake.url)))
    with openai.OpenAI(base_url=f"{fake.url}/v1", api_key="none") as client:
        for answer in result.answers:
            reply = client.chat.completions.create(
                model="fake", messages=answer.exercise.messages, temperature=0, max_tokens=100
            )
            assert answer.given == reply.choices[0].message.content


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--base-url", "http://127.0.0.1:1"], "no connection"),
        (["--base-url", "{url}", "--model", "other"], "HTTP 404"),
        (["--base-url", "{url}", "--concurrency", "0"], "--concurrency is 0"),
        (["--base-url", "{url}", "--max-tokens", "100000"], "HTTP 400"),
    ],
)
def test_where_nothing_answers_the_program_leaves_with_2(
    fake: Served, tasks: Path, arguments: list[str], complaint: str
) -> None:
    done = program("eval", str(tasks), *(argument.format(url=fake.url) for argument in arguments))
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_a_malformed_tasks_file_ends_the_program_before_anything_is_asked(tmp_path: Path) -> None:
    file = write_tasks(tmp_path / "tasks.jsonl", exercise("a", "b", "c"), {"task": "a"})
    done = program("eval", str(file), "--base-url", "http://127.0.0.1:1")
    assert done.returncode == 2
    assert "line 2" in done.stderr


@pytest.mark.parametrize("handle", [answers(b"hello"), answers(b'{"choices": []}'), answers(b"", status=500)])
def test_an_endpoint_that_never_answers_properly_is_refused(handle: Handler) -> None:
    async def run() -> Evaluation:
        async with serving(handle) as url:
            return await evaluate([Exercise("t", [{"role": "user", "content": "a"}], "b")], config(url, model="m"))

    with pytest.raises(ConfigurationError, match="answered none of 1 requests"):
        asyncio.run(run())


def test_an_answer_without_text_is_empty_and_wrong() -> None:
    async def run() -> Evaluation:
        body = json.dumps({"choices": [{"message": {"role": "assistant", "content": None}}]}).encode()
        async with serving(answers(body)) as url:
            return await evaluate([Exercise("t", [{"role": "user", "content": "a"}], "b")], config(url, model="m"))

    result = asyncio.run(run())
    assert eval_json(result)["overall"] == {"asked": 1, "right": 0, "failed": 0, "accuracy": 0.0}
