"""From OpenAI's words to ours, once. What is known but not served is refused here, never ignored."""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

from orcinus.core.request import BeamSearch, SamplingParams
from orcinus.errors import InvalidRequest
from orcinus.server.bounds import MAX_PROMPTS
from orcinus.server.protocol import ChatMessage, ChatRequest, CompletionRequest, ContentPart, GenerateRequest, ToolCall
from orcinus.text.generation import GenerationDefaults

COMPLETION_MAX_TOKENS = 16
OWN_TEMPLATE = "a request can't bring its own template"
MAX_TIMEOUT = 86_400.0
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{0,9})?", re.ASCII)


def completion_params(request: CompletionRequest, defaults: GenerationDefaults) -> SamplingParams:
    """How to sample the answers to a completion request.

    Raises:
        InvalidRequest: a value out of its range, or a field that isn't served.
    """
    refuse(request.suffix, "suffix", "inserting text isn't supported")
    _check_constraints(request)
    max_tokens = COMPLETION_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    if request.echo and max_tokens == 0:
        # Nothing but the prompt is wanted: one token is sampled, and not shown.
        max_tokens = 1
    params = _sampling_params(request, defaults, max_tokens, request.logprobs, {})
    if request.echo and request.logprobs is not None:
        if request.use_beam_search:
            raise _unsupported("echo", "log-probabilities of an echoed prompt can't be had from a beam search")
        if request.stream:
            raise _unsupported("echo", "log-probabilities of an echoed prompt can't be streamed")
        params = msgspec.structs.replace(params, prompt_logprobs=request.logprobs)
    return _with_best_of(request, params)


def _with_best_of(request: CompletionRequest, params: SamplingParams) -> SamplingParams:
    """`best_of` answers are made, with what they are judged by."""
    best_of = request.best_of
    if best_of is None or best_of == params.n:
        return params
    if best_of < params.n:
        raise InvalidRequest(
            f"best_of is {best_of}, less than n, which is {params.n}", param="best_of", code="invalid_value"
        )
    if request.use_beam_search:
        # So many beams, see `_beams_of`.
        return params
    if request.stream:
        raise _unsupported("best_of", "which answers are best is known at the end, so they can't be streamed")
    try:
        return msgspec.structs.replace(params, n=best_of, logprobs=params.logprobs or 0)
    except InvalidRequest as error:
        raise _in_callers_words(error, {"n": "best_of"}) from error


def chat_params(request: ChatRequest, defaults: GenerationDefaults) -> SamplingParams:
    """How to sample the answers to a chat request.

    Raises:
        InvalidRequest: a value out of its range, or a field that isn't served.
    """
    refuse(request.tools, "tools", "calling tools isn't supported yet")
    refuse(request.functions, "functions", "calling functions isn't supported")
    refuse(request.chat_template, "chat_template", OWN_TEMPLATE)
    for param, choice in (("tool_choice", request.tool_choice), ("function_call", request.function_call)):
        if choice not in (None, "none", "auto"):
            raise _unsupported(param, "there are no tools to choose from")
    _check_constraints(request)
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs needs `logprobs: true`", param="top_logprobs", code="invalid_value")
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    words = {"logprobs": "top_logprobs"}
    max_tokens = request.max_tokens
    if request.max_completion_tokens is not None:
        max_tokens = request.max_completion_tokens
        words["max_tokens"] = "max_completion_tokens"
    return _sampling_params(request, defaults, max_tokens, logprobs, words)


def _check_constraints(request: GenerateRequest) -> None:
    """An answer without the constraint that was asked for would be read as one with it."""
    if request.response_format is not None and request.response_format.type != "text":
        raise _unsupported("response_format", "only the type `text` is supported yet")
    for param in ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"):
        refuse(getattr(request, param), param, "constrained answers aren't supported yet")


def refuse(value: object, param: str, why: str) -> None:
    """A field that would change the answer if it were served.

    Raises:
        InvalidRequest: it is asked for.
    """
    if value:
        raise _unsupported(param, why)


def _unsupported(param: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"{param}: {why}", param=param, code="unsupported_parameter")


def _sampling_params(
    request: GenerateRequest,
    defaults: GenerationDefaults,
    max_tokens: int | None,
    logprobs: int | None,
    words: dict[str, str],
) -> SamplingParams:
    """`words` are the caller's names for ours, where they differ."""
    if request.prompt_logprobs is not None and request.stream:
        raise _unsupported("prompt_logprobs", "log-probabilities of the prompt can't be streamed")
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("stream_options needs `stream: true`", param="stream_options", code="invalid_value")
    if request.use_beam_search:
        # Recommendations are for drawing; what the request itself asks of that kind is refused.
        defaults = GenerationDefaults(temperature=0)
    names = SamplingParams.__struct_fields__
    given = {name: getattr(request, name) for name in names if getattr(request, name, None) is not None}
    values: dict[str, object] = {**defaults.as_params(), **given, "max_tokens": max_tokens, "logprobs": logprobs}
    if values.get("top_k") == -1:
        # vLLM's word for "off" besides 0.
        values["top_k"] = 0
    try:
        return SamplingParams(**values)  # type: ignore[arg-type]  # its own check is what is wanted here
    except InvalidRequest as error:
        raise _in_callers_words(error, words) from error


