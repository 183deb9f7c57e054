"""Tokens and back over HTTP, in vLLM's shapes: /tokenize and /detokenize."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from orcinus.core.request import pack_tokens
from orcinus.errors import InvalidRequest
from orcinus.server.bounds import ShortText, TemplateVariables, Text, TokenIds
from orcinus.server.intake import Intake, json_response
from orcinus.server.prompts import Prompts
from orcinus.server.protocol import Messages
from orcinus.server.translate import OWN_TEMPLATE, refuse
from orcinus.text.jobs import Decoded, DecodeTokens

TOKENIZE_PATHS = ("/tokenize", "/v1/tokenize")
DETOKENIZE_PATHS = ("/detokenize", "/v1/detokenize")


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /tokenize: a text, or a conversation laid out by the chat template."""

    model: ShortText | None = None
    prompt: Text | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: Text | None = None
    chat_template_kwargs: TemplateVariables | None = None


class TokenizeReply(msgspec.Struct):
    """What it comes to."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | UnsetType = UNSET


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /detokenize."""

    tokens: TokenIds
    model: ShortText | None = None


class DetokenizeReply(msgspec.Struct):
    """The text, special tokens included."""

    prompt: str


class TextApi:
    """The endpoints."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._prompts = Prompts(intake)
        self._tokenize_decoder = msgspec.json.Decoder(TokenizeRequest)
        self._detokenize_decoder = msgspec.json.Decoder(DetokenizeRequest)

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize."""
        asked = await self._intake.parse(request, self._tokenize_decoder)
        self._intake.model_name(asked.model)
        refuse(asked.chat_template, "chat_template", OWN_TEMPLATE)
        tokens = await self._tokens(request, asked)
        reply = TokenizeReply(len(tokens), self._intake.context.door.engine.max_sequence_tokens, tokens)
        if asked.return_token_strs:
            tokenizer = self._intake.tokenizer("return_token_strs")
            reply.token_strs = [tokenizer.token_text(token) for token in tokens]
        return json_response(reply)

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize."""
        asked = await self._intake.parse(request, self._detokenize_decoder)
        self._intake.model_name(asked.model)
        self._intake.tokenizer("tokens")
        vocab_size = self._intake.context.door.engine.vocab_size
        if asked.tokens and max(asked.tokens) >= vocab_size:
            raise InvalidRequest(
                f"tokens holds an id that is not between 0 and {vocab_size - 1}", param="tokens", code="invalid_value"
            )
        job = DecodeTokens(pack_tokens(asked.tokens))
        decoded = await self._intake.text_job(job, 4 * len(asked.tokens), request, "tokens")
        assert isinstance(decoded, Decoded)
        return json_response(DetokenizeReply(decoded.text))

    async def _tokens(self, request: Request, asked: TokenizeRequest) -> list[int]:
        if (asked.prompt is None) == (asked.messages is None):
            raise InvalidRequest("give either prompt or messages", param="prompt", code="missing_required_parameter")
        if asked.messages is None:
            assert asked.prompt is not None
            special = True if asked.add_special_tokens is None else asked.add_special_tokens
            (tokens,) = await self._prompts.of_texts(request, [asked.prompt], add_special_tokens=special)
            return list(tokens)
        return await self._prompts.of_conversation(
            request,
            asked.messages,
            add_generation_prompt=asked.add_generation_prompt,
            continue_final_message=asked.continue_final_message,
            variables=asked.chat_template_kwargs,
            add_special_tokens=bool(asked.add_special_tokens),
        )
