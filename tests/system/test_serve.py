"""The program as a user meets it: a process, the model in the repository, the real OpenAI SDK."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import openai
import pytest
from real_server import MODEL, start, url_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    process = start(str(MODEL), "--port", "0")
    yield process
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert process.stderr is not None
    process.stderr.close()


@pytest.fixture(scope="module")
def client(server: subprocess.Popen[str]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url_of(server)}/v1", api_key="none") as client:
        yield client


def ask(client: openai.OpenAI, question: str) -> str:
    stream = client.chat.completions.create(
        model="orcinus-tiny", messages=[{"role": "user", "content": question}], stream=True, temperature=0
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


@pytest.mark.parametrize(("left", "right"), [(12, 7), (40, 25), (63, 18)])
def test_the_openai_sdk_streams_a_right_answer_to_a_sum(client: openai.OpenAI, left: int, right: int) -> None:
    answer = ask(client, f"What is {left} + {right}?")
    assert re.findall(r"\d+", answer)[-1] == str(left + right)


def test_a_search_over_http_gives_its_best_answers_whole_or_at_the_end_of_a_stream(client: openai.OpenAI) -> None:
    asked = {"model": "orcinus-tiny", "prompt": "Once there was a", "max_tokens": 12, "n": 2, "logprobs": 0}
    beams = {"use_beam_search": True, "best_of": 5, "length_penalty": 0.5}
    whole = client.completions.create(**asked, extra_body=beams).choices
    assert [choice.index for choice in whole] == [0, 1]
    first, second = (sum(choice.logprobs.token_logprobs) / 12**0.5 for choice in whole)
    greedy = client.completions.create(**{**asked, "n": 1}, temperature=0).choices[0].logprobs.token_logprobs
    assert first > second
    assert first >= sum(greedy) / 12**0.5 - 1e-5
    chunks = list(client.completions.create(**asked, stream=True, extra_body=beams))
    assert [(c.choices[0].index, c.choices[0].text) for c in chunks] == [(c.index, c.text) for c in whole]
    chat = {"model": "orcinus-tiny", "messages": [{"role": "user", "content": "What is 12 + 7?"}], "n": 3}
    answers = client.chat.completions.create(**chat, extra_body={"use_beam_search": True}).choices
    assert len({answer.message.content for answer in answers}) == 3


def test_the_model_is_listed_by_its_folder(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["orcinus-tiny"]


def test_a_port_in_use_is_refused_before_the_engine_starts(
    server: subprocess.Popen[str], client: openai.OpenAI
) -> None:
    port = str(client.base_url.port)
    second = start(str(MODEL), "--port", port)
    _, said = second.communicate(timeout=60)
    assert second.returncode == 2
    assert f"port {port}" in said
    assert "engine process" not in said


def test_a_folder_that_is_not_there_ends_with_a_remedy() -> None:
    process = start("org/model", "--port", "0")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Orcinus never downloads" in said


def test_generate_prints_the_answer() -> None:
    command = [sys.executable, "-m", "orcinus.cli", "generate", str(MODEL), "What is 12 + 7?"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "19" in done.stdout
