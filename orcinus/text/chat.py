"""Chat templates: Jinja programs that come with a checkpoint and lay messages out as the model was trained on them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.utils
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from orcinus.errors import CheckpointError, InvalidRequest
from orcinus.text.tokenizer import Tokenizer

MAX_RENDERED_CHARACTERS = 16 * 2**20
Message = Mapping[str, object]
Scalar = str | int | float | bool | None


class ChatTemplate:
    """One compiled template. Rendering equals `transformers`' `apply_chat_template`; the sandbox is set up as there.

    The sandbox keeps a template from attributes, files and modules, and the output is bounded; time is not.

    Args:
        source: the template.
        special_tokens: variables that templates expect, such as `bos_token`.

    Raises:
        CheckpointError: the source isn't a template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            variables = jinja2.meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateError as error:
            raise CheckpointError(f"the checkpoint's chat template is not a Jinja template: {error}") from error
        self._special_tokens = dict(special_tokens)
        self._variables = variables - {"messages", "tools", "documents", "add_generation_prompt", *special_tokens}

    @classmethod
    def of(cls, tokenizer: Tokenizer | None) -> ChatTemplate | None:
        """The template of a checkpoint, if it has one."""
        if tokenizer is None or tokenizer.chat_template is None:
            return None
        tokens = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
        return cls(tokenizer.chat_template, {name: token for name, token in tokens.items() if token is not None})

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Scalar] | None = None,
    ) -> str:
        """The prompt for a conversation; special tokens are spelled out in it, so encode it without adding any.

        Args:
            messages: `role`, `content` and what else the template reads; plain JSON values.
            add_generation_prompt: end with the opening of the assistant's turn.
            continue_final_message: end within the last message, so that the answer goes on with it.
            variables: of the template's own, such as `enable_thinking`.

        Raises:
            InvalidRequest: the template refuses the conversation, or doesn't know a variable.
        """
        unknown = sorted(set(variables or ()) - self._variables)
        if unknown:
            raise InvalidRequest(
                f"the chat template has no variable {unknown[0][:100]!r}; it knows {sorted(self._variables)}",
                param="chat_template_kwargs",
                code="invalid_value",
            )
        try:
            pieces = self._template.generate(
                {
                    **self._special_tokens,
                    **(variables or {}),
                    "messages": messages,
                    "tools": None,
                    "documents": None,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
            text = _join_bounded(pieces)
        except _REFUSALS as error:
            # Templates speak to the caller through raise_exception; what else goes wrong is no news for strangers.
            reason = str(error)[:200] if isinstance(error, _Refusal) else "its shape is not what the template expects"
            raise InvalidRequest(
                f"the model's chat template refuses this conversation: {reason}",
                param="messages",
                code="invalid_value",
            ) from error
        return _cut_after(text, messages[-1]) if continue_final_message else text


class _Refusal(jinja2.TemplateError):
    """The template called `raise_exception`."""


# Templates are programs: a message without the content they concatenate raises what Python raises.
_REFUSALS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


def _join_bounded(pieces: Any) -> str:
    parts: list[str] = []
    length = 0
    for piece in pieces:
        length += len(piece)
        if length > MAX_RENDERED_CHARACTERS:
            raise _Refusal(f"the prompt grows beyond {MAX_RENDERED_CHARACTERS} characters")
        parts.append(piece)
    return "".join(parts)


def _cut_after(text: str, message: Message) -> str:
    """The rendered text up to the end of its last message's content."""
    content = str(message.get("content") or "")
    end = text.rfind(content.strip())
    if not content.strip() or end < 0:
        raise InvalidRequest(
            "continue_final_message needs a last message whose content the chat template keeps as it is",
            param="continue_final_message",
            code="invalid_value",
        )
    # Templates often strip a message; where this one doesn't, its trailing space belongs to what is continued.
    exact = text.rfind(content)
    return text[: exact + len(content)] if exact >= 0 else text[: end + len(content.strip())]


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks what the assistant said, for training; here it is just its body."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's own protocol)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements between the two tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _PlainDict()
    environment.globals["namespace"] = _Namespace
    return environment


class _PlainDict:
    """`dict(...)` for templates, without the class behind it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """`namespace(...)` for templates; names with an underscore in front would reach Python's own attributes."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # Jinja's own signature: `namespace(self=...)` is a legal template.
        self, attributes = args[0], dict(*args[1:], **kwargs)
        for name in attributes:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: object) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace can't store {name!r}: it begins with an underscore")


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which models weren't trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> NoReturn:
    raise _Refusal(str(message))


def _strftime_now(style: str) -> str:
    return datetime.now().strftime(style)
