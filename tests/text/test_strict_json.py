"""Bodies that two readers could read differently, or that never end, are refused; all others pass untouched."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcinus.errors import InvalidRequest
from orcinus.text.strict_json import MAX_DEPTH, MAX_NODES, MAX_NUMBER_CHARACTERS, check_json

REFUSED = {
    "twice": b'{"a": 1, "b": 2, "a": 3}',
    "twice, spelled differently": b'{"a": 1, "\\u0061": 2}',
    "twice, deep inside": b'{"x": [{"y": {"k": 1, "k": 1}}]}',
    "deep lists": b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
    "deep objects": b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1),
    "very deep": b"[" * 100_000,
    "deep, and no end of it": b"[" * 16_000_000,
    "a long number": b'{"a": ' + b"1" * (MAX_NUMBER_CHARACTERS + 1) + b"}",
    "a long fraction": b'{"a": 0.' + b"0" * MAX_NUMBER_CHARACTERS + b"1}",
    "not UTF-8, where nobody reads": b'{"unknown": "\xff"}',
    "many values": b"[" + b"1," * (MAX_NODES + 1) + b"1]",
}


@pytest.mark.parametrize("why", REFUSED)
def test_it_is_refused(why: str) -> None:
    with pytest.raises(InvalidRequest):
        check_json(REFUSED[why])


def test_a_twin_is_named() -> None:
    with pytest.raises(InvalidRequest, match="'seed' is there twice") as refused:
        check_json(b'{"prompt": "x", "seed": 1, "seed": 2}')
    assert refused.value.param == "seed"


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": {"k": 1}, "b": {"k": 1}}',
        b'{"a": "{\\"k\\": 1, \\"k\\": 2}"}',
        b'{"a": "' + b"[" * 500 + b'"}',
        b'{"a": "' + b"7" * 500 + b'"}',
        b'{"a": "\\\\", "b": "[[\\""}',
        b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
        b'{"a": ' + b"1" * MAX_NUMBER_CHARACTERS + b"}",
        b"",
        b"not json",
        b'{"unclosed',
        # A string that never ends, read once: again and again from each of its quotes would take for ever.
        pytest.param(b'{"prompt": ' + b'"\\' * 8_000_000, id="quotes and backslashes"),
    ],
)
def test_it_passes(body: bytes) -> None:
    """What isn't JSON passes as well: the decoder refuses it, and says why."""
    check_json(body)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(values, st.booleans())
def test_whatever_an_encoder_writes_passes(value: Any, ascii_only: bool) -> None:
    check_json(json.dumps(value, ensure_ascii=ascii_only).encode())
    check_json(msgspec.json.encode({"value": value}))
