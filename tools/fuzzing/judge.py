"""What is wrong with an answer: the rules that no request may break, however strange it is."""

from __future__ import annotations

import json
import re

from fuzzing.connection import Answer
from fuzzing.requests import Kind, Shot
from fuzzing.words import ECHO

MAX_ERROR_BYTES = 8192
# No address, path, trace or name of ours may be told to strangers.
LEAK = re.compile(
    rb"0x[0-9a-f]{6,}|/tmp/|/usr/|/home/|site-packages|Traceback|\.py\b|msgspec|starlette|uvicorn|zmq|torch|/dev/shm"
)
ECHOED = re.compile("|".join(rf"(?:{re.escape(form)}){{101}}" for form in (ECHO, json.dumps(ECHO)[1:-1])).encode())
UNAVAILABLE, LATE = ("service_unavailable", "server_error"), ("deadline_exceeded", "server_error")


def complaint(shot: Shot, answer: Answer, max_seconds: float) -> str:
    """What is wrong with an answer; empty if nothing is."""
    if shot.kind is Kind.HANG_UP:
        return ""
    if not answer.is_whole:
        return answer.trouble if shot.is_framed or answer.status else ""
    if answer.seconds > max_seconds:
        return f"took {answer.seconds:.1f} s"
    if shot.method == "HEAD":
        return f"status {answer.status}" if answer.status >= 500 else ""
    if answer.status >= 400:
        return _bad_error(shot, answer)
    return _bad_content(answer)


def _bad_error(shot: Shot, answer: Answer) -> str:
    """Of an answer that refuses."""
    body, status = bytes(answer.body), answer.status
    try:
        error = json.loads(body)["error"]
        code, kind = error["code"], error["type"]
        if set(error) != {"message", "type", "param", "code"} or not isinstance(error["message"], str):
            raise TypeError(error)
    except (ValueError, KeyError, TypeError):
        return f"status {status} not in OpenAI's shape: {body[:80]!r}"
    if answer.headers.get("content-type") != "application/json":
        return f"status {status} of type {answer.headers.get('content-type')}"
    if not answer.headers.get("x-request-id", "").startswith("req_"):
        return f"status {status} without x-request-id"
    if len(body) > MAX_ERROR_BYTES or ECHOED.search(body):
        return f"status {status} echoes too much, {len(body)} bytes"
    if found := LEAK.search(body):
        return f"status {status} tells {found[0]!r}"
    deliberate = {503: (code, kind) == UNAVAILABLE, 504: shot.is_timed and (code, kind) == LATE}
    if status >= 500 and not deliberate.get(status, False):
        return f"status {status}: {error['message'][:80]}"
    return ""


def _bad_content(answer: Answer) -> str:
    """Of an answer that says that all is well."""
    media = answer.headers.get("content-type", "").partition(";")[0]
    try:
        if media == "application/json":
            json.loads(answer.body, parse_constant=_not_json)
        elif media == "text/event-stream":
            return _bad_stream(bytes(answer.body))
    except ValueError as error:
        return f"status {answer.status} with bad JSON: {error}"
    return ""


def _bad_stream(body: bytes) -> str:
    events = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    documents = [json.loads(event, parse_constant=_not_json) for event in events if event != b"[DONE]"]
    errors = [document["error"] for document in documents if "error" in document]
    if errors:
        return "" if errors[-1]["code"] in (UNAVAILABLE[0], LATE[0]) else f"error in a stream: {errors[-1]}"
    return "" if events[-1:] == [b"[DONE]"] else "a stream without [DONE]"


def _not_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
