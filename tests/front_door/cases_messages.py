"""Conversations: messages, roles, contents, earlier calls of tools, media, and templates that a request brings."""

from __future__ import annotations

from cases import ANYTHING, CONVERSATION, Case, chat, refused

_MB = 2**20
_USER = {"role": "user", "content": "hi"}
Row = tuple[str, object, str | None, str | None]

_LISTS: tuple[Row, ...] = (
    ("null", None, "invalid_type", "messages"),
    ("string", "hi", "invalid_type", "messages"),
    ("number", 5, "invalid_type", "messages"),
    ("object", _USER, "invalid_type", "messages"),
    ("empty", [], "invalid_value", "messages"),
    ("null-inside", [None], "invalid_type", "messages"),
    ("string-inside", ["hi"], "invalid_type", "messages"),
    ("list-inside", [[_USER]], "invalid_type", "messages"),
    ("number-after", [_USER, 5], "invalid_type", "messages"),
    ("4097", [_USER] * 4097, "invalid_value", "messages"),
    ("100000", [_USER] * 100_000, "invalid_value", "messages"),
)
_ROLES: dict[str, object] = {
    "unknown": "robot",
    "empty": "",
    "upper-case": "User",
    "space-after": "user ",
    "nul": "user\0",
    "special-token": "<|system|>",
    "template": "{{ messages }}",
    "1-mb": "r" * _MB,
}
_NOT_TEXTS: dict[str, object] = {"number": 5, "true": True, "list": ["x"], "object": {"x": 1}}
_NOT_CONTENTS: dict[str, object] = {
    "number": 5,
    "fraction": 0.5,
    "true": True,
    "object": {"type": "text", "text": "hi"},
    "strings": ["hi"],
    "null-part": [None],
    "number-part": [5],
    "list-part": [[{"type": "text", "text": "hi"}]],
}
_PARTS: tuple[Row, ...] = (
    ("no-type", {"text": "hi"}, "missing_required_parameter", "messages[0].content[0].type"),
    ("type-number", {"type": 5, "text": "hi"}, "invalid_type", "messages[0].content[0].type"),
    ("type-null", {"type": None, "text": "hi"}, "invalid_type", "messages[0].content[0].type"),
    ("unknown-type", {"type": "hologram", "text": "hi"}, ANYTHING, "messages[0].content[0]"),
    ("no-text", {"type": "text"}, ANYTHING, "messages[0].content[0]"),
    ("text-null", {"type": "text", "text": None}, ANYTHING, "messages[0].content[0]"),
    ("text-number", {"type": "text", "text": 5}, "invalid_type", "messages[0].content[0].text"),
)
_TRAP = "http://127.0.0.1:9/trap"
_MEDIA: dict[str, object] = {
    "image": {"type": "image_url", "image_url": {"url": f"{_TRAP}.png"}},
    "image-string": {"type": "image_url", "image_url": _TRAP},
    "image-file": {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
    "image-data": {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
    "image-data-huge": {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * _MB}},
    "image-metadata-service": {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}},
    "image-mapped-address": {"type": "image_url", "image_url": {"url": "http://[::ffff:127.0.0.1]/"}},
    "image-with-text": {"type": "image_url", "text": "hi", "image_url": {"url": _TRAP}},
    "audio": {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
    "audio-url": {"type": "audio_url", "audio_url": {"url": _TRAP}},
    "video": {"type": "video_url", "video_url": {"url": _TRAP}},
    "file": {"type": "file", "file": {"file_id": "file-1"}},
    "embeddings": {"type": "image_embeds", "image_embeds": "gASV"},
    "responses-text": {"type": "input_text", "text": "hi"},
}


def _call(**change: object) -> dict[str, object]:
    return {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}} | change


def _with_calls(calls: object) -> list[object]:
    return [_USER, {"role": "assistant", "content": None, "tool_calls": calls}]


