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
from orcinus.engine.messages import Outputs
from orcinus.errors import EngineDied, InvalidRequest, OrcinusError
from orcinus.server.answers import Answers
from orcinus.server.delivery import WholeAnswer
from orcinus.server.dialects import ChatDialect, CompletionDialect, CompletionForm
from orcinus.server.errors import handle_error
from orcinus.server.explanations import EXPLAIN_PATH
from orcinus.server.gate import Gate, key_of
from orcinus.server.history import History
from orcinus.server.intake import Intake, Limits, ServerContext, json_response
from orcinus.server.live import LIVE_PATH, Feed, Live
from orcinus.server.metrics import CONTENT_TYPE, Metrics
from orcinus.server.neighbours import NeighbourStream, front_digits
from orcinus.server.openapi import openapi_document
from orcinus.server.page_api import PAGE_PATHS, PageApi
from orcinus.server.prompts import Prompts
from orcinus.server.protocol import ChatRequest, CompletionRequest, GenerateRequest
from orcinus.server.responses import Dialect, ReplyFrame
from orcinus.server.streams import EventStream, StreamLog
from orcinus.server.text_api import DETOKENIZE_PATHS, TOKENIZE_PATHS, TextApi
from orcinus.server.translate import Terms, chat_params, completion_params, prompts_of, terms_of
from orcinus.server.vector_api import CLASSIFY_PATHS, EMBEDDING_PATHS, RERANK_PATHS, SCORE_PATHS, VectorApi

__all__ = ["Limits", "ServerContext", "create_app"]


