"""The HTTP application: routes, and the way from a request's body to its answers. Imports without torch."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib import metadata
from typing import TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from orcinus.core.clock import Clock
from orcinus.core.request import Request as EngineRequest
from orcinus.core.request import SamplingParams
from orcinus.engine.door import Door
from orcinus.errors import EngineDied, InvalidRequest, OrcinusError, Overloaded
from orcinus.server.answers import Answers, EngineFront
from orcinus.server.delivery import EventStream, WholeAnswer
from orcinus.server.errors import JSON, MAX_ECHO_CHARACTERS, HttpRefusal, handle_error
from orcinus.server.gate import ApiKeys, Gate, read_json_body
from orcinus.server.metrics import CONTENT_TYPE, Metrics
from orcinus.server.protocol import ChatRequest, CompletionRequest, GenerateRequest, parse
from orcinus.server.responses import ChatDialect, CompletionDialect, Dialect, ReplyFrame
from orcinus.server.translate import chat_params, completion_params, messages_of, prompts_of
from orcinus.text.chat import ChatTemplate
from orcinus.text.generation import GenerationDefaults
from orcinus.text.tokenizer import Tokenizer

# Below this many characters a thread costs more than the tokenising that it takes off the event loop.
_INLINE_CHARACTERS = 2_000
_RETRY_SECONDS = 1.0

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client can't exceed.

    Args:
        max_body_bytes: more is a 413.
        max_live: requests to the engine at a time (each prompt is one); more are a 429.
    """

    max_body_bytes: int = 16 * 2**20
    max_live: int = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerContext:
    """Everything that the endpoints stand on.

    Args:
        client: the engine's front end; it has started.
        door: what every request passes.
        clock: the engine's clock.
        tokenizer: None serves token ids only.
        chat_template: None serves no conversations.
        served_model_names: the first is the one in answers; a request may use any, or none.
        api_keys: empty lets everybody in.
        defaults: for sampling, where a request says nothing.
    """

    client: EngineFront
    door: Door
    clock: Clock
    tokenizer: Tokenizer | None
    chat_template: ChatTemplate | None
    served_model_names: tuple[str, ...]
    api_keys: ApiKeys = field(default_factory=lambda: ApiKeys(()))
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    limits: Limits = field(default_factory=Limits)


