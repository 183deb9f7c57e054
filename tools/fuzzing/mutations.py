"""Changes to a request's JSON and to its bytes."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable

from fuzzing.words import ECHO, INTEGERS, NUMBERS, SENSIBLE, TEXTS, Json

MAX_TEXTS = 32
TEXT_LISTS = ("input", "documents", "text_1", "text_2", "prompt")


def text(rng: random.Random) -> str:
    """Something somebody might type, or might not."""
    if rng.random() < 0.7:
        return "".join(rng.choices(string.ascii_letters + "   .,?", k=rng.randint(1, 40)))
    if rng.random() < 0.5:
        return rng.choice(TEXTS)
    return "".join(
        chr(rng.choice((rng.randrange(0x20, 0x250), rng.randrange(0x10FFFF)))) for _ in range(rng.randint(1, 30))
    )


def mutate(rng: random.Random, document: Json) -> Json:
    """The document with one change somewhere in it."""
    if isinstance(document, dict) and document and rng.random() < 0.85:
        key = rng.choice(list(document))
        if rng.random() < 0.25:
            return _changed_keys(rng, document, key)
        return document | {key: mutate(rng, document[key])}
    if isinstance(document, list) and document and rng.random() < 0.6:
        place = rng.randrange(len(document))
        if rng.random() < 0.3:
            return document * (rng.choice((0, 2, 40, 300)) if _is_small(document) else 2)
        return [*document[:place], mutate(rng, document[place]), *document[place + 1 :]]
    return strange(rng, document)


def _is_small(values: list[Json]) -> bool:
    """Lists of lists of lists grow fast, and what takes this client long to make would count as the server's time."""
    return len(values) <= 8 and not any(isinstance(value, (list, dict)) or len(str(value)) > 100 for value in values)


def _changed_keys(rng: random.Random, document: dict[str, Json], key: str) -> Json:
    if rng.random() < 0.5:
        return {name: value for name, value in document.items() if name != key}
    name = rng.choice((*SENSIBLE, text(rng), key.upper(), ECHO * 200))
    return document | {name: strange(rng, None)}


def strange(rng: random.Random, value: Json) -> Json:
    """Another value in this one's place."""
    makers: tuple[Callable[[], Json], ...] = (
        lambda: rng.choice(INTEGERS),
        lambda: rng.choice(NUMBERS),
        lambda: rng.choice(TEXTS),
        lambda: text(rng),
        lambda: ECHO * rng.choice((101, 3000)),
        lambda: rng.choice((None, True, False, [], {}, [[]], [None], {"": None})),
        lambda: deep(rng.choice((5, 63, 64, 65, 500))),
        lambda: [value] * (rng.choice((1, 2, 300)) if _is_small([value]) else 2),
        lambda: {"type": value, "text": value},
        lambda: str(value),
        lambda: [rng.choice(INTEGERS) for _ in range(rng.choice((1, 3, 400)))],
    )
    return rng.choice(makers)()


def deep(levels: int) -> Json:
    """So many brackets around nothing."""
    document: Json = 0
    for level in range(levels):
        document = [document] if level % 2 else {"a": document}
    return document


def restrained(rng: random.Random, document: Json) -> Json:
    """Mostly without what would only keep the engine busy: the front door is in question here."""
    if not isinstance(document, dict):
        return document
    document = {name: value[:MAX_TEXTS] if _is_long(name, value) else value for name, value in document.items()}
    if not {"prompt", "messages"} & document.keys() or rng.random() < 0.1:
        return document
    limits = [document.get(name) for name in ("max_completion_tokens", "max_tokens")]
    asked = next((limit for limit in limits if limit is not None), None)
    if asked is None or (isinstance(asked, int) and 16 < asked < 4096):
        return {**document, "max_tokens": 2}
    return document


def _is_long(name: str, value: Json) -> bool:
    """Hundreds of texts are work that was asked for, and may take its time."""
    return name in TEXT_LISTS and isinstance(value, list) and MAX_TEXTS < len(value) <= 2048


def encode(rng: random.Random, document: Json, *, is_strange: bool) -> bytes:
    """As JSON, sometimes with what only some parsers take."""
    body = json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if not is_strange or rng.random() < 0.9:
        return body
    edits: tuple[Callable[[], bytes], ...] = (
        lambda: body.replace(b"1", rng.choice((b"NaN", b"-Infinity", b"1e999", b"01", b"+1", b"1" * 400)), 1),
        lambda: body.replace(b"{", b'{"n": 1, "n": 2, ', 1),
        lambda: b"\xef\xbb\xbf" + body,
        lambda: body.decode("utf-8", "replace").encode("utf-16"),
        lambda: body + rng.choice((b"\0", b"{}", b" " * 5000)),
        lambda: b"[" * rng.choice((64, 65, 100_000)) + body,
        lambda: body.replace(b'"', b"'"),
        lambda: b'{"prompt": ' + b'"\\' * rng.choice((100, 5_000)),
        lambda: body.replace(b":", rng.choice((b"=", b" :\t\r\n", b":/*c*/")), 1),
        lambda: b'{"prompt": "' + b"a " * rng.choice((600, 20_000, 400_000)) + b'"}',
    )
    return rng.choice(edits)()


def damage(rng: random.Random, wire: bytes) -> bytes:
    """A few bytes flipped, dropped, doubled or put in; or the end cut off."""
    damaged = bytearray(wire)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        place = rng.randrange(len(damaged)) if damaged else 0
        match rng.randrange(6):
            case 0 if damaged:
                damaged[place] ^= 1 << rng.randrange(8)
            case 1 if damaged:
                damaged[place] = rng.choice((0, 10, 13, 32, 34, 58, 92, 127, 128, 255))
            case 2:
                del damaged[place : place + rng.choice((1, 2, 10))]
            case 3:
                damaged[place:place] = rng.choice((b"\0", b"\r\n", b'"', b"\\u", b"{", b"\xc0\x80", b"9" * 30, b","))
            case 4:
                damaged[place:place] = damaged[place : place + rng.randint(1, 40)]
            case 5 if rng.random() < 0.3:
                del damaged[place:]
    return bytes(damaged)