def create_app(context: ServerContext) -> Starlette:
    """The ASGI application over a started engine."""
    intake = Intake(context, Metrics(context.client, context.served_model_names[0]))
    api, vectors, texts, page = _Api(intake), VectorApi(intake), TextApi(intake), PageApi()
    app = Starlette(
        routes=[
            Route("/v1/completions", api.completions, methods=["POST"]),
            Route("/v1/chat/completions", api.chat_completions, methods=["POST"]),
            *(Route(path, vectors.embeddings, methods=["POST"]) for path in EMBEDDING_PATHS),
            *(Route(path, vectors.classify, methods=["POST"]) for path in CLASSIFY_PATHS),
            *(Route(path, vectors.score, methods=["POST"]) for path in SCORE_PATHS),
            *(Route(path, vectors.rerank, methods=["POST"]) for path in RERANK_PATHS),
            *(Route(path, texts.tokenize, methods=["POST"]) for path in TOKENIZE_PATHS),
            *(Route(path, texts.detokenize, methods=["POST"]) for path in DETOKENIZE_PATHS),
            Route("/v1/streams/{stream_id}", api.stream),
            Route(EXPLAIN_PATH, api.explain),
            Route(LIVE_PATH, api.live),
            Route("/v1/models", api.models),
            Route("/v1/models/{model:path}", api.model),
            Route("/health", api.health),
            Route("/ready", api.ready),
            Route("/load", api.load),
            Route("/metrics", api.metrics),
            Route("/version", api.version),
            Route("/openapi.json", api.openapi),
            *(Route(path, page.file) for path in PAGE_PATHS),
        ],
        middleware=[Middleware(Gate, keys=context.api_keys, listener=context.listener)],
        exception_handlers={
            OrcinusError: handle_error,
            HTTPException: handle_error,
            ClientDisconnect: _nobody_listens,
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
        self._prompts = Prompts(intake)
        self._live = Live(self._context.client, self._context.clock)
        self._created = int(time.time())
        self._completion_decoder = msgspec.json.Decoder(CompletionRequest)
        self._chat_decoder = msgspec.json.Decoder(ChatRequest)

    async def completions(self, request: Request) -> WholeAnswer | EventStream:
        """POST /v1/completions."""
        received_at = self._context.clock.now()
        self._intake.check_load()
        asked = await self._intake.parse(request, self._completion_decoder)
        frame = self._frame("cmpl-", asked)
        params = completion_params(asked, self._context.defaults)
        terms, given = self._terms(request, asked), prompts_of(asked)
        longest = self._prompts.longest(asked.truncate_prompt_tokens)
        tokens = await self._prompts.of_texts(request, given, longest=longest)
        prompts = [self._prompts.cut(prompt, asked.truncate_prompt_tokens) for prompt in tokens]
        requests = self._admit(frame.id, prompts, params, terms)
        form = CompletionForm(
            with_ids=self._with_ids(asked),
            num_shown=asked.n or 1,
            echo=bool(asked.echo),
            hides_answer=bool(asked.echo) and asked.max_tokens == 0,
            logprobs=asked.logprobs is not None,
            prompt_logprobs=asked.prompt_logprobs is not None,
        )
        dialect = CompletionDialect(frame, requests, self._context.tokenizer, form)
        return self._deliver(request, asked, requests, dialect, frame, received_at)

    async def chat_completions(self, request: Request) -> WholeAnswer | EventStream:
        """POST /v1/chat/completions."""
        received_at = self._context.clock.now()
        self._intake.check_load()
        asked = await self._intake.parse(request, self._chat_decoder)
        frame = self._frame("chatcmpl-", asked)
        params = chat_params(asked, self._context.defaults)
        terms = self._terms(request, asked)
        tokens = await self._prompts.of_conversation(
            request,
            asked.messages,
            add_generation_prompt=asked.add_generation_prompt,
            continue_final_message=asked.continue_final_message,
            variables=asked.chat_template_kwargs,
            longest=self._prompts.longest(asked.truncate_prompt_tokens),
        )
        prompt = self._prompts.cut(tokens, asked.truncate_prompt_tokens)
        try:
            requests = self._admit(frame.id, [prompt], params, terms)
        except InvalidRequest as error:
            param = "messages" if error.param == "prompt" else error.param
            raise InvalidRequest(error.message, param=param, code=error.code) from error
        dialect = ChatDialect(
            frame,
            requests[0],
            self._context.tokenizer,
            with_ids=self._with_ids(asked),
            prompt_logprobs=asked.prompt_logprobs is not None,
        )
        return self._deliver(request, asked, requests, dialect, frame, received_at)

    async def stream(self, request: Request) -> EventStream | NeighbourStream:
        """GET /v1/streams/{stream_id}: go on after the event named by the header `Last-Event-ID`, or from the start."""
        stream_id, last_event_id = request.path_params["stream_id"], request.headers.get("last-event-id")
        neighbours = self._context.neighbours
        if neighbours is not None and not neighbours.is_ours(stream_id):
            return await neighbours.follow(stream_id, key_of(request), last_event_id)
        log, place = self._context.streams.resume(stream_id, key_of(request), last_event_id)
        return EventStream(log, self._context.streams, place)

    async def explain(self, request: Request) -> Response:
        """GET /v1/explain/{reply_id}."""
        reply_id, neighbours = request.path_params["reply_id"], self._context.neighbours
        if neighbours is not None and not neighbours.is_ours(reply_id):
            return json_response(await neighbours.explain(reply_id, key_of(request)))
        return json_response(await self._context.explainer.explain(reply_id, key_of(request)))

    async def live(self, request: Request) -> Feed:
        """GET /v1/live."""
        return self._live.feed()

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
        """GET /health: 200 while an engine makes progress, or another one is on its way."""
        if self._context.client.hopeless:
            raise EngineDied("no engine can be kept alive")
        return Response(media_type="text/plain")

    async def ready(self, request: Request) -> Response:
        """GET /ready: 200 only if a request that came now would be begun."""
        if not self._context.client.alive or self._context.client.is_leaving:
            raise EngineDied("the engine is being started")
        return Response(media_type="text/plain")

    async def load(self, request: Request) -> Response:
        """GET /load: vLLM's `server_load`, and the state of the queues."""
        client = self._context.client
        stats = client.stats or Outputs(())
        used = 1 - stats.free_blocks / stats.total_blocks if stats.total_blocks else 0.0
        return json_response(
            {
                "server_load": client.num_live,
                "num_running": stats.num_running,
                "num_waiting": stats.num_waiting,
                "kv_cache_usage": used,
            }
        )

    async def metrics(self, request: Request) -> Response:
        """GET /metrics, for Prometheus."""
        return Response(self._metrics.exposition(), headers={"content-type": CONTENT_TYPE})

    async def version(self, request: Request) -> Response:
        """GET /version."""
        return json_response({"version": metadata.version("orcinus-llm")})

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        return json_response(openapi_document(metadata.version("orcinus-llm")))

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

    def _admit(
        self, reply_id: str, prompts: Sequence[Sequence[int]], params: SamplingParams, terms: Terms
    ) -> list[EngineRequest]:
        """Past the door, and past the guard against more work than can be kept track of."""
        if params.stop_strings and self._context.tokenizer is None:
            raise InvalidRequest("stop needs a tokenizer, and this model has none; use stop_token_ids", param="stop")
        now = self._context.clock.now()
        requests = [
            self._context.door.admit(
                f"{reply_id}-{number}",
                prompt,
                params,
                arrived_at=now,
                priority=terms.priority,
                tenant=terms.tenant,
                cache_salt=terms.cache_salt,
                deadline=terms.deadline,
                beams=terms.beams,
            )
            for number, prompt in enumerate(prompts)
        ]
        self._intake.check_room(len(requests))
        return requests

    def _terms(self, request: Request, asked: GenerateRequest) -> Terms:
        timeout = request.headers.get("x-request-timeout")
        return terms_of(asked, key_of(request), timeout, self._context.clock.now())

    def _deliver(
        self,
        request: Request,
        asked: GenerateRequest,
        requests: Sequence[EngineRequest],
        dialect: Dialect,
        frame: ReplyFrame,
        received_at: float,
    ) -> WholeAnswer | EventStream:
        context = self._context
        history = History(key_of(request), received_at, requests[0].arrived_at, [each.request_id for each in requests])
        context.explainer.note(frame.id, history)
        answers = Answers(context.client, requests, history, context.tokenizer, self._metrics, context.clock)
        if asked.stream:
            log = StreamLog(frame.id, key_of(request), answers, dialect, asked.include_usage)
            self._context.streams.add(log)
            return EventStream(log, self._context.streams)
        return WholeAnswer(answers, dialect)


async def _nobody_listens(request: Request, error: Exception) -> Response:
    """The client has gone; what is returned here isn't sent to anybody."""
    return Response(status_code=HTTPStatus.BAD_REQUEST)
