"""What anybody sees who has curl: the bytes of a stream, as server-sent events are framed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
from asks import MODEL, QUESTION, messages
from real_server import RealServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl isn't there: apt-get install curl"),
]


def curl(*arguments: str) -> str:
    """What it prints, headers first."""
    command = ["curl", "--silent", "--show-error", "--no-buffer", "--include", "--max-time", "60", *arguments]
    return subprocess.run(command, capture_output=True, check=True, encoding="utf-8").stdout


def post(url: str, **fields: object) -> tuple[str, str]:
    """Headers and body of a chat."""
    body = {"model": MODEL, "messages": messages(QUESTION), "temperature": 0} | fields
    said = curl(f"{url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", json.dumps(body))
    headers, _, content = said.replace("\r\n", "\n").partition("\n\n")
    return headers.lower(), content


def test_a_stream_is_events_with_an_id_and_one_line_of_json_until_done(tiny: RealServer) -> None:
    headers, body = post(tiny.url, stream=True, stream_options={"include_usage": True})
    assert headers.startswith("http/1.1 200 ok\n")
    assert "content-type: text/event-stream" in headers
    assert "cache-control: no-cache" in headers
    assert body.endswith("\n\ndata: [DONE]\n\n")
    *events, usage, done = body.removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    for number, event in enumerate(events, start=1):
        id_line, data_line = event.split("\n")
        chunk = json.loads(data_line.removeprefix("data: "))
        # One token an event: the last of them ends the answer and has no text.
        assert id_line == f"id: {chunk['id']}:0:{number}"
    # The counts come with the end, so nobody needs an id between the two.
    assert json.loads(usage.removeprefix("data: "))["usage"]["completion_tokens"] == len(events)


def test_what_curl_missed_it_reads_with_last_event_id(tiny: RealServer) -> None:
    _, body = post(tiny.url, stream=True)
    ids = re.findall(r"^id: (.*)$", body, re.MULTILINE)
    stream_id = ids[0].split(":")[0]
    said = curl(f"{tiny.url}/v1/streams/{stream_id}", "-H", f"Last-Event-ID: {ids[3]}")
    rest = said.replace("\r\n", "\n").partition("\n\n")[2]
    assert rest == body[body.index(f"id: {ids[4]}\n") :]


def test_an_error_is_one_json_object(tiny: RealServer) -> None:
    headers, body = post(tiny.url, temperature="warm")
    assert headers.startswith("http/1.1 400 bad request\n")
    assert "content-type: application/json" in headers
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == "temperature"
