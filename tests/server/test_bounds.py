"""Nothing that a client may send is without an upper bound, and the document states each (RELIABILITY.md, S10)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from orcinus.core.bounds import Interval
from orcinus.core.request import SamplingParams
from orcinus.errors import InvalidRequest
from orcinus.server.openapi import OPERATIONS, openapi_document
from orcinus.server.protocol import ChatRequest, CompletionRequest, parse


def unbounded(kind: inspect.Type, place: str, seen: frozenset[type] = frozenset()) -> Iterator[str]:
    """The places in a type that any amount of data fits in."""
    interval = Interval.of(kind)
    if interval is not None and not (abs(interval.low) < float("inf") and interval.high < float("inf")):
        yield place
    match kind:
        case inspect.UnionType():
            for one in kind.types:
                yield from unbounded(one, place, seen)
        case inspect.ListType():
            # What is refused whatever it holds is bounded by its number.
            if not isinstance(kind.item_type, inspect.CustomType):
                yield from unbounded(kind.item_type, place + "[]", seen)
        case inspect.DictType():
            yield from unbounded(kind.key_type, place + "{key}", seen)
            yield from unbounded(kind.value_type, place + "{}", seen)
        case inspect.StructType() if kind.cls not in seen:
            for field in kind.fields:
                yield from unbounded(field.type, f"{place}.{field.name}", seen | {kind.cls})
        case inspect.AnyType() | inspect.RawType():
            yield place


def test_the_search_finds_what_has_no_bound() -> None:
    class Loose(msgspec.Struct):
        number: int | None
        texts: list[str]
        anything: Any

    places = set(unbounded(inspect.type_info(Loose), "Loose"))
    assert places == {"Loose.number", "Loose.texts", "Loose.texts[]", "Loose.anything"}


@pytest.mark.parametrize("request_type", [operation.request for operation in OPERATIONS], ids=lambda t: t.__name__)
def test_every_field_of_every_request_is_bounded(request_type: type) -> None:
    assert list(unbounded(inspect.type_info(request_type), request_type.__name__)) == []


def test_the_document_states_the_bounds_that_are_checked() -> None:
    schema = openapi_document("1")["components"]["schemas"]["CompletionRequest"]["properties"]
    assert {"minimum": 1, "maximum": 128, "type": "integer"} in schema["n"]["anyOf"]
    assert {"exclusiveMinimum": 0, "maximum": 1, "type": "number"} in schema["top_p"]["anyOf"]
    assert any(one.get("maxItems") == 16 for one in schema["stop"]["anyOf"])


def test_a_value_that_is_none_of_the_choices_is_told_them() -> None:
    body = b'{"messages": [{"role": "user", "content": "x"}, {"role": "robot", "content": "x"}]}'
    with pytest.raises(InvalidRequest) as refusal:
        parse(body, msgspec.json.Decoder(ChatRequest))
    assert refusal.value.message == "messages[1].role must be one of assistant, developer, system, tool, user"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("n", 129, "n must be at most 128"),
        ("top_p", 0, "top_p must be more than 0.0"),
        ("stop", ["x"] * 17, "stop must have at most 16 entries"),
        ("stop", ["x", ""], "stop[1] must have at least 1 characters"),
        ("cache_salt", "tenant\n", "cache_salt: expected `str` matching regex '^[A-Za-z0-9._-]{0,64}"),
    ],
)
def test_a_refusal_names_field_and_bound(name: str, value: object, message: str) -> None:
    body = msgspec.json.encode({"prompt": "x", name: value})
    with pytest.raises(InvalidRequest) as refusal:
        parse(body, msgspec.json.Decoder(CompletionRequest))
    assert refusal.value.message.startswith(message)
    assert (refusal.value.param, refusal.value.code) == (name, "invalid_value")


def test_sampling_is_bounded_alike_from_python_and_over_http() -> None:
    ours = {field.name: field.type for field in inspect.type_info(SamplingParams).fields}  # type: ignore[union-attr]
    theirs = {field.name: field.type for field in inspect.type_info(CompletionRequest).fields}  # type: ignore[union-attr]
    # `-1` for top_k and 0 for max_tokens are words that the server translates.
    for name in (ours.keys() & theirs.keys()) - {"top_k", "max_tokens"}:
        assert _without_none(ours[name]) == _without_none(theirs[name]), name


def _without_none(kind: inspect.Type) -> set[str]:
    kinds = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    return {str(one) for one in kinds if not isinstance(one, inspect.NoneType)}
