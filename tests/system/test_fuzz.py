"""A short run of the HTTP fuzzer, and that it can find what it looks for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

from fuzzing.connection import Answer
from fuzzing.judge import complaint
from fuzzing.requests import Fuzzer, Kind, Shot
from fuzzing.words import ECHO

from orcinus.server.openapi import openapi_document

# Machines that run tests are as slow as they like.
PATIENT = ("--max-seconds", "120", "--max-health-ms", "120000")


def test_two_thousand_strange_requests(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, str(TOOLS / "fuzz_http.py"), "--requests", "2000", "--seed", "4", *PATIENT]
    done = subprocess.run([*command, "--json", str(report)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    told = json.loads(report.read_text())
    assert told["statuses"]["valid"]["200"] > 300
    assert told["statuses"]["json"]["400"] > 300
    assert told["health"]["asked"] > 1


def test_a_number_brings_a_request_back() -> None:
    document = openapi_document("1")
    first, second = (Fuzzer(document, "localhost", 3) for _ in range(2))
    assert [first.shot(n) for n in range(300)] == [second.shot(n) for n in reversed(range(300))][::-1]
    assert first.shot(1) != Fuzzer(document, "localhost", 4).shot(1)
    assert {first.shot(n).kind for n in range(300)} == set(Kind)


SHOT = Shot(0, Kind.JSON, "POST", "/v1/completions", b"", is_framed=True, is_timed=False)
HEADERS = {"content-type": "application/json", "x-request-id": "req_1"}


def error(status: int, message: str, code: str | None = None, kind: str = "invalid_request_error") -> Answer:
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return Answer(status, dict(HEADERS), bytearray(json.dumps(body, ensure_ascii=False).encode()), 0.1, is_whole=True)


@pytest.mark.parametrize(
    "answer",
    [
        error(500, "The server had an error"),
        error(503, "The server had an error", "internal_error", "server_error"),
        error(504, "too late", "deadline_exceeded", "server_error"),
        error(400, "see /usr/lib/python3/site-packages"),
        error(400, "at 0x7f00deadbeef"),
        error(400, ECHO * 101),
        error(400, "x" * 9000),
        Answer(400, dict(HEADERS), bytearray(b"Invalid HTTP request received."), is_whole=True),
        Answer(422, dict(HEADERS), bytearray(b'{"detail": []}'), is_whole=True),
        Answer(400, {}, error(400, "no").body, is_whole=True),
        Answer(200, dict(HEADERS), bytearray(b"{}"), seconds=6.0, is_whole=True),
        Answer(200, dict(HEADERS), bytearray(b'{"a": NaN}'), is_whole=True),
        Answer(200, {"content-type": "text/event-stream"}, bytearray(b"data: {}\n\n"), is_whole=True),
        Answer(trouble="the connection ended without an answer"),
    ],
)
def test_the_judge_sees_what_is_wrong(answer: Answer) -> None:
    assert complaint(SHOT, answer, 5.0)


@pytest.mark.parametrize(
    "answer",
    [
        error(400, "max_tokens is 0", "invalid_value"),
        error(503, "try again", "service_unavailable", "server_error"),
        error(400, ECHO * 100),
        Answer(200, dict(HEADERS), bytearray(b"{}"), is_whole=True),
        Answer(200, {"content-type": "text/event-stream"}, bytearray(b"data: {}\n\ndata: [DONE]\n\n"), is_whole=True),
    ],
)
def test_the_judge_lets_pass_what_is_right(answer: Answer) -> None:
    assert complaint(SHOT, answer, 5.0) == ""
