"""What the HTTP fuzzer sends: requests made from an OpenAPI document, and changed on every level from JSON to the wire.

Each request is a function of seed and number alone, so that one number brings it back.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote

from fuzzing.mutations import damage, encode, mutate, restrained, text
from fuzzing.words import ALWAYS, ECHO, HEADERS, METHODS, SENSIBLE, SMALL, TEXTS, Json


class Kind(StrEnum):
    """How far a request is from a good one."""

    VALID = "valid"
    JSON = "json"
    BODY = "body bytes"
    HEADER = "headers"
    GET = "resources"
    WIRE = "wire"
    HANG_UP = "hang-up"


WEIGHTS = {Kind.VALID: 34, Kind.JSON: 40, Kind.BODY: 10, Kind.HEADER: 6, Kind.GET: 4, Kind.WIRE: 4, Kind.HANG_UP: 2}
MAX_BODY_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Shot:
    """One request, as the bytes that are sent.

    Args:
        is_framed: one request of known length, so that an answer must come on the same connection.
        is_timed: it says after which time it is not wanted any more.
    """

    number: int
    kind: Kind
    method: str
    path: str
    wire: bytes
    is_framed: bool
    is_timed: bool


class Fuzzer:
    """Makes requests for the operations of an OpenAPI document."""

    def __init__(self, document: Mapping[str, Json], host: str, seed: int) -> None:
        self._schemas: dict[str, Json] = document["components"]["schemas"]
        self._host = host
        self._seed = seed
        paths: dict[str, Json] = document["paths"]
        self._gets = sorted(path for path, item in paths.items() if "get" in item)
        self._bodies = {
            path: item["post"]["requestBody"]["content"]["application/json"]["schema"]
            for path, item in sorted(paths.items())
            if "post" in item
        }
        # Both ways of generating are most of the surface.
        self._posts = [*self._bodies, *(path for path in self._bodies if path.endswith("completions"))] * 2
        self._posts += [path for path in self._bodies if path.endswith("completions")] * 4

    def shot(self, number: int) -> Shot:
        """The request of this number."""
        rng = random.Random(f"{self._seed}:{number}")
        kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        if kind is Kind.GET:
            return self._get(rng, number)
        path = rng.choice(self._posts)
        document = self._document(rng, path)
        if kind is Kind.JSON:
            for _ in range(rng.choice((1, 1, 2, 3))):
                document = mutate(rng, document)
            document = restrained(rng, document)
        body = encode(rng, document, is_strange=kind is Kind.JSON)
        if kind is Kind.BODY:
            body = damage(rng, body)
        body = body[:MAX_BODY_BYTES]
        return self._post(rng, number, kind, path, body)

    def _post(self, rng: random.Random, number: int, kind: Kind, path: str, body: bytes) -> Shot:
        method, headers = "POST", {"host": self._host, "content-type": "application/json"}
        if kind is Kind.HEADER:
            method = rng.choice(METHODS) if rng.random() < 0.3 else method
            for name, values in rng.sample(HEADERS, rng.choice((1, 1, 2, 4))):
                headers[name] = rng.choice(values)
            headers |= {f"x-{n}": "v" * rng.choice((1, 200)) for n in range(rng.choice((0, 0, 0, 20)))}
        is_timed = "x-request-timeout" in headers
        wire = framed(rng, method, path, headers, body)
        if kind is Kind.WIRE:
            wire = damage(rng, wire)
        return Shot(number, kind, method, path, wire, kind is not Kind.WIRE, is_timed)

    def _get(self, rng: random.Random, number: int) -> Shot:
        """Of something that is there, or nearly."""
        path = rng.choice(self._gets)
        while "{" in path:
            head, _, rest = path.partition("{")
            segment = rng.choice((*TEXTS, "orcinus-tiny", "cmpl-" + "0" * 32, ECHO * 300, text(rng)))
            path = head + quote(segment.encode("utf-8", "surrogatepass")) + rest.partition("}")[2]
        if rng.random() < 0.3:
            path += rng.choice(("/", "//", "?a=b", "?%zz", "#f", "%00", "/..", ";x", "/" + ECHO.encode().hex() * 80))
        headers = {"host": self._host}
        if rng.random() < 0.3:
            headers["last-event-id"] = rng.choice(("", "x", "cmpl-0:0:1", "a:0:-1"))
        method = "GET" if rng.random() < 0.85 else rng.choice(METHODS)
        wire = framed(rng, method, path, headers, b"")
        # What goes on has no end.
        kind = Kind.HANG_UP if path.startswith("/v1/live") else Kind.GET
        return Shot(number, kind, method, path, wire, is_framed=True, is_timed=False)

    def _document(self, rng: random.Random, path: str) -> Json:
        """A body that should be served, mostly."""
        document = self._value(rng, self._bodies[path], "")
        if path.endswith("completions"):
            document["max_tokens"] = rng.choice(SMALL)
            document.pop("max_completion_tokens", None)
        if not document.get("stream"):
            document.pop("stream_options", None)
        return document

    def _value(self, rng: random.Random, schema: Json, name: str) -> Json:
        if name in SENSIBLE:
            return rng.choice(SENSIBLE[name])
        schema = self._resolved(rng, schema)
        if "const" in schema or "enum" in schema:
            return rng.choice(schema.get("enum") or [schema["const"]])
        match schema.get("type"):
            case "object":
                return self._object(rng, schema)
            case "array":
                return [self._value(rng, schema.get("items", {}), "") for _ in range(rng.choice((1, 1, 2, 3)))]
            case "string":
                return text(rng)
            case "integer":
                return rng.choice((0, 1, 2))
            case "number":
                return rng.choice((0, 0.5, 1))
            case "boolean":
                return rng.random() < 0.5
        return None

    def _resolved(self, rng: random.Random, schema: Json) -> Json:
        while "$ref" in schema or "anyOf" in schema:
            schema = (
                self._schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else rng.choice(schema["anyOf"])
            )
        return schema

    def _object(self, rng: random.Random, schema: Json) -> Json:
        required, properties = schema.get("required", ()), schema.get("properties", {})
        return {
            name: self._value(rng, each, name)
            for name, each in properties.items()
            if name in required or name in ALWAYS or rng.random() < 0.12
        }


def framed(rng: random.Random, method: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """One HTTP/1.1 request; the body with its length, or in chunks."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    if body and rng.random() < 0.1:
        lines.append("transfer-encoding: chunked")
        body = chunked(rng, body)
    elif body:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode("latin-1", "replace") + body


def chunked(rng: random.Random, body: bytes) -> bytes:
    """In pieces of any size."""
    pieces = []
    while body:
        size = rng.randint(1, max(1, len(body)))
        pieces.append(b"%x\r\n%b\r\n" % (size, body[:size]))
        body = body[size:]
    return b"".join((*pieces, b"0\r\n\r\n"))
