"""The HTTP application: routes, and the way from a request's body to its answers. Imports without torch."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from http import HTTPStatus
from importlib import metadata

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from orcinus.core.request import Request as EngineRequest
from orcinus.core.request import SamplingParams
from orcinus.errors import EngineDied, InvalidRequest, OrcinusError
from orcinus.server.answers import Answers
from orcinus.server.delivery import WholeAnswer
from orcinus.server.errors import handle_error
from orcinus.server.gate import Gate, key_of
from orcinus.server.intake import Intake, Limits, ServerContext, json_response, off_loop
from orcinus.server.metrics import CONTENT_TYPE, Metrics
from orcinus.server.neighbours import NeighbourStream, front_digits
from orcinus.server.protocol import ChatRequest, CompletionRequest, GenerateRequest, parse
from orcinus.server.responses import ChatDialect, CompletionDialect, Dialect, ReplyFrame
from orcinus.server.streams import EventStream, StreamLog
from orcinus.server.translate import chat_params, completion_params, messages_of, prompts_of
from orcinus.server.vector_api import CLASSIFY_PATHS, EMBEDDING_PATHS, RERANK_PATHS, SCORE_PATHS, VectorApi

__all__ = ["Limits", "ServerContext", "create_app"]


def create_app(context: ServerContext) -> Starlette:
    """The ASGI application over a started engine."""
    intake = Intake(context, Metrics(context.client, context.served_model_names[0]))
    api, vectors = _Api(intake), VectorApi(intake)
    app = Starlette(
        routes=[
            Route("/v1/completions", api.completions, methods=["POST"]),
            Route("/v1/chat/completions", api.chat_completions, methods=["POST"]),
            *(Route(path, vectors.embeddings, methods=["POST"]) for path in EMBEDDING_PATHS),
            *(Route(path, vectors.classify, methods=["POST"]) for path in CLASSIFY_PATHS),
            *(Route(path, vectors.score, methods=["POST"]) for path in SCORE_PATHS),
            *(Route(path, vectors.rerank, methods=["POST"]) for path in RERANK_PATHS),
            Route("/v1/streams/{stream_id}", api.stream),
            Route("/v1/models", api.models),
            Route("/v1/models/{model:path}", api.model),
            Route("/health", api.health),
            Route("/metrics", api.metrics),
            Route("/version", api.version),
        ],
        middleware=[Middleware(Gate, keys=context.api_keys)],
        exception_handlers={
            OrcinusError: handle_error,
            HTTPException: handle_error,
            ClientDisconnect: _nobody_listens,
            Exception: handle_error,
        },
    )
    app.router.redirect_slashes = False
    return app


class _Api:
    """The endpoints."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._context = intake.context
        self._metrics = intake.metrics
        self._created = int(time.time())
        self._completion_decoder = msgspec.json.Decoder(CompletionRequest)
        self._chat_decoder = msgspec.json.Decoder(ChatRequest)

    async def completions(self, request: Request) -> WholeAnswer | EventStream:
        """POST /v1/completions."""
        asked = parse(await self._intake.body(request), self._completion_decoder)
        frame = self._frame("cmpl-", asked)
        params = completion_params(asked, self._context.defaults)
        prompts = await self._token_prompts(prompts_of(asked))
        requests = self._admit(frame.id, prompts, params)
        dialect = CompletionDialect(frame, requests, self._context.tokenizer, self._with_ids(asked))
        return self._deliver(request, asked, requests, dialect, frame)

    async def chat_completions(self, request: Request) -> WholeAnswer | EventStream:
        """POST /v1/chat/completions."""
        asked = parse(await self._intake.body(request), self._chat_decoder)
        frame = self._frame("chatcmpl-", asked)
        params = chat_params(asked, self._context.defaults)
        prompt = await self._chat_prompt(asked)
        try:
            requests = self._admit(frame.id, [prompt], params)
        except InvalidRequest as error:
            param = "messages" if error.param == "prompt" else error.param
            raise InvalidRequest(error.message, param=param, code=error.code) from error
        dialect = ChatDialect(frame, requests[0], self._context.tokenizer, self._with_ids(asked))
        return self._deliver(request, asked, requests, dialect, frame)

    async def stream(self, request: Request) -> EventStream | NeighbourStream:
        """GET /v1/streams/{stream_id}: go on after the event named by the header `Last-Event-ID`, or from the start."""
        stream_id, last_event_id = request.path_params["stream_id"], request.headers.get("last-event-id")
        neighbours = self._context.neighbours
        if neighbours is not None and not neighbours.is_ours(stream_id):
            return await neighbours.follow(stream_id, key_of(request), last_event_id)
        log, place = self._context.streams.resume(stream_id, key_of(request), last_event_id)
        return EventStream(log, self._context.streams, place)

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return json_response(
            {"object": "list", "data": [self._model(name) for name in self._context.served_model_names]}
        )

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{model}."""
        name: str = request.path_params["model"]
        self._intake.model_name(name)
        return json_response(self._model(name))

    async def health(self, request: Request) -> Response:
        """GET /health: 200 only while the engine is alive."""
        if not self._context.client.alive:
            raise EngineDied("the engine is not alive")
        return Response()

    async def metrics(self, request: Request) -> Response:
        """GET /metrics, for Prometheus."""
        return Response(self._metrics.exposition(), headers={"content-type": CONTENT_TYPE})

    async def version(self, request: Request) -> Response:
        """GET /version."""
        return json_response({"version": metadata.version("orcinus-llm")})

    def _model(self, name: str) -> dict[str, object]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "orcinus",
            "max_model_len": self._context.door.engine.max_sequence_tokens,
        }

    def _frame(self, prefix: str, asked: GenerateRequest) -> ReplyFrame:
        name = self._intake.model_name(asked.model)
        fingerprint = self._context.door.engine.fingerprint
        return ReplyFrame(
            prefix + secrets.token_hex(15) + front_digits(self._context.front_number),
            int(time.time()),
            name,
            fingerprint,
        )

    def _with_ids(self, asked: GenerateRequest) -> bool:
        """Without a tokenizer the ids are all there is to tell."""
        return bool(asked.return_token_ids) or self._context.tokenizer is None

    async def _token_prompts(self, prompts: list[str] | list[list[int]]) -> Sequence[Sequence[int]]:
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        if not texts:
            return [prompt for prompt in prompts if not isinstance(prompt, str)]
        tokenizer = self._intake.tokenizer("prompt")
        size = sum(map(len, texts))
        return await off_loop(size, lambda: [tokenizer.encode(text, add_special_tokens=True) for text in texts])

    async def _chat_prompt(self, asked: ChatRequest) -> Sequence[int]:
        tokenizer, template = self._intake.tokenizer("messages"), self._context.chat_template
        if template is None:
            raise InvalidRequest(
                "this model has no chat template; use /v1/completions", param="messages", code="unsupported_parameter"
            )
        messages = messages_of(asked)
        opens = True if asked.add_generation_prompt is None else asked.add_generation_prompt

        def encode() -> list[int]:
            text = template.render(messages, add_generation_prompt=opens, variables=asked.chat_template_kwargs)
            return tokenizer.encode(text, add_special_tokens=False)

        return await off_loop(sum(len(str(message["content"])) for message in messages), encode)

    def _admit(self, reply_id: str, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[EngineRequest]:
        """Past the door, and past the guard against more work than can be kept track of."""
        if params.stop_strings and self._context.tokenizer is None:
            raise InvalidRequest("stop needs a tokenizer, and this model has none; use stop_token_ids", param="stop")
        now = self._context.clock.now()
        requests = [
            self._context.door.admit(f"{reply_id}-{number}", prompt, params, arrived_at=now)
            for number, prompt in enumerate(prompts)
        ]
        self._intake.check_room(len(requests))
        return requests

    def _deliver(
        self,
        request: Request,
        asked: GenerateRequest,
        requests: Sequence[EngineRequest],
        dialect: Dialect,
        frame: ReplyFrame,
    ) -> WholeAnswer | EventStream:
        context = self._context
        answers = Answers(context.client, requests, context.tokenizer, self._metrics, context.clock)
        if asked.stream:
            log = StreamLog(frame.id, key_of(request), answers, dialect, asked.include_usage)
            self._context.streams.add(log)
            return EventStream(log, self._context.streams)
        return WholeAnswer(answers, dialect)


async def _nobody_listens(request: Request, error: Exception) -> Response:
    """The client has gone; what is returned here isn't sent to anybody."""
    return Response(status_code=HTTPStatus.BAD_REQUEST)
