"""Every sampling parameter with values of the wrong type (nothing is coerced) and outside its range, on both sides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cases import ANYTHING, Case, chat, completion, for_both

_VOCABULARY, _CONTEXT = 4096, 2048
Row = tuple[str, dict[str, object], str | None, str | None]


@dataclass(frozen=True, slots=True)
class Number:
    """A numeric parameter; `below` and `above` are the nearest refused values."""

    name: str
    below: float
    above: float
    whole: bool = True
    # Where this one needs another to make sense.
    beside: tuple[tuple[str, object], ...] = ()


_SHARED = (
    Number("n", 0, 129),
    Number("temperature", -0.01, 2.01, whole=False),
    Number("top_p", 0, 1.01, whole=False),
    Number("presence_penalty", -2.01, 2.01, whole=False),
    Number("frequency_penalty", -2.01, 2.01, whole=False),
    Number("seed", -(2**63) - 1, 2**63),
    Number("top_k", -2, 2**31),
    Number("min_p", -0.01, 1.01, whole=False),
    Number("repetition_penalty", 0, 2.01, whole=False),
    Number("max_tokens", 0, 2**31),
    Number("min_tokens", -1, 2**31),
    Number("prompt_logprobs", -1, 21),
    Number("truncate_prompt_tokens", -2, _CONTEXT + 1),
    Number("priority", -(2**31) - 1, 2**31 + 1),
)
_OF_COMPLETIONS = (Number("logprobs", -1, 21), Number("best_of", 0, 129))
_OF_CHAT = (
    Number("max_completion_tokens", 0, 2**31),
    Number("top_logprobs", -1, 21, beside=(("logprobs", True),)),
)
_NOT_NUMBERS: tuple[tuple[str, object], ...] = (
    ("string", "1"),
    ("true", True),
    ("false", False),
    ("list", [1]),
    ("object", {"value": 1}),
    ("nan-string", "NaN"),
    ("empty-string", ""),
)
_SWITCHES = (
    "stream",
    "ignore_eos",
    "skip_special_tokens",
    "include_stop_str_in_output",
    "return_token_ids",
)
_NOT_SWITCHES: tuple[tuple[str, object], ...] = (("one", 1), ("zero", 0), ("string", "true"), ("list", []))
_NOT_TEXTS: tuple[tuple[str, object], ...] = (("number", 1), ("true", True), ("list", ["x"]), ("object", {}))
_NOT_TOKEN_LISTS: tuple[tuple[str, object], ...] = (
    ("string", "1"),
    ("number", 1),
    ("object", {}),
    ("strings", ["1"]),
    ("booleans", [True]),
    ("fraction", [1.5]),
    ("null-inside", [None]),
    ("nested", [[1]]),
)
_BAD_TOKENS: tuple[tuple[str, object], ...] = (
    ("negative", [-1]),
    ("out-of-vocabulary", [_VOCABULARY]),
    ("2^32", [2**32]),
    ("2^64", [2**64]),
    ("1025", [1] * 1025),
)
# What is wrong with a key may be called a wrong type or a wrong value.
_BIAS_KEYS = {
    "word": {"x": 1},
    "empty": {"": 1},
    "space": {" 5": 1},
    "fraction": {"1.5": 1},
    "exponent": {"1e3": 1},
    "hexadecimal": {"0x5": 1},
    "plus": {"+5": 1},
    "underscore": {"1_0": 1},
    "negative": {"-1": 1},
    "out-of-vocabulary": {str(_VOCABULARY): 1},
    "2^64": {str(2**64): 1},
    "digits-5000": {"9" * 5000: 1},
    "same-token-twice": {"5": 1, "05": -1},
}
_BIAS_TYPES = {
    "string": "5",
    "number": 5,
    "list": [[5, 1]],
    "value-string": {"5": "1"},
    "value-true": {"5": True},
    "value-null": {"5": None},
    "value-list": {"5": [1]},
}
_BIAS_VALUES = {
    "101": {"5": 101},
    "minus-100.5": {"5": -100.5},
    "1e308": {"5": 1e308},
    "1025-entries": {str(token): 1 for token in range(1025)},
}
_STOPS: tuple[tuple[str, object, str], ...] = (
    ("17", [str(number) for number in range(17)], "invalid_value"),
    ("empty", "", "invalid_value"),
    ("empty-inside", ["x", ""], "invalid_value"),
    ("513", "s" * 513, "invalid_value"),
    ("513-inside", ["x", "s" * 513], "invalid_value"),
    ("1-mb", "s" * 2**20, "invalid_value"),
    ("100000", ["s"] * 100_000, "invalid_value"),
    ("number", 5, "invalid_type"),
    ("true", True, "invalid_type"),
    ("object", {"0": "x"}, "invalid_type"),
    ("mixed", ["x", 5], "invalid_type"),
    ("null-inside", [None], "invalid_type"),
    ("nested", [["x"]], "invalid_type"),
)
_SALTS = {"space": "a b", "letter": "é", "path": "../a", "nul": "a\0", "newline": "a\n", "65": "s" * 65}


def _number_rows(number: Number) -> Iterator[Row]:
    beside = dict(number.beside)
    for label, value in (*_NOT_NUMBERS, *([("fraction", 1.5)] if number.whole else [])):
        yield f"{number.name}-{label}", beside | {number.name: value}, "invalid_type", number.name
    for label, edge in (("below", number.below), ("above", number.above)):
        yield f"{number.name}-{label}", beside | {number.name: edge}, "invalid_value", number.name
    huge = 10**30 if number.whole else 1e300
    yield f"{number.name}-huge", beside | {number.name: huge}, "invalid_value", number.name


def _numbers() -> list[Case]:
    cases = [completion(*row) for number in (*_SHARED, *_OF_COMPLETIONS) for row in _number_rows(number)]
    # The same table stands behind both endpoints; a smaller part of it shows that.
    cases += [chat(*row) for number in _OF_CHAT for row in _number_rows(number)]
    picked = {"string", "below", "above"}
    rows = [row for number in _SHARED for row in _number_rows(number) if row[0].rpartition("-")[2] in picked]
    return cases + [chat(f"chat-{name}", change, code, param) for name, change, code, param in rows]


def _switches() -> list[Case]:
    rows: list[Row] = [
        (f"{name}-{label}", {name: value}, "invalid_type", name) for name in _SWITCHES for label, value in _NOT_SWITCHES
    ]
    own = [
        *(completion(f"echo-{label}", {"echo": value}, "invalid_type", "echo") for label, value in _NOT_SWITCHES),
        *(
            chat(f"chat-logprobs-{label}", {"logprobs": value}, "invalid_type", "logprobs")
            for label, value in _NOT_SWITCHES
        ),
    ]
    for name in ("add_generation_prompt", "continue_final_message"):
        own += [chat(f"{name}-{label}", {name: value}, "invalid_type", name) for label, value in _NOT_SWITCHES]
    return [completion(*row) for row in rows] + own


def _texts() -> list[Case]:
    rows: list[Row] = [
        (f"{name}-{label}", {name: value}, "invalid_type", name)
        for name in ("user", "cache_salt", "suffix")
        for label, value in _NOT_TEXTS
    ]
    rows += [("user-257", {"user": "u" * 257}, "invalid_value", "user")]
    rows += [("user-1-mb", {"user": "u" * 2**20}, "invalid_value", "user")]
    rows += [
        (f"cache_salt-{label}", {"cache_salt": salt}, "invalid_value", "cache_salt") for label, salt in _SALTS.items()
    ]
    return [completion(*row) for row in rows]


def _tokens() -> list[Case]:
    cases = []
    for name in ("stop_token_ids", "allowed_token_ids"):
        cases += [
            completion(f"{name}-{label}", {name: value}, "invalid_type", name) for label, value in _NOT_TOKEN_LISTS
        ]
        cases += [completion(f"{name}-{label}", {name: value}, "invalid_value", name) for label, value in _BAD_TOKENS]
    cases += [completion("allowed_token_ids-empty", {"allowed_token_ids": []}, "invalid_value", "allowed_token_ids")]
    return cases


def _bias() -> list[Case]:
    rows: list[Row] = []
    for group, table, code in (
        ("key", _BIAS_KEYS, ANYTHING),
        ("type", _BIAS_TYPES, "invalid_type"),
        ("value", _BIAS_VALUES, "invalid_value"),
    ):
        rows += [
            (f"logit_bias-{group}-{name}", {"logit_bias": value}, code, "logit_bias") for name, value in table.items()
        ]
    return [completion(*row) for row in rows]


_TOGETHER: tuple[Row, ...] = (
    ("best_of-below-n", {"n": 3, "best_of": 2}, "invalid_value", "best_of"),
    ("best_of-streamed", {"best_of": 2, "stream": True}, "unsupported_parameter", "best_of"),
    ("echo-logprobs-streamed", {"echo": True, "logprobs": 1, "stream": True}, "unsupported_parameter", "echo"),
    ("suffix", {"suffix": "the end"}, "unsupported_parameter", "suffix"),
)
_TOGETHER_ON_BOTH: tuple[Row, ...] = (
    ("min-above-max", {"min_tokens": 5, "max_tokens": 4}, "invalid_value", "min_tokens"),
    ("prompt_logprobs-streamed", {"prompt_logprobs": 1, "stream": True}, "unsupported_parameter", "prompt_logprobs"),
    ("stream_options-unstreamed", {"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
    ("stream_options-string", {"stream": True, "stream_options": "x"}, "invalid_type", "stream_options"),
    ("include_usage-one", {"stream": True, "stream_options": {"include_usage": 1}}, "invalid_type", "stream_options"),
)
_CHAT_TOGETHER: tuple[Row, ...] = (
    ("top_logprobs-alone", {"top_logprobs": 2}, "invalid_value", "top_logprobs"),
    ("top_logprobs-refused", {"top_logprobs": 2, "logprobs": False}, "invalid_value", "top_logprobs"),
    ("logprobs-number", {"logprobs": 5}, "invalid_type", "logprobs"),
)

CASES = [
    *_numbers(),
    *_switches(),
    *_texts(),
    *_tokens(),
    *_bias(),
    *for_both((f"stop-{name}", {"stop": value}, code, "stop") for name, value, code in _STOPS),
    *(completion(*row) for row in _TOGETHER),
    *for_both(_TOGETHER_ON_BOTH),
    *(chat(*row) for row in _CHAT_TOGETHER),
]
