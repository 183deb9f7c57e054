"""A real server says where the time of a request went, also of one that lived through an engine's death."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from real_server import MODEL, start, url_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[int, str]]:
    process = start(str(MODEL), "--port", "0", "--threads", "1", "--api-server-count", "2")
    try:
        yield process.pid, url_of(process)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        assert process.stderr is not None
        process.stderr.close()


def explain(url: str, reply_id: str) -> dict[str, object]:
    answer = httpx.get(f"{url}/v1/explain/{reply_id}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def check_sum(told: dict[str, object]) -> dict[str, float]:
    """The spans of each request sum to the wall time; seconds by cause of the first."""
    assert told["is_over"] is True
    for request in told["requests"]:
        assert sum(span["seconds"] for span in request["spans"]) == pytest.approx(told["wall_seconds"], rel=0.01)
        assert sum(each["share"] for each in request["causes"]) == pytest.approx(1.0)
    return {each["cause"]: each["seconds"] for each in told["requests"][0]["causes"]}


def ask(url: str, **fields: object) -> dict[str, object]:
    body = {"prompt": "Once upon a time", "max_tokens": 24, "temperature": 0, "ignore_eos": True} | fields
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_quiet_request_is_read_prefilled_decoded_and_delivered(server: tuple[int, str]) -> None:
    _, url = server
    causes = check_sum(explain(url, ask(url)["id"]))
    assert {"reading", "handover", "prefill", "decode", "delivery"} <= causes.keys()


def test_a_crowd_shows_in_the_story(server: tuple[int, str]) -> None:
    """The same prompt twice finds the cache; whoever decodes beside long prompts is told so."""
    _, url = server
    replies: list[dict[str, object]] = []
    long = "Once upon a time there was a little dog. " * 30

    def one(length: int) -> None:
        replies.append(ask(url, prompt=long, max_tokens=length))

    threads = [threading.Thread(target=one, args=(8 + 8 * number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = [explain(url, reply["id"]) for reply in replies]
    for each in told:
        check_sum(each)
    assert any(each["requests"][0]["cached_tokens"] for each in told)
    again = ask(url, prompt=long)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 100


def test_an_engines_death_is_a_part_of_it(server: tuple[int, str]) -> None:
    pid, url = server
    with httpx.stream(
        "POST",
        f"{url}/v1/completions",
        json={"prompt": "Once", "max_tokens": 600, "ignore_eos": True, "stream": True},
        timeout=120,
    ) as stream:
        reply_id = ""
        for number, line in enumerate(stream.iter_lines()):
            found = re.search(r'"id":"([^"]+)"', line)
            reply_id = found[1] if found else reply_id
            if number == 20:
                os.kill(engine_of(pid), signal.SIGKILL)
    causes = check_sum(explain(url, reply_id))
    assert {"served_by_lost_engine", "engine_down"} <= causes.keys()
    assert causes["engine_down"] > 0.1


def test_the_command_prints_it(server: tuple[int, str]) -> None:
    _, url = server
    reply_id = str(ask(url)["id"])
    command = [sys.executable, "-m", "orcinus.cli", "explain", reply_id, "--url", url]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert reply_id in said
    assert "iterations that gave it a token" in said
    unknown = subprocess.run([*command[:4], "chatcmpl-nothing00", *command[5:]], capture_output=True, text=True)
    assert unknown.returncode == 2
    assert "Nothing is known" in unknown.stderr


def test_who_has_no_such_response_learns_nothing(server: tuple[int, str]) -> None:
    _, url = server
    for reply_id in ("cmpl-" + "0" * 30 + "00", "cmpl-" + "0" * 30 + "01", "x", "cmpl-" + "0" * 30 + "ff"):
        answer = httpx.get(f"{url}/v1/explain/{reply_id}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "response_not_found")


def engine_of(pid: int) -> int:
    children = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    (engine,) = (c for c in children if b"orcinus.engine.process" in Path(f"/proc/{c}/cmdline").read_bytes())
    return engine
