"""The fuzzer's vocabulary: values at the edges, texts that hurt, and what a request that is served would say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

Json: TypeAlias = Any
# Not a letter of any field's name or message: a long run of it in an error is an echo of what was sent.
ECHO = "Ж"
SMALL = (1, 1, 1, 2, 3)
INTEGERS = (-(2**63) - 1, -(2**31), -2, -1, 0, 1, 2, 20, 21, 128, 129, 511, 512, 2**31 - 1, 2**31, 2**53, 2**63, 2**64)
NUMBERS = (-2.1, -2.0, -1e-9, 0.0, 1e-300, 0.5, 1.0, 1.0000001, 2.0, 2.1, 1e30, 1e308, -1e308, 5e-324)
TEXTS = (
    "",
    " ",
    "\0",
    "\n\r\n",
    "\ud800",
    "💥" * 7,
    "\u202e",
    "\ufeff",
    "<|im_start|>",
    "{{ 7*7 }}",
    "%s%n",
    "../..",
    "a\x1b[31m",
)
# What a valid request says: the schema gives types, these give values that are served.
SENSIBLE: dict[str, Sequence[Json]] = {
    "model": ("orcinus-tiny", None),
    "max_tokens": SMALL,
    "max_completion_tokens": SMALL,
    "n": (1, 1, 2),
    "best_of": (None,),
    "logprobs": (None, 0, 1, 5, True, False),
    "top_logprobs": (None,),
    "prompt_logprobs": (None, 0, 1),
    "temperature": (0, 0.7, 1, 2),
    "top_p": (0.1, 1),
    "top_k": (-1, 0, 1, 40),
    "min_p": (0, 0.05),
    "presence_penalty": (-2, 0, 1.5),
    "frequency_penalty": (-2, 0, 1.5),
    "repetition_penalty": (1, 1.1),
    "min_tokens": (0, 1),
    "seed": (0, 7, 2**63 - 1),
    "stop": ("the", ["a", "b"]),
    "stop_token_ids": ([2], [5, 6]),
    "allowed_token_ids": ([5, 6, 7],),
    "logit_bias": ({"5": 1}, {"7": -100}),
    "priority": (-1, 0, 5),
    "cache_salt": ("a", ""),
    "suffix": (None, ""),
    "truncate_prompt_tokens": (1, 16),
    "role": ("user", "user", "system", "assistant", "tool", "developer"),
    "content": ("What is 12 + 7?", "Count to 5.", [{"type": "text", "text": "hi"}]),
    "prompt": ("The fox", "a", [5, 6, 7], ["one", "two"], [[5, 6], [7]]),
    "input": ("some text", ["some", "texts"], [5, 6, 7]),
    "text_1": ("a", ["a", "b"]),
    "text_2": ("a", ["a", "b"]),
    "query": ("a fox",),
    "documents": (["a fox", "a whale"],),
    "top_n": (1, 2),
    "dimensions": (None,),
    "encoding_format": ("float", "base64"),
    "tools": (None, []),
    "functions": (None, []),
    "chat_template": (None,),
    "response_format": (None, {"type": "text"}),
    "tool_calls": (None,),
    "tokens": ([5, 6, 7], []),
}
# Not required by the schema, but without them nothing is served.
ALWAYS = frozenset({"content"})
HEADERS = (
    ("content-type", ("text/plain", "application/json; charset=utf-16", "", "multipart/form-data", "application/JSON")),
    ("content-encoding", ("gzip", "identity", "br, gzip", "\x7f")),
    ("accept-encoding", ("gzip", "zstd;q=nan")),
    ("authorization", ("Bearer", "Bearer  x", "Basic eDp5", "\xff", "bearer " + "k" * 4000)),
    ("x-request-timeout", ("5", "0", "-1", "nan", "inf", "1e400", "x", "0x10", "1_0", "86401", "٣")),
    ("last-event-id", ("", "x", "a:0:-1", "a:0:99999999999999999999", ":::", "a:0:1\t")),
    ("x-request-id", ("a", "e" * 2000)),
    ("origin", ("http://evil.example", "null")),
    ("expect", ("100-continue", "200-ok")),
    ("accept", ("text/event-stream", "*/*;q=x")),
    ("cookie", ("a=b; " * 200,)),
    ("range", ("bytes=0-1", "bytes=9-1")),
    ("x-http-method-override", ("DELETE",)),
    ("upgrade", ("websocket", "h2c")),
    ("x-forwarded-for", ("127.0.0.1",)),
)
METHODS = ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "POST", "PROPFIND")
