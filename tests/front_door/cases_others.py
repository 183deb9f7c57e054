"""The other endpoints: embeddings, classes, scores and rankings (of a model that generates), tokens and back."""

from __future__ import annotations

from cases import ANYTHING, Case, refused

_VOCABULARY, _CONTEXT, _HIDDEN = 4096, 2048, 320
Row = tuple[str, object, str | None, str | None]

_INPUTS: tuple[Row, ...] = (
    ("null", None, "invalid_type", "input"),
    ("number", 5, "invalid_type", "input"),
    ("object", {"text": "hi"}, "invalid_type", "input"),
    ("empty-list", [], ANYTHING, "input"),
    ("empty-tokens", [[]], "invalid_value", "input"),
    ("mixed", ["hi", 1], "invalid_type", "input"),
    ("text-and-tokens", ["hi", [1]], "invalid_type", "input"),
    ("booleans", [True], "invalid_type", "input"),
    ("fractions", [1.5], "invalid_type", "input"),
    ("nested", [[[1]]], "invalid_type", "input"),
    ("out-of-vocabulary", [_VOCABULARY], "invalid_value", "input"),
    ("negative", [-1], "invalid_value", "input"),
    ("10^30", [10**30], "invalid_value", "input"),
    ("2049", ["hi"] * 2049, "invalid_value", "input"),
    ("too-long", [5] * (_CONTEXT + 1), "context_length_exceeded", "input"),
    ("too-long-text", "word and " * 5_000, "context_length_exceeded", "input"),
    ("media", [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/"}}], "invalid_type", "input"),
)
_EMBEDDING_FIELDS: tuple[tuple[str, object, str], ...] = (
    ("dimensions", 0, "invalid_value"),
    ("dimensions", -1, "invalid_value"),
    ("dimensions", _HIDDEN + 1, "invalid_value"),
    ("dimensions", 10**30, "invalid_value"),
    ("dimensions", "5", "invalid_type"),
    ("dimensions", True, "invalid_type"),
    ("dimensions", 1.5, "invalid_type"),
    ("encoding_format", "hex", "invalid_value"),
    ("encoding_format", 5, "invalid_type"),
    ("user", 5, "invalid_type"),
    ("user", "u" * 257, "invalid_value"),
    ("model", 5, "invalid_type"),
)
_TOKENIZE: tuple[Row, ...] = (
    ("both", {"prompt": "hi", "messages": [{"role": "user", "content": "hi"}]}, ANYTHING, ANYTHING),
    ("prompt-number", {"prompt": 5}, "invalid_type", "prompt"),
    ("prompt-list", {"prompt": ["hi"]}, "invalid_type", "prompt"),
    ("prompt-null", {"prompt": None}, ANYTHING, "prompt"),
    ("messages-empty", {"messages": []}, "invalid_value", "messages"),
    ("messages-string", {"messages": "hi"}, "invalid_type", "messages"),
    ("role-unknown", {"messages": [{"role": "x", "content": "hi"}]}, "invalid_value", "messages[0].role"),
    ("switch-one", {"prompt": "hi", "add_special_tokens": 1}, "invalid_type", "add_special_tokens"),
    ("switch-string", {"prompt": "hi", "return_token_strs": "yes"}, "invalid_type", "return_token_strs"),
)
_TOKENS: tuple[tuple[str, object, str], ...] = (
    ("null", None, "invalid_type"),
    ("string", "5", "invalid_type"),
    ("number", 5, "invalid_type"),
    ("strings", ["5"], "invalid_type"),
    ("booleans", [True], "invalid_type"),
    ("fractions", [1.5], "invalid_type"),
    ("nested", [[5]], "invalid_type"),
    ("negative", [-1], "invalid_value"),
    ("out-of-vocabulary", [_VOCABULARY], "invalid_value"),
    ("2^32", [2**32], "invalid_value"),
    ("2^63", [2**63], "invalid_value"),
    ("10^30", [10**30], "invalid_value"),
)
_SCORES: tuple[Row, ...] = (
    ("text_2-missing", {"text_1": "hi"}, "missing_required_parameter", "text_2"),
    ("text_1-number", {"text_1": 5, "text_2": "hi"}, "invalid_type", "text_1"),
    ("text_2-tokens", {"text_1": "hi", "text_2": [5]}, "invalid_type", "text_2"),
    ("uneven", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "invalid_value", ANYTHING),
    ("nothing", {"text_1": "hi", "text_2": []}, ANYTHING, ANYTHING),
    ("2049", {"text_1": "hi", "text_2": ["hi"] * 2049}, "invalid_value", ANYTHING),
)
_RANKINGS: tuple[Row, ...] = (
    ("documents-missing", {"query": "hi"}, "missing_required_parameter", "documents"),
    ("documents-empty", {"query": "hi", "documents": []}, "invalid_value", "documents"),
    ("documents-string", {"query": "hi", "documents": "hi"}, "invalid_type", "documents"),
    ("documents-numbers", {"query": "hi", "documents": [5]}, "invalid_type", "documents"),
    ("document-empty", {"query": "hi", "documents": [{}]}, "missing_required_parameter", "documents[0].text"),
    ("query-number", {"query": 5, "documents": ["hi"]}, "invalid_type", "query"),
    ("top_n-negative", {"query": "hi", "documents": ["hi"], "top_n": -1}, "invalid_value", "top_n"),
    ("top_n-string", {"query": "hi", "documents": ["hi"], "top_n": "1"}, "invalid_type", "top_n"),
    ("top_n-true", {"query": "hi", "documents": ["hi"], "top_n": True}, "invalid_type", "top_n"),
    ("top_n-10^30", {"query": "hi", "documents": ["hi"], "top_n": 10**30}, "invalid_value", "top_n"),
    ("2049", {"query": "hi", "documents": ["hi"] * 2049}, "invalid_value", ANYTHING),
)

CASES: list[Case] = [
    *(
        refused(f"embeddings-{name}", "/v1/embeddings", {"input": value}, code, param)
        for name, value, code, param in _INPUTS
    ),
    *(
        refused(f"embeddings-{name}-{str(value)[:8]}", "/v1/embeddings", {"input": "hi", name: value}, code, name)
        for name, value, code in _EMBEDDING_FIELDS
    ),
    refused("classify", "/classify", {"input": "hi"}, "unsupported_task", "model"),
    refused("classify-v1", "/v1/classify", {"input": [5]}, "unsupported_task", "model"),
    *(refused(f"tokenize-{name}", "/tokenize", value, code, param) for name, value, code, param in _TOKENIZE),
    *(refused(f"detokenize-{name}", "/detokenize", {"tokens": value}, code, "tokens") for name, value, code in _TOKENS),
    # More values than a body may hold, and more tokens than are turned back.
    refused("detokenize-2^20-and-1", "/detokenize", {"tokens": [5] * (2**20 + 1)}, ANYTHING, ANYTHING),
    *(refused(f"score-{name}", "/score", value, code, param) for name, value, code, param in _SCORES),
    *(refused(f"rerank-{name}", "/v1/rerank", value, code, param) for name, value, code, param in _RANKINGS),
]
