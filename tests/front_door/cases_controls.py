"""Well-formed requests that have to succeed: every parameter at both of its bounds, nulls, unknown fields."""

from __future__ import annotations

from cases import CHAT, COMPLETIONS, JSON_TYPE, PROMPT, Case, answered, encode, served

_VOCABULARY = 4096
_CONTEXT = 2048

# Name, the lowest value that is served, the highest.
BOUNDS: tuple[tuple[str, object, object], ...] = (
    ("n", 1, 128),
    ("max_tokens", 1, 64),
    ("temperature", 0, 2),
    ("top_p", 1e-6, 1),
    ("presence_penalty", -2, 2),
    ("frequency_penalty", -2, 2),
    ("seed", -(2**63), 2**63 - 1),
    ("top_k", -1, 2**31 - 1),
    ("min_p", 0, 1),
    ("repetition_penalty", 1e-6, 2),
    ("min_tokens", 0, 1),
    ("prompt_logprobs", 0, 20),
    ("logprobs", 0, 20),
    ("best_of", 1, 8),
    ("truncate_prompt_tokens", -1, _CONTEXT),
    ("priority", -(2**31), 2**31),
    ("cache_salt", "", "aZ9._-" + "s" * 58),
    ("user", "", "u" * 256),
    ("stop", [], ["s" * 512] * 16),
    ("stop_token_ids", [], [_VOCABULARY - 1] * 1024),
    ("allowed_token_ids", [0], [_VOCABULARY - 1] * 1024),
    ("logit_bias", {}, {str(token): 100 - token % 201 for token in range(1024)}),
    ("prompt", [0], [_VOCABULARY - 1] * (_CONTEXT - 1)),
)
_CHAT_BOUNDS: tuple[tuple[str, object, object], ...] = (
    ("max_completion_tokens", 1, 64),
    ("n", 1, 16),
    ("tools", [], None),
    ("functions", [], None),
    ("chat_template_kwargs", {}, None),
)
_SWITCHES = (
    "stream",
    "echo",
    "ignore_eos",
    "skip_special_tokens",
    "include_stop_str_in_output",
    "return_token_ids",
)
# Nulls stand for the default; what OpenAI knows and we don't is ignored; and so is what looks like a name of ours.
_IGNORED: tuple[tuple[str, dict[str, object]], ...] = (
    ("nulls", dict.fromkeys([name for name, _, _ in BOUNDS if name != "prompt"])),
    ("metadata", {"metadata": {"a": "b"}, "store": True, "service_tier": "auto", "prediction": None}),
    ("block-ids", {"block_ids": [0, 1, 2**40], "block_table": [[-1]], "slot_mapping": [7]}),
    ("request-id", {"request_id": "../../x", "id": "cmpl-1", "created": -1, "object": "engine"}),
    ("kv-transfer", {"kv_transfer_params": {"remote_host": "10.0.0.1", "remote_port": 1, "remote_block_ids": [1]}}),
    ("tensors", {"prompt_embeds": "gASV", "multi_modal_data": {"image": "x"}, "cache_key": "k", "hashes": [1]}),
    ("resumed", {"resumed": ["AAAA"], "arrived_at": -1e300, "eos_token_ids": [1], "weights_revision": 99}),
    ("tenant", {"tenant": "other", "service_class": 0, "deadline": -1, "data_parallel_rank": 5}),
    ("devices", {"device": "cuda:0", "tp_size": 10**9, "engine_id": "0", "worker_cls": "os.system"}),
    ("banned", {"banned_token_ids": [2**62], "detokenize": "no", "logits_processors": ["builtins.eval"]}),
    ("guided", {"guided_decoding_backend": "x", "vllm_xargs": {"a": 1}}),
    ("prototypes", {"__proto__": {"a": 1}, "constructor": {"prototype": {"n": 2}}, "__class__": "str"}),
    ("long-unknown-key", {"x" * 100_000: 1}),
    ("unknown-null-key", {"\0": 1, "": 2}),
)
_PARTS = [{"type": "text", "text": "hi"}, {"type": "text", "text": "there"}]
_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def _bounds() -> list[Case]:
    cases = []
    for path, kind, bounds in ((COMPLETIONS, "", BOUNDS), (CHAT, "chat-", _CHAT_BOUNDS)):
        for name, low, high in bounds:
            cases.append(served(f"{kind}{name}-lowest", {name: low}, path))
            cases.append(served(f"{kind}{name}-highest", {name: high}, path))
    return cases


def _switches() -> list[Case]:
    return [served(f"{name}-{value}".lower(), {name: value}) for name in _SWITCHES for value in (True, False)]


