"""Embeddings, classes, scores and rankings over HTTP."""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from orcinus.core.request import Request as EngineRequest
from orcinus.errors import InvalidRequest
from orcinus.server.answers import ProgressStream
from orcinus.server.bounds import MAX_INPUTS
from orcinus.server.delivery import run_while_connected
from orcinus.server.intake import Intake, json_response
from orcinus.server.prompts import Prompts
from orcinus.server.vector_protocol import (
    ClassData,
    ClassifyReply,
    ClassifyRequest,
    Document,
    EmbeddingData,
    EmbeddingReply,
    EmbeddingRequest,
    RankedDocument,
    RerankReply,
    RerankRequest,
    ScoreData,
    ScoreReply,
    ScoreRequest,
    VectorUsage,
)
from orcinus.text.jobs import EncodePairs, TokenLists
from orcinus.vectors import (
    Vector,
    VectorCollector,
    check_scorable,
    embedding,
    likeliest,
    pair_up,
    probabilities,
    similarity,
)

EMBEDDING_PATHS = ("/v1/embeddings",)
CLASSIFY_PATHS = ("/classify", "/v1/classify")
SCORE_PATHS = ("/score", "/v1/score")
RERANK_PATHS = ("/rerank", "/v1/rerank", "/v2/rerank")
# Inputs of one HTTP request in the engine at a time: a long list leaves room for others.
WINDOW = 64

Pair = tuple[str, str]


class Input(NamedTuple):
    """Token ids, and where the second text of a pair begins."""

    tokens: Sequence[int]
    second_segment: int = 0


