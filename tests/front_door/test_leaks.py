"""The looking glass itself: it sees what it is there to see, and nothing in plain words."""

from __future__ import annotations

import pytest
from leaks import MAX_ECHO_CHARACTERS, echoes_too_much, leaks_in

LEAKING = (
    "object at 0x7f3a2c19d0f0",
    "no such file: /tmp/orcinus-1f/engine",
    "can't connect to ipc:///x",
    'File "door.py", line 7',
    "Traceback (most recent call last)",
    "orcinus.engine.door refused it",
    "msgspec said no",
    "ValidationError: bad",
    "ChatRequest has no field",
    "version 0.22.0 is too old",
    "Python can't read it",
)
PLAIN = (
    "max_tokens must be at most 2147483647",
    "The model 'gpt-4' does not exist; GET /v1/models lists what is served.",
    "temperature: expected `float`, got `str`",
    "orcinus-tiny: Invalid URL (GET /v1/x). Please reduce the length of either.",
    "invalid_request_error application/json req_0123456789abcdef",
)


@pytest.mark.parametrize("text", LEAKING)
def test_a_leak_is_seen_unless_the_client_said_it(text: str) -> None:
    assert leaks_in(text, "")
    assert not leaks_in(text, f"a {text} b")


@pytest.mark.parametrize("text", PLAIN)
def test_plain_words_are_no_leak(text: str) -> None:
    assert leaks_in(text, "") == []


def test_an_echo_may_be_as_long_as_the_bound() -> None:
    sent = "".join(map(chr, range(0x4E00, 0x4E00 + 300)))
    assert not echoes_too_much(f"no {sent[:MAX_ECHO_CHARACTERS]}", sent)
    assert echoes_too_much(f"no {sent[50 : 51 + MAX_ECHO_CHARACTERS]} so", sent)
