"""What all endpoints share: the context they stand on, and a request's way in up to the engine's door."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from orcinus.core.clock import Clock
from orcinus.engine.door import Door
from orcinus.errors import InvalidRequest, Overloaded
from orcinus.server.answers import EngineFront
from orcinus.server.errors import JSON, MAX_ECHO_CHARACTERS, HttpRefusal
from orcinus.server.explanations import Explainer
from orcinus.server.gate import ApiKeys, Listener, key_of, read_json_body
from orcinus.server.metrics import Metrics
from orcinus.server.neighbours import Neighbours
from orcinus.server.protocol import parse
from orcinus.server.streams import StreamStore
from orcinus.server.text_workers import TextWorkers
from orcinus.text.chat import ChatTemplate
from orcinus.text.generation import GenerationDefaults
from orcinus.text.jobs import CheckJson, Job, Outcome, Refused
from orcinus.text.tokenizer import Tokenizer

_RETRY_SECONDS = 1.0
# Checking JSON takes so much less time than reading text.
_JSON_BYTES_A_CHARACTER = 32

Parsed = TypeVar("Parsed")


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
        text_workers: for text that takes long.
        explainer: of what was answered lately.
        served_model_names: the first is the one in answers; a request may use any, or none.
        listener: without a key only its own names are answered to.
        api_keys: empty lets everybody in.
        defaults: for sampling, where a request says nothing.
        streams: what was streamed lately.
        front_number: of this HTTP process.
        neighbours: the others; None where there are none.
    """

    client: EngineFront
    door: Door
    clock: Clock
    tokenizer: Tokenizer | None
    chat_template: ChatTemplate | None
    text_workers: TextWorkers
    explainer: Explainer
    served_model_names: tuple[str, ...]
    listener: Listener = field(default_factory=Listener)
    api_keys: ApiKeys = field(default_factory=lambda: ApiKeys(()))
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    limits: Limits = field(default_factory=Limits)
    streams: StreamStore = field(default_factory=StreamStore)
    front_number: int = 0
    neighbours: Neighbours | None = None


@dataclass(frozen=True, slots=True)
class Intake:
    """The checks and conversions at the beginning of every endpoint."""

    context: ServerContext
    metrics: Metrics

    def check_load(self) -> None:
        """Before anything of a request is read: would the engine begin one that came now?

        Raises:
            Overloaded: not soon enough.
        """
        self.context.client.check_room()

    async def parse(self, request: Request, decoder: msgspec.json.Decoder[Parsed]) -> Parsed:
        """The typed request in a JSON body, under the size limit.

        Raises:
            HttpRefusal: too large, or not said to be JSON.
            InvalidRequest: it isn't JSON that all readers read alike, or not of this shape.
        """
        body = await read_json_body(request, self.context.limits.max_body_bytes)
        await self.text_job(CheckJson(body), len(body) // _JSON_BYTES_A_CHARACTER, request, None)
        return parse(body, decoder)

    def model_name(self, asked: str | None) -> str:
        """The name to answer under.

        Raises:
            HttpRefusal: a model that isn't served.
        """
        if asked is not None and asked not in self.context.served_model_names:
            raise HttpRefusal(
                HTTPStatus.NOT_FOUND,
                f"The model {asked[:MAX_ECHO_CHARACTERS]!r} does not exist; GET /v1/models lists what is served.",
                param="model",
                code="model_not_found",
            )
        return asked or self.context.served_model_names[0]

    def tokenizer(self, param: str) -> Tokenizer:
        """To read text with.

        Raises:
            InvalidRequest: the checkpoint has none.
        """
        if self.context.tokenizer is None:
            raise InvalidRequest(
                "this model has no tokenizer; send token ids to /v1/completions",
                param=param,
                code="unsupported_parameter",
            )
        return self.context.tokenizer

    async def text_job(
        self, job: Job, num_characters: int, request: Request, param: str | None, *, is_program: bool = False
    ) -> Outcome:
        """The outcome of work on text; see `TextWorkers.do`.

        Raises:
            InvalidRequest: what the job raised, under `param` if it names nothing else.
        """
        outcome = await self.context.text_workers.do(job, num_characters, key_of(request), is_program=is_program)
        if isinstance(outcome, Refused):
            raise InvalidRequest(outcome.message, param=outcome.param or param, code=outcome.code)
        return outcome

    def check_room(self, num_requests: int) -> None:
        """The guard against more work than can be kept track of.

        Raises:
            Overloaded: too much is being served.
        """
        limit = self.context.limits.max_live
        if self.context.client.num_live + num_requests > limit:
            raise Overloaded(f"more than {limit} requests are being served; try again", retry_after=_RETRY_SECONDS)


def json_response(content: object) -> Response:
    """Anything that msgspec encodes."""
    return Response(msgspec.json.encode(content), media_type=JSON)