class VectorAnswer:
    """ASGI response: waits for the vectors of all inputs, then sends what `reply` makes of them. A client that goes
    away ends the work."""

    def __init__(self, intake: Intake, requests: Sequence[EngineRequest], reply: Callable[[list[Vector]], object]):
        self._intake = intake
        self._requests = requests
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, unless the client goes away first.

        Raises:
            OrcinusError: nothing has been sent then.
        """
        await run_while_connected(receive, self._respond(scope, receive, send))

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        window = min(WINDOW, self._intake.context.limits.max_live)
        # Asked once: what has begun is not refused half-way.
        self._intake.check_room(min(window, len(self._requests)))
        self._intake.context.client.check_room(self._requests[:window])
        vectors: list[Vector] = []
        for start in range(0, len(self._requests), window):
            vectors += await self._vectors(self._requests[start : start + window])
        await json_response(self._reply(vectors))(scope, receive, send)

    async def _vectors(self, requests: Sequence[EngineRequest]) -> list[Vector]:
        arrival = asyncio.Event()
        streams: list[ProgressStream] = []
        collectors = [VectorCollector(request) for request in requests]
        try:
            for request in requests:
                streams.append(self._intake.context.client.submit(request, arrival))
            while not all(collector.finished for collector in collectors):
                arrival.clear()
                self._take(streams, collectors)
                if not all(collector.finished for collector in collectors):
                    await arrival.wait()
        finally:
            for stream in streams:
                stream.close()
        self._intake.metrics.prompt_tokens.inc(sum(request.num_prompt_tokens for request in requests))
        return [collector.vector for collector in collectors]

    def _take(self, streams: Sequence[ProgressStream], collectors: Sequence[VectorCollector]) -> None:
        now = self._intake.context.clock.now()
        for stream, collector in zip(streams, collectors, strict=True):
            for progress in stream.arrived():
                if progress.finish_reason is not None:
                    self._intake.metrics.ended[progress.finish_reason.value].inc()
                collector.take(progress, now)
                self._intake.metrics.latency.observe(now - collector.request.arrived_at)


class VectorApi:
    """The endpoints."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._prompts = Prompts(intake)
        self._embedding_decoder = msgspec.json.Decoder(EmbeddingRequest)
        self._classify_decoder = msgspec.json.Decoder(ClassifyRequest)
        self._score_decoder = msgspec.json.Decoder(ScoreRequest)
        self._rerank_decoder = msgspec.json.Decoder(RerankRequest)

    async def embeddings(self, request: Request) -> VectorAnswer:
        """POST /v1/embeddings."""
        self._intake.check_load()
        asked = await self._intake.parse(request, self._embedding_decoder)
        model = self._intake.model_name(asked.model)
        hidden_size = self._intake.context.door.engine.hidden_size
        if asked.dimensions is not None and asked.dimensions > hidden_size:
            raise InvalidRequest(
                f"dimensions is {asked.dimensions}; this model's embeddings have {hidden_size}",
                param="dimensions",
                code="invalid_value",
            )
        requests = self._admit("embd-", await self._inputs(request, asked.input), classify=False)

        def reply(vectors: list[Vector]) -> EmbeddingReply:
            embeddings = [embedding(vector, asked.dimensions) for vector in vectors]
            written = [_base64(v) if asked.encoding_format == "base64" else v.tolist() for v in embeddings]
            data = [EmbeddingData(index, one) for index, one in enumerate(written)]
            return EmbeddingReply(model=model, data=data, usage=_usage(requests))

        return VectorAnswer(self._intake, requests, reply)

    async def classify(self, request: Request) -> VectorAnswer:
        """POST /classify."""
        self._intake.check_load()
        asked = await self._intake.parse(request, self._classify_decoder)
        model = self._intake.model_name(asked.model)
        requests = self._admit("classify-", await self._inputs(request, asked.input), classify=True)
        labels = self._intake.context.door.engine.labels

        def reply(vectors: list[Vector]) -> ClassifyReply:
            shares = [probabilities(vector) for vector in vectors]
            data = [ClassData(i, likeliest(probs, labels), probs, len(probs)) for i, probs in enumerate(shares)]
            usage = _usage(requests)
            return ClassifyReply(model=model, data=data, usage=usage, id=_id("classify-"), created=int(time.time()))

        return VectorAnswer(self._intake, requests, reply)

    async def score(self, request: Request) -> VectorAnswer:
        """POST /score."""
        self._intake.check_load()
        asked = await self._intake.parse(request, self._score_decoder)
        model = self._intake.model_name(asked.model)
        requests, score = await self._score_pairs(request, "score-", pair_up(asked.text_1, asked.text_2))

        def reply(vectors: list[Vector]) -> ScoreReply:
            data = [ScoreData(index, value) for index, value in enumerate(score(vectors))]
            usage = _usage(requests)
            return ScoreReply(model=model, data=data, usage=usage, id=_id("score-"), created=int(time.time()))

        return VectorAnswer(self._intake, requests, reply)

    async def rerank(self, request: Request) -> VectorAnswer:
        """POST /rerank."""
        self._intake.check_load()
        asked = await self._intake.parse(request, self._rerank_decoder)
        model = self._intake.model_name(asked.model)
        documents = [one if isinstance(one, str) else one.text for one in asked.documents]
        requests, score = await self._score_pairs(
            request, "rerank-", [(asked.query, document) for document in documents]
        )

        def reply(vectors: list[Vector]) -> RerankReply:
            scores = score(vectors)
            order = sorted(range(len(scores)), key=lambda index: -scores[index])[: asked.top_n or None]
            results = [RankedDocument(index, Document(documents[index]), scores[index]) for index in order]
            return RerankReply(id=_id("rerank-"), model=model, results=results, usage=_usage(requests))

        return VectorAnswer(self._intake, requests, reply)

    async def _score_pairs(
        self, request: Request, prefix: str, pairs: Sequence[Pair]
    ) -> tuple[list[EngineRequest], Callable[[list[Vector]], list[float]]]:
        """Requests for the pairs' scores, and what makes scores of their vectors: a classifier reads each pair, else
        each text is embedded once and the two are compared."""
        _check_number(len(pairs))
        labels = self._intake.context.door.engine.labels
        check_scorable(labels)
        self._intake.tokenizer("text_1")
        if labels:
            size = sum(len(first) + len(second) for first, second in pairs)
            outcome = await self._intake.text_job(EncodePairs(list(pairs)), size, request, "text_1")
            assert isinstance(outcome, TokenLists)
            inputs = [Input(*each) for each in zip(outcome.lists, outcome.second_segments, strict=True)]
            requests = self._admit(prefix, inputs, classify=True)
            return requests, lambda vectors: [probabilities(vector)[0] for vector in vectors]
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        requests = self._admit(prefix, await self._texts(request, texts), classify=False)
        place = {text: index for index, text in enumerate(texts)}
        return requests, lambda vectors: [similarity(vectors[place[a]], vectors[place[b]]) for a, b in pairs]

    async def _inputs(self, request: Request, given: str | list[str | int | list[int]]) -> list[Input]:
        """A text, token ids, or a list of either."""
        items = [given] if isinstance(given, str) else given
        if items and all(isinstance(item, int) for item in items):
            return [Input([item for item in items if isinstance(item, int)])]
        _check_number(len(items))
        texts = [item for item in items if isinstance(item, str)]
        token_lists = [item for item in items if isinstance(item, list)]
        if len(items) not in (len(texts), len(token_lists)):
            raise InvalidRequest(
                "input must be a string, a list of strings, a list of token ids or a list of lists of token ids",
                param="input",
                code="invalid_type",
            )
        return await self._texts(request, texts) if texts else [Input(tokens) for tokens in token_lists]

    async def _texts(self, request: Request, texts: Sequence[str]) -> list[Input]:
        longest = self._intake.context.door.engine.max_sequence_tokens
        return [
            Input(tokens)
            for tokens in await self._prompts.of_texts(request, list(texts), longest=longest, param="input")
        ]

    def _admit(self, prefix: str, inputs: Sequence[Input], *, classify: bool) -> list[EngineRequest]:
        reply_id, now = _id(prefix), self._intake.context.clock.now()
        return [
            self._intake.context.door.admit_pooling(
                f"{reply_id}-{number}",
                each.tokens,
                classify=classify,
                second_segment=each.second_segment,
                arrived_at=now,
            )
            for number, each in enumerate(inputs)
        ]


def _check_number(count: int) -> None:
    if not 1 <= count <= MAX_INPUTS:
        raise InvalidRequest(
            f"{count} inputs; 1 to {MAX_INPUTS} are served at a time", param="input", code="invalid_value"
        )


def _id(prefix: str) -> str:
    return prefix + secrets.token_hex(16)


def _usage(requests: Sequence[EngineRequest]) -> VectorUsage:
    tokens = sum(request.num_prompt_tokens for request in requests)
    return VectorUsage(tokens, tokens)


def _base64(vector: Vector) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
