"""Prompts: empty, of tokens that don't exist, mixed, nested, too many, too long; and models that don't exist."""

from __future__ import annotations

from cases import ANYTHING, CHAT, PROMPT, Case, completion, encode, for_both

_VOCABULARY, _CONTEXT = 4096, 2048
_MAX_BODY = 16 * 2**20

_WRONG_TYPES: dict[str, object] = {
    "null": None,
    "number": 5,
    "fraction": 0.5,
    "true": True,
    "object": {"text": "hi"},
    "list-with-null": ["hi", None],
    "list-with-object": [{"prompt_token_ids": [1]}],
    "list-with-true": [True],
    "true-after-tokens": [1, True],
    "fractions": [1.5, 2.5],
    "text-and-token": ["hi", 1],
    "token-and-text": [1, "hi"],
    "text-and-tokens": ["hi", [1]],
    "token-and-tokens": [1, [2]],
    "strings-as-tokens": [["1", "2"]],
    "tokens-with-fraction": [[1, 2.5]],
    "tokens-with-null": [[1, None]],
    "three-levels": [[[1]]],
}
_WRONG_VALUES: dict[str, object] = {
    "empty-tokens-inside": [[]],
    "empty-tokens-after": [[1], []],
    "out-of-vocabulary": [_VOCABULARY],
    "out-of-vocabulary-inside": [[1], [_VOCABULARY]],
    "negative": [-1],
    "negative-inside": [[1, -1]],
    "2^31": [2**31],
    "2^32": [2**32],
    "2^64": [2**64],
    "minus-2^63": [-(2**63)],
    "10^30": [10**30],
    "257-texts": ["hi"] * 257,
    "257-token-lists": [[1]] * 257,
    "100000-texts": ["hi"] * 100_000,
}
_TOO_LONG: dict[str, object] = {
    "context-tokens": [5] * _CONTEXT,
    "100000-tokens": [5] * 100_000,
    "one-of-two": [[5], [5] * _CONTEXT],
    "words": "word and " * 5_000,
    "1-mb-of-one-letter": "a" * 2**20,
    "1-mb-of-spaces": " " * 2**20,
    "1-mb-of-newlines": "\n" * 2**20,
    "1-mb-of-emoji": "\U0001f600" * 2**18,
    "8-mb-of-words": "lorem ipsum dolor " * 466_000,
}
_UNKNOWN_MODELS = {
    "other": "gpt-4o",
    "empty": "",
    "space": " ",
    "space-after": "orcinus-tiny ",
    "newline-after": "orcinus-tiny\n",
    "nul-after": "orcinus-tiny\0",
    "slash-after": "orcinus-tiny/",
    "upper-case": "ORCINUS-TINY",
    "traversal": "../../../../etc/passwd",
    "traversal-from-here": "orcinus-tiny/../orcinus-tiny",
    "absolute": "/etc/passwd",
    "windows": "..\\..\\windows\\win.ini",
    "folder": "models/orcinus-tiny",
    "nul": "\0",
    "url": "http://169.254.169.254/latest/meta-data",
    "file-url": "file:///etc/passwd",
    "hub-name": "meta-llama/Llama-3.1-8B",
    "adapter": "orcinus-tiny:adapter",
    "template": "{{7*7}}${7*7}<%= 7*7 %>",
    "format": "%s%n{0.__class__}",
    "log-injection": "x\r\n2026-01-01 INFO all is well\x1b[2J",
    "markup": "<script>alert(1)</script>",
    "right-to-left": "\u202eynit-suncicro",
    "surrogate-pair": "\U0001f600" * 200,
    "1024-letters": "m" * 1024,
}
_NOT_MODELS: dict[str, object] = {"number": 5, "true": True, "list": ["orcinus-tiny"], "object": {"id": "orcinus-tiny"}}
_PATHS: dict[str, dict[str, object]] = {
    "/v1/embeddings": {"input": "hi"},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [5]},
}


def _model_not_found(name: str, path: str, value: object) -> Case:
    return Case(name=name, path=path, body=encode(value), statuses=(404,), code="model_not_found", param="model")


def _models() -> list[Case]:
    cases = [
        _model_not_found(f"model-{name}", "/v1/completions", PROMPT | {"model": model})
        for name, model in _UNKNOWN_MODELS.items()
    ]
    cases += [_model_not_found(f"model-at-{path}", path, body | {"model": "other"}) for path, body in _PATHS.items()]
    cases += for_both(
        (f"model-{name}", {"model": model}, "invalid_type", "model") for name, model in _NOT_MODELS.items()
    )
    return [
        *cases,
        _model_not_found("model-in-chat", CHAT, {"messages": [{"role": "user", "content": "hi"}], "model": "x"}),
    ]


def _large() -> list[Case]:
    """One byte decides."""
    frame = encode(PROMPT | {"user": ""})
    largest = frame.replace(b'""', b'"' + b"u" * (_MAX_BODY - len(frame)) + b'"')
    return [
        Case(name="body-16-mib", body=largest, code="invalid_value", param="user"),
        Case(name="body-16-mib-and-1", body=largest + b" ", statuses=(413,)),
        Case(name="body-of-spaces", body=b" " * (_MAX_BODY + 1), statuses=(413,)),
    ]


CASES = [
    *(completion(name, {"prompt": value}, "invalid_type", "prompt") for name, value in _WRONG_TYPES.items()),
    *(completion(name, {"prompt": value}, "invalid_value", "prompt") for name, value in _WRONG_VALUES.items()),
    # No prompt at all is a list of nothing: of which type, nobody knows.
    completion("empty-list", {"prompt": []}, ANYTHING, "prompt"),
    *(completion(name, {"prompt": value}, "context_length_exceeded", "prompt") for name, value in _TOO_LONG.items()),
    completion(
        "max_tokens-and-prompt", {"prompt": [5] * 2000, "max_tokens": 49}, "context_length_exceeded", "max_tokens"
    ),
    *for_both([("max_tokens-context", {"max_tokens": _CONTEXT}, "context_length_exceeded", "max_tokens")]),
    *_models(),
    Case(
        name="model-1-mb",
        body=encode(PROMPT | {"model": "m" * 2**20}),
        statuses=(404, 400),
        code=ANYTHING,
        param="model",
    ),
    *_large(),
]
