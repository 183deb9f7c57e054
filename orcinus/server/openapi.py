"""The OpenAPI document, made of the structs that decode requests and encode answers, so that it can't say otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from orcinus.server.errors import ErrorEnvelope
from orcinus.server.explanations import EXPLAIN_PATH
from orcinus.server.live import LIVE_PATH
from orcinus.server.page_api import PAGE_PATHS, media_type_of
from orcinus.server.protocol import ChatRequest, CompletionRequest
from orcinus.server.responses import ChatReply, CompletionReply
from orcinus.server.text_api import (
    DETOKENIZE_PATHS,
    TOKENIZE_PATHS,
    DetokenizeReply,
    DetokenizeRequest,
    TokenizeReply,
    TokenizeRequest,
)
from orcinus.server.vector_api import CLASSIFY_PATHS, EMBEDDING_PATHS, RERANK_PATHS, SCORE_PATHS
from orcinus.server.vector_protocol import (
    ClassifyReply,
    ClassifyRequest,
    EmbeddingReply,
    EmbeddingRequest,
    RerankReply,
    RerankRequest,
    ScoreReply,
    ScoreRequest,
)

_JSON = "application/json"
_REFERENCES = "#/components/schemas/{name}"
# Besides 200: what any POST may answer, by the table of errors.py.
_REFUSALS = {
    "400": "malformed, out of range, or not served; `param` names the field",
    "401": "no key, or a wrong one",
    "404": "an unknown model",
    "413": "the body is too large",
    "415": "not `application/json`",
    "429": "more work than can be begun in time, or before a deadline; `retry-after` says when to come again",
    "500": "this request failed; no other was touched",
    "503": "no engine serves at the moment; `retry-after` says when to come again",
    "504": "the deadline of `x-request-timeout` passed",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One POST endpoint. `streams`: it may answer in server-sent events."""

    paths: Sequence[str]
    summary: str
    request: type
    reply: type
    streams: bool = False


OPERATIONS = (
    Operation(("/v1/completions",), "Continue a text or token ids", CompletionRequest, CompletionReply, streams=True),
    Operation(("/v1/chat/completions",), "Answer a conversation", ChatRequest, ChatReply, streams=True),
    Operation(EMBEDDING_PATHS, "Texts as vectors", EmbeddingRequest, EmbeddingReply),
    Operation(CLASSIFY_PATHS, "Probabilities of the model's labels", ClassifyRequest, ClassifyReply),
    Operation(SCORE_PATHS, "How well texts belong together", ScoreRequest, ScoreReply),
    Operation(RERANK_PATHS, "Documents by how well they fit a query", RerankRequest, RerankReply),
    Operation(TOKENIZE_PATHS, "Token ids of a text or a conversation", TokenizeRequest, TokenizeReply),
    Operation(DETOKENIZE_PATHS, "The text of token ids", DetokenizeRequest, DetokenizeReply),
)


@dataclass(frozen=True, slots=True)
class Resource:
    """One GET endpoint, and what it may answer besides 200."""

    path: str
    summary: str
    refusals: tuple[str, ...] = ("401",)
    media: str = "application/json"


RESOURCES = (
    Resource("/v1/models", "What is served"),
    Resource("/v1/models/{model}", "One of the names", ("401", "404")),
    Resource(
        "/v1/streams/{stream_id}",
        "Go on with a stream after `Last-Event-ID`",
        ("400", "401", "404"),
        "text/event-stream",
    ),
    Resource(EXPLAIN_PATH, "Where the time of a response went", ("401", "404")),
    Resource(LIVE_PATH, "What goes on, for the page", ("401", "429"), "text/event-stream"),
    Resource("/health", "Engines live, or another one is on its way", ("503",), "text/plain"),
    Resource("/ready", "A request would be begun now", ("503",), "text/plain"),
    Resource("/load", "The state of the queues"),
    Resource("/metrics", "For Prometheus", ("401",), "text/plain"),
    Resource("/version", "Of this server"),
    Resource("/openapi.json", "This document"),
    *(Resource(path, "A file of the page", (), media_type_of(path)) for path in PAGE_PATHS),
)


def openapi_document(version: str) -> dict[str, Any]:
    """The whole document, OpenAPI 3.1."""
    types = [ErrorEnvelope, *(t for operation in OPERATIONS for t in (operation.request, operation.reply))]
    schemas, components = msgspec.json.schema_components(types, schema_hook=_any, ref_template=_REFERENCES)
    by_type = dict(zip(types, schemas, strict=True))
    paths = {path: {"post": _post(operation, by_type)} for operation in OPERATIONS for path in operation.paths}
    gets = {resource.path: {"get": _get(resource, by_type)} for resource in RESOURCES}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Orcinus", "version": version, "description": "An OpenAI-compatible endpoint."},
        "paths": paths | gets,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _post(operation: Operation, schemas: Mapping[type, dict[str, Any]]) -> dict[str, Any]:
    content = {"application/json": {"schema": schemas[operation.reply]}}
    if operation.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    timeout = {
        "name": "x-request-timeout",
        "in": "header",
        "description": "seconds after which nobody wants the answer",
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 86_400},
    }
    return {
        "summary": operation.summary,
        "parameters": [timeout] if operation.streams else [],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schemas[operation.request]}},
        },
        "responses": {"200": {"description": "the answer", "content": content}} | _errors(_REFUSALS, schemas),
    }


def _get(resource: Resource, schemas: Mapping[type, dict[str, Any]]) -> dict[str, Any]:
    names = [part[1:-1] for part in resource.path.split("/") if part.startswith("{")]
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
    ]
    if "stream_id" in names:
        parameters.append({"name": "last-event-id", "in": "header", "schema": {"type": "string"}})
    content: dict[str, Any] = {resource.media: {"schema": {} if resource.media == _JSON else {"type": "string"}}}
    refusals = {status: _REFUSALS[status] for status in resource.refusals}
    return {
        "summary": resource.summary,
        "parameters": parameters,
        "responses": {"200": {"description": "the answer", "content": content}} | _errors(refusals, schemas),
    }


def _any(kind: type) -> dict[str, Any]:
    """For values that are only refused: anything may stand there."""
    assert kind is object, f"no schema is known for {kind}"
    return {"description": "what is refused, whatever it holds, unless it is empty"}


def _errors(statuses: Mapping[str, str], schemas: Mapping[type, dict[str, Any]]) -> dict[str, Any]:
    content = {"application/json": {"schema": schemas[ErrorEnvelope]}}
    return {status: {"description": text, "content": content} for status, text in statuses.items()}
