"""What JSON may not do here although parsers let it: name a key twice, nest without end, write endless numbers (S9).

Two readers of one body that keep different duplicates see different requests, so such a body is nobody's request.
"""

from __future__ import annotations

import json
import re

from orcinus.errors import InvalidRequest

MAX_DEPTH = 64
MAX_NUMBER_CHARACTERS = 64
MAX_NODES = 1_000_000
_MAX_ECHO_CHARACTERS = 100

# Nothing is read twice: possessive, and a string without an end goes to the end.
_STRING = re.compile(rb'"(?>[^"\\]+|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_LONG_NUMBER = re.compile(rb"[-+.0-9eE]{%d,}" % (MAX_NUMBER_CHARACTERS + 1))
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_OPENING = frozenset(b"[{")


def check_json(body: bytes) -> None:
    """Look for what the decoder would let pass; whether it is JSON at all is the decoder's question.

    Raises:
        InvalidRequest: it does one of these things; it names which.
    """
    try:
        # The decoder skips what it doesn't know unread.
        body.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest("the body is not UTF-8") from error
    outside = _STRING.sub(b'""', body)
    if _LONG_NUMBER.search(outside):
        raise InvalidRequest(f"the body holds a number of more than {MAX_NUMBER_CHARACTERS} characters")
    if outside.count(b",") + outside.count(b":") > MAX_NODES:
        raise InvalidRequest(f"the body holds more than {MAX_NODES} values")
    if _is_deep(outside):
        raise InvalidRequest(f"the JSON body is nested too deeply; at most {MAX_DEPTH} levels are read")
    if outside.count(b":") > 1:
        _check_keys(body)


def _is_deep(outside: bytes) -> bool:
    """Whether a bracket lies too deep, strings left out."""
    depth = 0
    for bracket in outside.translate(None, _NO_BRACKETS):
        depth += 1 if bracket in _OPENING else -1
        if depth > MAX_DEPTH:
            return True
    return False


def _check_keys(body: bytes) -> None:
    try:
        json.loads(body, object_pairs_hook=_without_twins)
    except (ValueError, RecursionError):
        # The decoder says what is wrong with it, better than this parser.
        return


def _without_twins(pairs: list[tuple[str, object]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise InvalidRequest(
                f"the key {key[:_MAX_ECHO_CHARACTERS]!r} is there twice", param=key[:_MAX_ECHO_CHARACTERS]
            )
        seen.add(key)