def _conversations() -> list[Case]:
    user = {"role": "user", "content": "hi"}
    rows: list[tuple[str, dict[str, object]]] = [
        ("parts", {"messages": [{"role": "user", "content": _PARTS}]}),
        ("system", {"messages": [{"role": "system", "content": "be brief"}, user]}),
        ("empty-content", {"messages": [{"role": "user", "content": ""}]}),
        ("name", {"messages": [user | {"name": "Ann"}]}),
        (
            "tool-turns",
            {
                "messages": [
                    user,
                    {"role": "assistant", "content": None, "tool_calls": [_CALL]},
                    {"role": "tool", "tool_call_id": "1", "content": "5"},
                ]
            },
        ),
        ("logprobs", {"logprobs": True, "top_logprobs": 20}),
        ("no-logprobs", {"logprobs": False}),
        ("text-format", {"response_format": {"type": "text"}}),
        ("continue", {"messages": [user, {"role": "assistant", "content": "I am"}], "continue_final_message": True}),
        ("no-generation-prompt", {"add_generation_prompt": False}),
        ("stream", {"stream": True, "stream_options": {"include_usage": True}}),
        ("unknown-message-field", {"messages": [user | {"audio": None, "weight": 1, "refusal": None}]}),
    ]
    return [served(f"chat-{name}", change, CHAT) for name, change in rows]


def _writings() -> list[Case]:
    """The same JSON, written in other ways that are as good."""
    escaped = b'{"\\u0070rompt": "\\u0068\\u0069 \\ud83d\\ude00", "max_tokens": 1}'
    return [
        Case(name="spaces", body=b" \r\n\t" + encode(PROMPT) + b"\n \t", statuses=(200,)),
        Case(name="escapes", body=escaped, statuses=(200,)),
        Case(name="utf-8", body='{"prompt": "héllo \U0001f600", "max_tokens": 1}'.encode(), statuses=(200,)),
        Case(name="exponent", body=b'{"prompt": "hi", "max_tokens": 1, "temperature": 1E-2}', statuses=(200,)),
        Case(
            name="depth-60",
            body=b'{"prompt": "hi", "max_tokens": 1, "x": ' + b"[" * 60 + b"]" * 60 + b"}",
            statuses=(200,),
        ),
        Case(
            name="charset",
            body=encode(PROMPT),
            headers={"content-type": "Application/JSON; charset=utf-8"},
            statuses=(200,),
        ),
        Case(name="timeout", body=encode(PROMPT), headers=JSON_TYPE | {"x-request-timeout": "30.5"}, statuses=(200,)),
        Case(
            name="identity", body=encode(PROMPT), headers=JSON_TYPE | {"content-encoding": "identity"}, statuses=(200,)
        ),
    ]


def _others() -> list[Case]:
    return [
        served("texts", {"prompt": ["hi", "there"]}),
        served("token-lists", {"prompt": [[5], [6, 7]]}),
        served("prompts-256", {"prompt": [[5]] * 256}),
        served("echo-nothing-new", {"echo": True, "max_tokens": 0, "logprobs": 1}),
        served("stop-string", {"stop": "\n"}),
        served("model", {"model": "orcinus-tiny"}),
        # This model's tokenizer begins every text with a token.
        served("empty-text", {"prompt": ""}),
        served("empty-texts", {"prompt": ["", "hi", ""]}),
        served("nul-in-prompt", {"prompt": "a\0b"}),
        served("special-tokens-in-prompt", {"prompt": "<|end|><|bos|><|system|>"}),
        served("stream-usage", {"stream": True, "stream_options": {"include_usage": True}}),
        answered("embeddings", "/v1/embeddings", {"input": ["hi", ""], "dimensions": 320}),
        answered("tokenize", "/tokenize", {"prompt": "hi"}),
        answered("tokenize-strings", "/v1/tokenize", {"prompt": "hi", "return_token_strs": True}),
        answered("tokenize-nothing", "/tokenize", {"prompt": ""}),
        answered("tokenize-chat", "/tokenize", {"messages": [{"role": "user", "content": "hi"}]}),
        answered("detokenize", "/detokenize", {"tokens": [5, _VOCABULARY - 1]}),
        answered("detokenize-nothing", "/v1/detokenize", {"tokens": []}),
        *(
            Case(name=path, method="GET", path=path, headers={}, statuses=(200,))
            for path in ("/health", "/ready", "/load", "/version", "/metrics", "/openapi.json", "/v1/models", "/")
        ),
        Case(name="one-model", method="GET", path="/v1/models/orcinus-tiny", headers={}, statuses=(200,)),
        *(
            Case(name=f"host-{host}", body=encode(PROMPT), headers=JSON_TYPE | {"host": host}, statuses=(200,))
            for host in ("localhost", "localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST")
        ),
        Case(name="digits-64", body=b'{"prompt": "hi", "max_tokens": 1, "x": ' + b"1" * 64 + b"}", statuses=(200,)),
        Case(name="query", path=COMPLETIONS + "?api-version=1", body=encode(PROMPT), statuses=(200,)),
    ]


CASES = [
    *_bounds(),
    *_switches(),
    *(served(f"ignored-{name}", change) for name, change in _IGNORED),
    *_conversations(),
    *_writings(),
    *_others(),
]
