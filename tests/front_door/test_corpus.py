"""Every case of the corpus against a real server: the right status, OpenAI's shape, nothing leaked, nobody harmed."""

from __future__ import annotations

import json
import re
from urllib.parse import unquote

import cases_controls
import cases_json
import cases_messages
import cases_others
import cases_prompts
import cases_routes
import cases_sampling
import cases_structured
import httpx
import pytest
from cases import ANYTHING, Case
from door import FrontDoor
from leaks import MAX_ANSWER_BYTES, echoes_too_much, leaks_in

pytestmark = pytest.mark.slow

CATEGORIES = {
    "controls": cases_controls.CASES,
    "json": cases_json.CASES,
    "sampling": cases_sampling.CASES,
    "prompts": cases_prompts.CASES,
    "messages": cases_messages.CASES,
    "structured": cases_structured.CASES,
    "others": cases_others.CASES,
    "routes": cases_routes.CASES,
}
# After so many cases, and at the end of each category, a normal request must be answered as at the beginning.
CHECKED_EVERY = 10
CORPUS = [
    pytest.param(case, place % CHECKED_EVERY == 0 or place == len(cases), id=f"{name}/{case.name}")
    for name, cases in CATEGORIES.items()
    for place, case in enumerate(cases, 1)
]
# RELIABILITY.md §4 and issue 4.
LEAST_CASES = 300


@pytest.mark.parametrize(("case", "is_checked"), CORPUS)
def test_case(door: FrontDoor, case: Case, is_checked: bool) -> None:
    check_answer(case, ask(door.client, case))
    if is_checked:
        door.check_unharmed()


def test_the_corpus_is_large_and_its_names_are_unique() -> None:
    assert len(CORPUS) >= LEAST_CASES
    assert len({parameter.id for parameter in CORPUS}) == len(CORPUS)


def ask(client: httpx.Client, case: Case) -> httpx.Response:
    """Send a case, its path as it stands."""
    request = client.build_request(case.method, "/", content=case.body, headers=dict(case.headers))
    request.extensions["target"] = case.path.encode("latin-1")
    return client.send(request)


def check_answer(case: Case, answer: httpx.Response) -> None:
    """Against RELIABILITY.md §6.2 and S20."""
    assert answer.status_code in case.statuses, (answer.status_code, answer.text[:500])
    assert re.fullmatch(r"req_[0-9a-f]{32}", answer.headers["x-request-id"])
    assert "server" not in answer.headers
    assert "access-control-allow-origin" not in answer.headers
    assert case.allow is None or case.allow in answer.headers["allow"].split(", ")
    if answer.status_code != 200 and case.method != "HEAD":
        check_shape(case, answer)
        check_secrecy(case, answer)


def check_shape(case: Case, answer: httpx.Response) -> None:
    """OpenAI's: exactly one object, with four fields of the right types."""
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert list(body) == ["error"]
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert isinstance(error["message"], str)
    assert error["message"]
    assert error["type"] == case.type
    assert case.code in (error["code"], ANYTHING), error
    assert case.param == ANYTHING or names(error["param"], case.param), error


def names(given: object, expected: str | None) -> bool:
    """Whether a `param` is the expected one, or within it."""
    if expected is None or not isinstance(given, str):
        return given is expected
    return given == expected or given.startswith((f"{expected}.", f"{expected}["))


def check_secrecy(case: Case, answer: httpx.Response) -> None:
    """Nothing of ours, and little of theirs."""
    error, sent = answer.json()["error"], sent_text(case)
    assert leaks_in(f"{answer.text} {answer.headers}", sent) == []
    assert len(answer.content) <= MAX_ANSWER_BYTES
    assert not echoes_too_much(error["message"], sent)
    assert not echoes_too_much(error["param"] or "", sent)


def sent_text(case: Case) -> str:
    """Everything that a case says, as text; what is written in escapes is there in both writings."""
    sent = "\n".join((case.body.decode(errors="replace"), case.path, unquote(case.path), *case.headers.values()))
    try:
        return f"{sent}\n{json.dumps(json.loads(case.body), ensure_ascii=False)}"
    except (ValueError, RecursionError):
        return sent
