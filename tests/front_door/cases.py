"""What a case of the corpus is, and the shapes that most cases share. The corpus itself is in the `cases_*` files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
JSON_TYPE = {"content-type": "application/json"}
INVALID = "invalid_request_error"
# A `code` or `param` that RELIABILITY.md leaves open.
ANYTHING = "<anything>"

PROMPT: dict[str, object] = {"prompt": "hi", "max_tokens": 1}
CONVERSATION: dict[str, object] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One request, and the answer that RELIABILITY.md §6.2 gives it.

    Args:
        name: says what is sent; unique in its category.
        path: written to the request line as it stands.
        statuses: any of these will do.
        param: of the error; an element or a field below it may be named as well.
        allow: a method that the header `Allow` has to name.
    """

    name: str
    body: bytes = field(default=b"", repr=False)
    method: str = "POST"
    path: str = COMPLETIONS
    headers: Mapping[str, str] = field(default_factory=lambda: JSON_TYPE)
    statuses: tuple[int, ...] = (400,)
    type: str = INVALID
    code: str | None = None
    param: str | None = None
    allow: str | None = None


def encode(value: object) -> bytes:
    """A body as clients write it; lone surrogates are sent as their escapes, NaN as Python writes it."""
    return json.dumps(value).encode()


def completion(name: str, change: Mapping[str, object], code: str | None, param: str | None) -> Case:
    """A completion request that is refused for one change."""
    return Case(name=name, body=encode(PROMPT | dict(change)), code=code, param=param)


def chat(name: str, change: Mapping[str, object], code: str | None, param: str | None) -> Case:
    """A chat request that is refused for one change."""
    return Case(name=name, path=CHAT, body=encode(CONVERSATION | dict(change)), code=code, param=param)


def served(name: str, change: Mapping[str, object], path: str = COMPLETIONS) -> Case:
    """A request that has to succeed."""
    base = CONVERSATION if path == CHAT else PROMPT
    return Case(name=name, path=path, body=encode(base | dict(change)), statuses=(200,))


def answered(name: str, path: str, value: object) -> Case:
    """A request with a body of its own that has to succeed."""
    return Case(name=name, path=path, body=encode(value), statuses=(200,))


def refused(name: str, path: str, value: object, code: str | None, param: str | None) -> Case:
    """A request with a body of its own that is a 400."""
    return Case(name=name, path=path, body=encode(value), code=code, param=param)


def for_both(make: Iterable[tuple[str, Mapping[str, object], str | None, str | None]]) -> list[Case]:
    """The same change refused by both endpoints."""
    rows = list(make)
    chats = [chat(f"chat-{name}", change, code, param) for name, change, code, param in rows]
    return [*(completion(*row) for row in rows), *chats]
