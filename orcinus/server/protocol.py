"""What OpenAI's clients (and vLLM's) send. Unknown fields are ignored, as OpenAI does; wrong types are refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, inspect

from orcinus.core import bounds
from orcinus.errors import InvalidRequest
from orcinus.server.bounds import (
    KeptTokens,
    Name,
    NumTokensBesideEcho,
    Priority,
    Prompt,
    Refused,
    Role,
    Salt,
    ShortText,
    TemplateVariables,
    Text,
    TopK,
    Word,
)
from orcinus.server.errors import MAX_ECHO_CHARACTERS


class StreamOptions(msgspec.Struct):
    """`include_usage`: one more chunk at the end, with the token counts."""

    include_usage: bool | None = None


class ResponseFormat(msgspec.Struct):
    """Only `text` is served."""

    type: Word


class GenerateRequest(msgspec.Struct, kw_only=True):
    """The fields that both endpoints share. None (JSON null, or absent) means the default."""

    model: ShortText | None = None
    n: bounds.NumAnswers | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: NumTokensBesideEcho | None = None
    temperature: bounds.Temperature | None = None
    top_p: bounds.TopP | None = None
    presence_penalty: bounds.Penalty | None = None
    frequency_penalty: bounds.Penalty | None = None
    logit_bias: bounds.LogitBias | None = None
    stop: bounds.Stop | None = None
    seed: bounds.Seed | None = None
    user: Name | None = None
    # From here on: vLLM's extensions.
    top_k: TopK | None = None
    min_p: bounds.MinP | None = None
    repetition_penalty: bounds.RepetitionPenalty | None = None
    min_tokens: bounds.MinTokens | None = None
    ignore_eos: bool | None = None
    stop_token_ids: bounds.ListedTokens | None = None
    allowed_token_ids: bounds.AllowedTokens | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    return_token_ids: bool | None = None
    prompt_logprobs: bounds.NumLogprobs | None = None
    truncate_prompt_tokens: KeptTokens | None = None
    priority: Priority | None = None
    cache_salt: Salt | None = None
    use_beam_search: bool | None = None
    length_penalty: bounds.LengthPenalty | None = None
    early_stopping: bounds.EarlyStopping | None = None
    # What would change the answer, and is refused where it is asked for.
    response_format: ResponseFormat | None = None
    guided_json: object = None
    guided_regex: object = None
    guided_choice: object = None
    guided_grammar: object = None
    structured_outputs: object = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(GenerateRequest, kw_only=True):
    """POST /v1/completions."""

    prompt: Prompt
    logprobs: bounds.NumLogprobs | None = None
    echo: bool | None = None
    best_of: bounds.NumAnswers | None = None
    suffix: Text | None = None


class ContentPart(msgspec.Struct):
    """One part of a message's content; only text is served."""

    type: Word
    text: Text | None = None


class FunctionCall(msgspec.Struct):
    """What an assistant called in an earlier turn; `arguments` is JSON in a string."""

    name: Name
    arguments: Text = ""


class ToolCall(msgspec.Struct):
    """A call in an earlier turn."""

    function: FunctionCall
    id: Name | None = None
    type: Word = "function"


class ChatMessage(msgspec.Struct):
    """One message of a conversation."""

    role: Role
    content: Text | Annotated[list[ContentPart], Meta(max_length=1024)] | None = None
    name: Name | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=128)] | None = None
    tool_call_id: Name | None = None
    reasoning_content: Text | None = None


Messages = Annotated[list[ChatMessage], Meta(min_length=1, max_length=4096)]


class ChatRequest(GenerateRequest, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: bounds.NumTokens | None = None
    logprobs: bool | None = None
    top_logprobs: bounds.NumLogprobs | None = None
    tools: Refused | None = None
    functions: Refused | None = None
    tool_choice: object = None
    function_call: object = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: Text | None = None
    chat_template_kwargs: TemplateVariables | None = None


Parsed = TypeVar("Parsed")


def parse(body: bytes, decoder: msgspec.json.Decoder[Parsed]) -> Parsed:
    """The typed request in a body.

    Raises:
        InvalidRequest: it isn't JSON (no NaN, no Infinity), or not of this shape; names the parameter.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _shape_error(str(error), decoder.type) from error
    except RecursionError as error:
        raise InvalidRequest("the JSON body is nested too deeply") from error
    except ValueError as error:
        raise InvalidRequest("the body is not JSON that can be read; send one UTF-8 encoded JSON object") from error


# An entry of a list or a map is named in the message; the parameter is the field that holds it.
_PLACE = re.compile(r" - at (?:`key` in )?`\$\.?(?P<path>.*?)(?P<entry>(?:\[[^]]*\])*)`$")
_MISSING = re.compile(r"missing required field `(?P<field>[^`]*)`")
_BOUND = re.compile(r"Expected `(?P<kind>\w+)` (?P<length>of length )?(?P<relation>[<>]=?) (?P<bound>\S+)$")
_RELATIONS = {"<=": "at most", ">=": "at least", "<": "less than", ">": "more than"}
_UNITS = {"str": "characters", "array": "entries", "object": "entries"}


def _shape_error(text: str, asked: type) -> InvalidRequest:
    """msgspec's words in OpenAI's shape."""
    place = _PLACE.search(text)
    path = place["path"][:MAX_ECHO_CHARACTERS] if place else ""
    where = path + place["entry"].replace("[...]", "") if place else ""
    problem = text[: place.start()] if place else text
    missing = _MISSING.search(problem)
    if missing:
        param = f"{where}.{missing['field']}" if where else missing["field"]
        return InvalidRequest(f"missing required parameter: {param}", param=param, code="missing_required_parameter")
    bound = _BOUND.match(problem)
    if bound:
        unit = f" {_UNITS[bound['kind']]}" if bound["length"] else ""
        must = f"{'have' if unit else 'be'} {_RELATIONS[bound['relation']]} {bound['bound']}{unit}"
        return InvalidRequest(f"{where} must {must}", param=path, code="invalid_value")
    if problem.startswith("Invalid enum value"):
        choices = ", ".join(map(str, _choices(inspect.type_info(asked), where)))
        return InvalidRequest(f"{where} must be one of {choices}", param=path, code="invalid_value")
    code = "invalid_type" if ", got `" in problem else "invalid_value"
    problem = problem[:1].lower() + problem[1:MAX_ECHO_CHARACTERS]
    return InvalidRequest(f"{where or 'the body'}: {problem}", param=path or None, code=code)


def _choices(kind: inspect.Type, path: str) -> Sequence[object]:
    """The values that may stand at a place such as `messages[0].role`."""
    match kind:
        case inspect.UnionType():
            return [choice for one in kind.types for choice in _choices(one, path)]
        case inspect.ListType() if path.startswith("["):
            return _choices(kind.item_type, path.partition("]")[2].removeprefix("."))
        case inspect.StructType():
            name = re.match(r"\w*", path)
            assert name is not None
            fields = [field for field in kind.fields if field.encode_name == name[0]]
            return [choice for field in fields for choice in _choices(field.type, path[name.end() :].removeprefix("."))]
        case inspect.LiteralType() if not path:
            return kind.values
    return ()
