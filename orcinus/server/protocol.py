"""What OpenAI's clients (and vLLM's) send. Unknown fields are ignored, as OpenAI does; wrong types are refused."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from orcinus.errors import InvalidRequest
from orcinus.server.errors import MAX_ECHO_CHARACTERS
from orcinus.server.strict_json import check_json
from orcinus.text.chat import Scalar


class StreamOptions(msgspec.Struct):
    """`include_usage`: one more chunk at the end, with the token counts."""

    include_usage: bool | None = None


class GenerateRequest(msgspec.Struct, kw_only=True):
    """The fields that both endpoints share. None (JSON null, or absent) means the default."""

    model: str | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    user: str | None = None
    # From here on: vLLM's extensions.
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    allowed_token_ids: list[int] | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    return_token_ids: bool | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    priority: int | None = None
    cache_salt: str | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(GenerateRequest, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None


class ContentPart(msgspec.Struct):
    """One part of a message's content; only text is served."""

    type: str
    text: str | None = None


class FunctionCall(msgspec.Struct):
    """What an assistant called in an earlier turn; `arguments` is JSON in a string."""

    name: str
    arguments: str = ""


class ToolCall(msgspec.Struct):
    """A call in an earlier turn."""

    function: FunctionCall
    id: str | None = None
    type: str = "function"


class ChatMessage(msgspec.Struct):
    """One message of a conversation."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class ResponseFormat(msgspec.Struct):
    """Only `text` is served."""

    type: str


class ChatRequest(GenerateRequest, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[object] | None = None
    functions: list[object] | None = None
    response_format: ResponseFormat | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Scalar] | None = None


Parsed = TypeVar("Parsed")


def parse(body: bytes, decoder: msgspec.json.Decoder[Parsed]) -> Parsed:
    """The typed request in a body.

    Raises:
        InvalidRequest: it isn't JSON (no NaN, no Infinity, bounded depth, no key twice), or not of this shape; names
            the parameter.
    """
    check_json(body)
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _shape_error(str(error)) from error
    except RecursionError as error:
        raise InvalidRequest("the JSON body is nested too deeply") from error
    except ValueError as error:
        raise InvalidRequest("the body is not JSON that can be read; send one UTF-8 encoded JSON object") from error


_PLACE = re.compile(r" - at (?:`key` in )?`\$\.?(?P<path>.*?)`$")
_MISSING = re.compile(r"missing required field `(?P<field>[^`]*)`")


def _shape_error(text: str) -> InvalidRequest:
    """msgspec's words in OpenAI's shape."""
    place = _PLACE.search(text)
    path = place["path"][:MAX_ECHO_CHARACTERS] if place else ""
    problem = text[: place.start()] if place else text
    missing = _MISSING.search(problem)
    if missing:
        param = f"{path}.{missing['field']}" if path else missing["field"]
        return InvalidRequest(f"missing required parameter: {param}", param=param, code="missing_required_parameter")
    code = "invalid_type" if problem.startswith("Expected") else "invalid_value"
    problem = problem[: 2 * MAX_ECHO_CHARACTERS].lower()
    return InvalidRequest(f"{path or 'the body'}: {problem}", param=path or None, code=code)