_CALLS: tuple[Row, ...] = (
    ("string", "f()", "invalid_type", "messages[1].tool_calls"),
    ("object", _call(), "invalid_type", "messages[1].tool_calls"),
    ("empty-call", [{}], "missing_required_parameter", "messages[1].tool_calls[0].function"),
    ("function-string", [_call(function="f")], "invalid_type", "messages[1].tool_calls[0].function"),
    ("no-name", [_call(function={})], "missing_required_parameter", "messages[1].tool_calls[0].function.name"),
    ("name-number", [_call(function={"name": 5})], "invalid_type", "messages[1].tool_calls[0].function.name"),
    (
        "arguments-object",
        [_call(function={"name": "f", "arguments": {}})],
        "invalid_type",
        "messages[1].tool_calls[0].function.arguments",
    ),
    ("id-number", [_call(id=1)], "invalid_type", "messages[1].tool_calls[0].id"),
    ("type-number", [_call(type=1)], "invalid_type", "messages[1].tool_calls[0].type"),
    ("129", [_call()] * 129, "invalid_value", "messages[1].tool_calls"),
    ("name-1-mb", [_call(function={"name": "f" * _MB})], "invalid_value", "messages[1].tool_calls[0].function.name"),
    ("id-1-mb", [_call(id="i" * _MB)], "invalid_value", "messages[1].tool_calls[0].id"),
    ("type-1-mb", [_call(type="t" * _MB)], "invalid_value", "messages[1].tool_calls[0].type"),
)
_ENDS: tuple[tuple[str, dict[str, object], str | None], ...] = (
    ("both-ends", {"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    (
        "continue-nothing",
        {"messages": [_USER, {"role": "assistant", "content": ""}], "continue_final_message": True},
        "continue_final_message",
    ),
    (
        "continue-a-call",
        {"messages": _with_calls([_call()]), "continue_final_message": True},
        "continue_final_message",
    ),
)
_CANARY = "{{ cycler.__init__.__globals__.os.popen('touch canary').read() }}"
_TEMPLATES: dict[str, str] = {
    "plain": "{{ messages[0].content }}",
    "canary": _CANARY,
    "endless": "{% for i in range(10**12) %}x{% endfor %}",
    "broken": "{% if %}",
    "1-mb": "x" * _MB,
    "name": "chatml",
    "path": "/etc/passwd",
}
_VARIABLES: dict[str, object] = {
    "unknown": {"enable_thinking": True},
    "unknown-null": {"enable_thinking": None},
    "messages": {"messages": "x"},
    "tools": {"tools": "x"},
    "special-token": {"bos_token": "x"},
    "generation-prompt": {"add_generation_prompt": True},
    "function": {"raise_exception": "x"},
    "namespace": {"namespace": "x"},
    "dunder": {"__class__": "x"},
    "empty-name": {"": "x"},
    "template": {"chat_template": _CANARY},
    "long-name": {"v" * _MB: 1},
    "1000": {f"v{number}": 1 for number in range(1000)},
}
_NOT_VARIABLES: dict[str, object] = {
    "string": "x",
    "list": [],
    "number": 5,
    "list-inside": {"a": [1]},
    "object-inside": {"a": {"b": 1}},
    "deep-inside": {"a": {"b": {"c": {"d": [None]}}}},
}


def _fields() -> list[Case]:
    cases = []
    for name in ("name", "tool_call_id", "reasoning_content"):
        place = f"messages[0].{name}"
        cases += [
            _messages(f"{name}-{label}", [_USER | {name: value}], "invalid_type", place)
            for label, value in _NOT_TEXTS.items()
        ]
    for name in ("name", "tool_call_id"):
        cases.append(_messages(f"{name}-1-mb", [_USER | {name: "n" * _MB}], "invalid_value", f"messages[0].{name}"))
    return cases


def _messages(name: str, messages: object, code: str | None, param: str | None) -> Case:
    return chat(name, {"messages": messages}, code, param)


def _content(name: str, content: object, code: str | None, param: str) -> Case:
    return _messages(name, [{"role": "user", "content": content}], code, param)


CASES = [
    *(_messages(f"messages-{name}", value, code, param) for name, value, code, param in _LISTS),
    *(
        _messages(f"role-{name}", [_USER | {"role": role}], "invalid_value", "messages[0].role")
        for name, role in _ROLES.items()
    ),
    *(
        _messages(f"role-{name}", [_USER | {"role": role}], "invalid_type", "messages[0].role")
        for name, role in (_NOT_TEXTS | {"null": None}).items()
    ),
    _messages("role-missing", [{"content": "hi"}], "missing_required_parameter", "messages[0].role"),
    # This model's template has no such role, and says so.
    _messages("role-developer", [{"role": "developer", "content": "hi"}], ANYTHING, "messages"),
    _messages("message-empty", [_USER, {}], "missing_required_parameter", "messages[1].role"),
    _messages("content-missing", [{"role": "user"}], "missing_required_parameter", "messages[0].content"),
    _content("content-null", None, ANYTHING, "messages[0].content"),
    *(
        _content(f"content-{name}", value, "invalid_type", "messages[0].content")
        for name, value in _NOT_CONTENTS.items()
    ),
    _content("content-1025-parts", [{"type": "text", "text": "a"}] * 1025, "invalid_value", "messages[0].content"),
    _content("content-long", "word and " * 5_000, "context_length_exceeded", "messages"),
    *(_content(f"part-{name}", [part], code, str(param)) for name, part, code, param in _PARTS),
    *(_content(f"media-{name}", [part], ANYTHING, "messages[0].content[0]") for name, part in _MEDIA.items()),
    *_fields(),
    *(_messages(f"calls-{name}", _with_calls(calls), code, param) for name, calls, code, param in _CALLS),
    *(chat(name, change, "invalid_value", param) for name, change, param in _ENDS),
    *(
        chat(f"template-{name}", {"chat_template": template}, "unsupported_parameter", "chat_template")
        for name, template in _TEMPLATES.items()
    ),
    chat("template-number", {"chat_template": 5}, "invalid_type", "chat_template"),
    *(
        chat(f"variables-{name}", {"chat_template_kwargs": value}, "invalid_value", "chat_template_kwargs")
        for name, value in _VARIABLES.items()
    ),
    *(
        chat(f"variables-{name}", {"chat_template_kwargs": value}, "invalid_type", "chat_template_kwargs")
        for name, value in _NOT_VARIABLES.items()
    ),
    refused(
        "variables-at-tokenize",
        "/tokenize",
        CONVERSATION | {"chat_template_kwargs": {"enable_thinking": True}},
        "invalid_value",
        "chat_template_kwargs",
    ),
    refused(
        "template-at-tokenize",
        "/tokenize",
        CONVERSATION | {"chat_template": _CANARY},
        "unsupported_parameter",
        "chat_template",
    ),
]
