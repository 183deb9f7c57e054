"""Clients in an environment of their own read the very answers that openai 3.x reads."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from asks import QUESTION, QUESTIONS
from real_server import REPOSITORY, RealServer

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
OTHERS = Path(os.environ.get("ORCINUS_CLIENTS_VENV", REPOSITORY / ".venv-clients")) / "bin" / "python"
needs_others = pytest.mark.skipif(not OTHERS.exists(), reason=f"{OTHERS} isn't there: make setup-clients")
LIMIT_SECONDS = 240
Told = dict[str, object]


def run_script(python: Path | str, name: str, url: str) -> Told:
    """What the script prints. Warnings are errors where they are about what we answer: pydantic's."""
    environment = os.environ | {"PYTHONPATH": str(HERE), "PYTHONWARNINGS": "error:Pydantic serializer warnings"}
    done = subprocess.run(
        [str(python), str(HERE / "scripts" / name), url],
        capture_output=True,
        text=True,
        env=environment,
        timeout=LIMIT_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    told: Told = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.fixture(scope="module")
def told(tiny: RealServer) -> Told:
    """By openai 3.x."""
    told = run_script(sys.executable, "openai_sdk.py", tiny.url)
    assert str(told["version"]).startswith("3.")
    answers = told["answers"]
    assert isinstance(answers, dict)
    return answers


def text_of(answer: object) -> str:
    """Of one answer of a script."""
    assert isinstance(answer, dict)
    return str(answer["text"])


def test_openai_3_answers_the_sums_rightly(told: Told) -> None:
    sums = told["async_sums"]
    assert isinstance(sums, list)
    for question, answer in zip((QUESTION, *QUESTIONS), (told["chat"], *sums), strict=True):
        right = sum(map(int, re.findall(r"\d+", question)))
        assert re.findall(r"\d+", text_of(answer))[-1] == str(right)


def test_openai_3_reads_the_same_story_whole_streamed_and_in_company(told: Told) -> None:
    assert told["story"] == told["story_stream"] == told["async_story"] == told["async_story_stream"]
    assert told["completion"] == told["completion_stream"]
    assert told["chat_sampled"] != told["story"]


@needs_others
def test_openai_2_reads_what_openai_3_reads(tiny: RealServer, told: Told) -> None:
    other = run_script(OTHERS, "openai_sdk.py", tiny.url)
    assert str(other["version"]).startswith("2.")
    assert other["answers"] == told


@needs_others
def test_litellm_reads_what_openai_3_reads(tiny: RealServer, told: Told) -> None:
    answers = run_script(OTHERS, "litellm_client.py", tiny.url)["answers"]
    assert isinstance(answers, dict)
    errors = answers.pop("errors")
    assert answers == {name: told[name] for name in answers}
    assert {name: (error["class"], error["status"]) for name, error in errors.items()} == {
        "missing_model": ("NotFoundError", 404),
        "temperature": ("BadRequestError", 400),
        # litellm knows this one by the words "maximum context length" or by the code.
        "too_long": ("ContextWindowExceededError", 400),
    }
    assert "temperature" in errors["temperature"]["said"]


@needs_others
def test_langchain_reads_what_openai_3_reads(tiny: RealServer, told: Told) -> None:
    answers = run_script(OTHERS, "langchain_client.py", tiny.url)["answers"]
    assert isinstance(answers, dict)
    errors, expected = answers.pop("errors"), told["errors"]
    assert isinstance(expected, dict)
    for name, error in errors.items():
        assert error == {key: expected[name][key] for key in error}
    assert answers.pop("chat_with_retry") == told["chat"]
    completion = text_of(told["completion"])
    assert (answers.pop("completion_text"), answers.pop("completion_stream_text")) == (completion, completion)
    assert answers == {name: told[name] for name in answers}