def create_app(context: ServerContext) -> Starlette:
    """The ASGI application over a started engine."""
    api = _Api(context)
    app = Starlette(
        routes=[
            Route("/v1/completions", api.completions, methods=["POST"]),
            Route("/v1/chat/completions", api.chat_completions, methods=["POST"]),
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

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._metrics = Metrics(context.client, context.served_model_names[0])
        self._created = int(time.time())
        self._completion_decoder = msgspec.json.Decoder(CompletionRequest)
        self._chat_decoder = msgspec.json.Decoder(ChatRequest)

    async def completions(self, request: Request) -> WholeAnswer | EventStream:
        """POST /v1/completions."""
        asked = parse(await self._body(request), self._completion_decoder)
        frame = self._frame("cmpl-", asked)
        params = completion_params(asked, self._context.defaults)
        prompts = await self._token_prompts(prompts_of(asked))
        requests = self._admit(frame.id, prompts, params)
        dialect = CompletionDialect(frame, requests, self._context.tokenizer, self._with_ids(asked))
        return self._deliver(asked, requests, dialect)

    async def chat_completions(self, request: Request) -> WholeAnswer | EventStream:
        """POST /v1/chat/completions."""
        asked = parse(await self._body(request), self._chat_decoder)
        frame = self._frame("chatcmpl-", asked)
        params = chat_params(asked, self._context.defaults)
        prompt = await self._chat_prompt(asked)
        try:
            requests = self._admit(frame.id, [prompt], params)
        except InvalidRequest as error:
            param = "messages" if error.param == "prompt" else error.param
            raise InvalidRequest(error.message, param=param, code=error.code) from error
        dialect = ChatDialect(frame, requests[0], self._context.tokenizer, self._with_ids(asked))
        return self._deliver(asked, requests, dialect)

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return _json({"object": "list", "data": [self._model(name) for name in self._context.served_model_names]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{model}."""
        name: str = request.path_params["model"]
        self._check_model(name)
        return _json(self._model(name))

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
        return _json({"version": metadata.version("orcinus-llm")})

    def _model(self, name: str) -> dict[str, object]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "orcinus",
            "max_model_len": self._context.door.engine.max_sequence_tokens,
        }

    async def _body(self, request: Request) -> bytes:
        return await read_json_body(request, self._context.limits.max_body_bytes)

    def _check_model(self, name: str | None) -> None:
        if name is not None and name not in self._context.served_model_names:
            raise HttpRefusal(
                HTTPStatus.NOT_FOUND,
                f"The model {name[:MAX_ECHO_CHARACTERS]!r} does not exist; GET /v1/models lists what is served.",
                param="model",
                code="model_not_found",
            )

    def _frame(self, prefix: str, asked: GenerateRequest) -> ReplyFrame:
        self._check_model(asked.model)
        name = asked.model or self._context.served_model_names[0]
        fingerprint = self._context.door.engine.fingerprint
        return ReplyFrame(prefix + secrets.token_hex(16), int(time.time()), name, fingerprint)

    def _with_ids(self, asked: GenerateRequest) -> bool:
        """Without a tokenizer the ids are all there is to tell."""
        return bool(asked.return_token_ids) or self._context.tokenizer is None

    async def _token_prompts(self, prompts: list[str] | list[list[int]]) -> Sequence[Sequence[int]]:
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        if not texts:
            return [prompt for prompt in prompts if not isinstance(prompt, str)]
        tokenizer = self._tokenizer("prompt")
        size = sum(map(len, texts))
        return await _off_loop(size, lambda: [tokenizer.encode(text, add_special_tokens=True) for text in texts])

    async def _chat_prompt(self, asked: ChatRequest) -> Sequence[int]:
        tokenizer, template = self._tokenizer("messages"), self._context.chat_template
        if template is None:
            raise InvalidRequest(
                "this model has no chat template; use /v1/completions", param="messages", code="unsupported_parameter"
            )
        messages = messages_of(asked)
        opens = True if asked.add_generation_prompt is None else asked.add_generation_prompt

        def encode() -> list[int]:
            text = template.render(messages, add_generation_prompt=opens, variables=asked.chat_template_kwargs)
            return tokenizer.encode(text, add_special_tokens=False)

        return await _off_loop(sum(len(str(message["content"])) for message in messages), encode)

    def _tokenizer(self, param: str) -> Tokenizer:
        if self._context.tokenizer is None:
            raise InvalidRequest(
                "this model has no tokenizer; send token ids to /v1/completions",
                param=param,
                code="unsupported_parameter",
            )
        return self._context.tokenizer

    def _admit(self, reply_id: str, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[EngineRequest]:
        """Past the door, and past the guard against more work than can be kept track of."""
        if params.stop_strings and self._context.tokenizer is None:
            raise InvalidRequest("stop needs a tokenizer, and this model has none; use stop_token_ids", param="stop")
        now = self._context.clock.now()
        requests = [
            self._context.door.admit(f"{reply_id}-{number}", prompt, params, arrived_at=now)
            for number, prompt in enumerate(prompts)
        ]
        limit = self._context.limits.max_live
        if self._context.client.num_live + len(requests) > limit:
            raise Overloaded(f"more than {limit} requests are being served; try again", retry_after=_RETRY_SECONDS)
        return requests

    def _deliver(
        self, asked: GenerateRequest, requests: Sequence[EngineRequest], dialect: Dialect
    ) -> WholeAnswer | EventStream:
        context = self._context
        answers = Answers(context.client, requests, context.tokenizer, self._metrics, context.clock)
        if asked.stream:
            return EventStream(answers, dialect, asked.include_usage)
        return WholeAnswer(answers, dialect)


async def _off_loop(num_characters: int, work: Callable[[], Result]) -> Result:
    """Long texts in a thread: the tokenizer lets go of the interpreter while it works."""
    if num_characters <= _INLINE_CHARACTERS:
        return work()
    return await asyncio.to_thread(work)


async def _nobody_listens(request: Request, error: Exception) -> Response:
    """The client has gone; what is returned here isn't sent to anybody."""
    return Response(status_code=HTTPStatus.BAD_REQUEST)


def _json(content: object) -> Response:
    return Response(msgspec.json.encode(content), media_type=JSON)
