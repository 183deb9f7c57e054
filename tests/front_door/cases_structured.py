"""Tools, functions and structured answers: not served yet, so whoever asks for them must be told, never ignored."""

from __future__ import annotations

from cases import ANYTHING, Case, chat, completion

UNSUPPORTED = "unsupported_parameter"


def _function(parameters: object) -> dict[str, object]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


def _format(schema: object) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": schema}}


def _nested(depth: int) -> dict[str, object]:
    schema: dict[str, object] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


# What grammar compilers died of: each is small to send.
_SCHEMAS: dict[str, object] = {
    "object": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    "true": True,
    "number": 5,
    "null": None,
    "unknown-type": {"type": "tensor"},
    "nested-25": _nested(25),
    "cycle": {"$ref": "#"},
    "cycle-of-two": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "dangling": {"$ref": "#/$defs/nowhere"},
    "remote": {"$ref": "http://127.0.0.1:9/schema.json"},
    "file": {"$ref": "file:///etc/passwd"},
    "laughs": {
        "$defs": {f"l{i}": {"anyOf": [{"$ref": f"#/$defs/l{i + 1}"}] * 10} for i in range(12)} | {"l12": {"const": 1}},
        "$ref": "#/$defs/l0",
    },
    "pattern-backtracking": {"type": "string", "pattern": "^(a+)+$"},
    "pattern-look-around": {"type": "string", "pattern": "(?=a)(?<!b)(\\1)"},
    "pattern-broken": {"type": "string", "pattern": "(["},
    "pattern-repeats": {"type": "string", "pattern": "((a{1,1000}){1,1000}){1,1000}"},
    "many-items": {"type": "array", "items": {"type": "string"}, "minItems": 10**9, "maxItems": 10**9},
    "long-string": {"type": "string", "minLength": 10**12},
    "unsatisfiable": {"allOf": [{"type": "string"}, {"type": "integer"}]},
    "empty-choice": {"enum": []},
    "large-choice": {"enum": [str(number) for number in range(50_000)]},
}
_FORMATS: dict[str, object] = {
    "json_object": {"type": "json_object"},
    "json_schema-alone": {"type": "json_schema"},
    "grammar": {"type": "grammar", "grammar": 'root ::= "a" root'},
    "structural_tag": {"type": "structural_tag", "structures": [], "triggers": []},
    "unknown": {"type": "xml"},
    "empty": {"type": ""},
}
_NOT_FORMATS: dict[str, object] = {"string": "json", "list": [], "number": 5, "type-number": {"type": 5}}
_TOOLS: dict[str, object] = {
    "function": [_function({"type": "object"})],
    "nothing": [{}],
    "string-inside": ["f"],
    "null-inside": [None],
    "no-name": [{"type": "function", "function": {}}],
    "code-interpreter": [{"type": "code_interpreter", "container": {"type": "auto"}}],
    "server-url": [{"type": "mcp", "server_url": "http://127.0.0.1:9/"}],
    "name-1-mb": [{"type": "function", "function": {"name": "f" * 2**20}}],
}
_NOT_LISTS: dict[str, object] = {"string": "f", "object": {"name": "f"}, "number": 5, "true": True}
# A promise about the shape of the answer, in vLLM's words; an answer without it would be read as one with it.
_GUIDED: dict[str, object] = {
    "guided_json": {"type": "object"},
    "guided_regex": "(a+)+$",
    "guided_choice": ["yes", "no"],
    "guided_grammar": 'root ::= "a"',
    "structured_outputs": {"regex": "a"},
}
_CHOICES: dict[str, object] = {
    "required": "required",
    "named": {"type": "function", "function": {"name": "f"}},
}

CASES: list[Case] = [
    *(
        chat(f"format-{name}", {"response_format": value}, UNSUPPORTED, "response_format")
        for name, value in _FORMATS.items()
    ),
    *(
        chat(f"format-{name}", {"response_format": value}, "invalid_type", "response_format")
        for name, value in _NOT_FORMATS.items()
    ),
    chat("format-1-mb", {"response_format": {"type": "t" * 2**20}}, ANYTHING, "response_format"),
    chat("format-no-type", {"response_format": {}}, "missing_required_parameter", "response_format.type"),
    *(
        chat(f"schema-{name}", {"response_format": _format(schema)}, UNSUPPORTED, "response_format")
        for name, schema in _SCHEMAS.items()
    ),
    completion("format-in-completion", {"response_format": {"type": "json_object"}}, UNSUPPORTED, "response_format"),
    *(chat(f"tools-{name}", {"tools": value}, ANYTHING, "tools") for name, value in _TOOLS.items()),
    *(chat(f"tools-{name}", {"tools": value}, "invalid_type", "tools") for name, value in _NOT_LISTS.items()),
    chat("tools-129", {"tools": [_function({})] * 129}, ANYTHING, "tools"),
    chat("tools-100000", {"tools": [0] * 100_000}, ANYTHING, "tools"),
    *(
        chat(f"tools-schema-{name}", {"tools": [_function(_SCHEMAS[name])]}, ANYTHING, "tools")
        for name in ("cycle", "dangling", "laughs", "pattern-broken", "unknown-type")
    ),
    chat("functions", {"functions": [{"name": "f"}]}, UNSUPPORTED, "functions"),
    *(
        chat(f"functions-{name}", {"functions": value}, "invalid_type", "functions")
        for name, value in _NOT_LISTS.items()
    ),
    *(chat(f"tool_choice-{name}", {"tool_choice": value}, ANYTHING, "tool_choice") for name, value in _CHOICES.items()),
    chat("function_call-named", {"function_call": {"name": "f"}}, ANYTHING, "function_call"),
    *(chat(name, {name: value}, UNSUPPORTED, name) for name, value in _GUIDED.items()),
    *(completion(f"completion-{name}", {name: value}, UNSUPPORTED, name) for name, value in _GUIDED.items()),
]