def _in_callers_words(error: InvalidRequest, words: dict[str, str]) -> InvalidRequest:
    ours = error.param or ""
    theirs = words.get(ours, ours)
    message = theirs + error.message.removeprefix(ours) if error.message.startswith(ours) else error.message
    return InvalidRequest(message, param=theirs or None, code=error.code or "invalid_value")


@dataclass(frozen=True, slots=True)
class Terms:
    """What a request asks besides its sampling, and for whom.

    Args:
        deadline: an instant of the engine's clock.
        beams: answers are searched for, not drawn.
    """

    priority: int
    cache_salt: str
    deadline: float | None
    tenant: str
    beams: BeamSearch | None = None


def terms_of(request: GenerateRequest, owner: str, timeout: str | None, now: float) -> Terms:
    """See `Terms`.

    Args:
        owner: names the key that it came with.
        timeout: of the header `x-request-timeout`, seconds.

    Raises:
        InvalidRequest: a header that isn't a time, or half of a search.
    """
    deadline = None if timeout is None else now + _seconds(timeout)
    return Terms(request.priority or 0, request.cache_salt or "", deadline, owner, _beams_of(request))


def _beams_of(request: GenerateRequest) -> BeamSearch | None:
    """As many beams as `best_of` says, or as answers are wanted: vLLM's words."""
    penalty, early = request.length_penalty, request.early_stopping
    if request.use_beam_search:
        best_of = request.best_of if isinstance(request, CompletionRequest) else None
        return BeamSearch(
            width=best_of or request.n or 1,
            length_penalty=1.0 if penalty is None else penalty,
            early_stopping=early or False,
        )
    for param, asked in (("length_penalty", penalty not in (None, 1)), ("early_stopping", early)):
        if asked:
            raise InvalidRequest(f"{param} needs `use_beam_search: true`", param=param, code="invalid_value")
    return None


def _seconds(timeout: str) -> float:
    seconds = float(timeout) if _SECONDS.fullmatch(timeout) else 0.0
    if not 0 < seconds <= MAX_TIMEOUT:
        raise InvalidRequest(
            f"the header x-request-timeout takes seconds, more than 0 and at most {MAX_TIMEOUT:.0f}",
            param="x-request-timeout",
            code="invalid_value",
        )
    return seconds


def prompts_of(request: CompletionRequest) -> list[str] | list[list[int]]:
    """The prompts, all text or all token ids.

    Raises:
        InvalidRequest: none, too many, or a mixture.
    """
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    texts = [item for item in prompt if isinstance(item, str)]
    token_lists = [item for item in prompt if isinstance(item, list)]
    tokens = [item for item in prompt if isinstance(item, int)]
    if not prompt or len(prompt) not in (len(texts), len(token_lists), len(tokens)):
        raise InvalidRequest(
            "prompt must be a string, a list of strings, a list of token ids or a list of lists of token ids",
            param="prompt",
            code="invalid_type",
        )
    if not tokens and len(prompt) > MAX_PROMPTS:
        raise InvalidRequest(f"{len(prompt)} prompts are more than {MAX_PROMPTS}", param="prompt", code="invalid_value")
    return texts or token_lists or [tokens]


def messages_of(messages: list[ChatMessage]) -> list[dict[str, object]]:
    """The conversation as chat templates read it.

    Raises:
        InvalidRequest: content that isn't text.
    """
    return [_template_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _template_message(message: ChatMessage, place: str) -> dict[str, object]:
    rendered: dict[str, object] = {"role": message.role, "content": _text_content(message, place)}
    for name in ("name", "tool_call_id", "reasoning_content"):
        if getattr(message, name) is not None:
            rendered[name] = getattr(message, name)
    if message.tool_calls:
        rendered["tool_calls"] = [_template_call(call) for call in message.tool_calls]
    return rendered


def _text_content(message: ChatMessage, place: str) -> str:
    if message.content is None:
        if message.role == "assistant":
            return ""
        raise InvalidRequest(
            f"missing required parameter: {place}.content", param=f"{place}.content", code="missing_required_parameter"
        )
    if isinstance(message.content, str):
        return message.content
    return "\n".join(_text_part(part, f"{place}.content[{i}]") for i, part in enumerate(message.content))


def _text_part(part: ContentPart, place: str) -> str:
    if part.type == "text" and part.text is not None:
        return part.text
    raise InvalidRequest(
        f"{place}: only parts of type `text`, with a `text`, are supported", param=place, code="invalid_value"
    )


def _template_call(call: ToolCall) -> dict[str, object]:
    """Templates expect the arguments as an object; OpenAI sends them as JSON in a string."""
    arguments: object = call.function.arguments
    try:
        arguments = msgspec.json.decode(call.function.arguments)
    except (ValueError, RecursionError):
        arguments = call.function.arguments
    return {"id": call.id, "type": call.type, "function": {"name": call.function.name, "arguments": arguments}}
