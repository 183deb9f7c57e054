"""Going on with a stream from an event that it doesn't have: refused, and the stream stays as it was."""

from __future__ import annotations

import re
from collections.abc import Mapping

import httpx
import pytest
from cases import ANYTHING, COMPLETIONS, JSON_TYPE, Case, encode
from door import FrontDoor
from test_corpus import ask, check_answer

pytestmark = pytest.mark.slow

STREAMED = {"prompt": "What is 12 + 7?", "max_tokens": 4, "temperature": 0, "ignore_eos": True, "stream": True}
# `{id}` stands for the stream's own.
BAD_IDS = {
    "word": "x",
    "number": "5",
    "beyond-the-end": "{id}:0:999",
    "negative": "{id}:0:-1",
    "other-choice": "{id}:1:1",
    "more-parts": "{id}:0:1:2",
    "fewer-parts": "{id}:0",
    "leading-zero": "{id}:0:01",
    "space-inside": "{id}: 0:1",
    "other-stream": "cmpl-{zeros}:0:1",
    "traversal": "../../etc/passwd",
    "long": "{id}:0:" + "9" * 5000,
}


@pytest.fixture(scope="module")
def finished(door: FrontDoor) -> tuple[str, str]:
    """A stream that has come to its end: its id, and all that was sent."""
    answer = door.client.post(COMPLETIONS, json=STREAMED)
    found = re.search(r"^id: ([^:\n]+):", answer.text, re.MULTILINE)
    assert found, answer.text
    return found[1], answer.text


def resume(client: httpx.Client, stream_id: str, headers: Mapping[str, str]) -> httpx.Response:
    return client.get(f"/v1/streams/{stream_id}", headers=dict(headers))


@pytest.mark.parametrize("name", BAD_IDS)
def test_an_event_that_never_was_is_a_400(door: FrontDoor, finished: tuple[str, str], name: str) -> None:
    stream_id, text = finished
    event_id = BAD_IDS[name].replace("{id}", stream_id).replace("{zeros}", "0" * 32)
    case = Case(
        name=name,
        method="GET",
        path=f"/v1/streams/{stream_id}",
        headers={"last-event-id": event_id},
        code="invalid_value",
        param="last-event-id",
    )
    check_answer(case, ask(door.client, case))
    assert resume(door.client, stream_id, {}).text == text


def test_after_each_right_event_comes_all_that_followed_it(door: FrontDoor, finished: tuple[str, str]) -> None:
    stream_id, text = finished
    for event_id in re.findall(r"^id: (.+)$", text, re.MULTILINE):
        rest = resume(door.client, stream_id, {"last-event-id": event_id})
        assert rest.status_code == 200
        assert rest.text == text[text.index("\n\n", text.index(f"id: {event_id}\n")) + 2 :]


def test_an_event_without_a_name_is_the_beginning(door: FrontDoor, finished: tuple[str, str]) -> None:
    """The standard of server-sent events: an empty id is none."""
    stream_id, text = finished
    assert resume(door.client, stream_id, {"last-event-id": ""}).text == text


@pytest.mark.parametrize("method", ["POST", "DELETE", "OPTIONS"])
def test_streams_can_only_be_read(door: FrontDoor, finished: tuple[str, str], method: str) -> None:
    case = Case(
        name=method,
        method=method,
        path=f"/v1/streams/{finished[0]}",
        body=encode(STREAMED) if method == "POST" else b"",
        headers=JSON_TYPE,
        statuses=(405,),
        code="method_not_supported",
        allow="GET",
    )
    check_answer(case, ask(door.client, case))


def test_a_request_that_is_refused_begins_no_stream(door: FrontDoor) -> None:
    """The error is the answer's status, not an event of a stream."""
    case = Case(name="streamed", body=encode(STREAMED | {"temperature": 3}), code=ANYTHING, param="temperature")
    check_answer(case, ask(door.client, case))
