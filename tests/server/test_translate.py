"""From OpenAI's words to ours, without a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcinus.core.request import SamplingParams
from orcinus.errors import CheckpointError, InvalidRequest
from orcinus.server.protocol import ChatRequest, CompletionRequest, parse
from orcinus.server.translate import chat_params, completion_params, messages_of, prompts_of
from orcinus.text.generation import GenerationDefaults

CHAT = msgspec.json.Decoder(ChatRequest)
COMPLETION = msgspec.json.Decoder(CompletionRequest)
MESSAGES = [{"role": "user", "content": "hi"}]


def completion(**fields: Any) -> SamplingParams:
    body = json.dumps({"prompt": "hi"} | fields).encode()
    return completion_params(parse(body, COMPLETION), GenerationDefaults())


def chat(**fields: Any) -> SamplingParams:
    return chat_params(parse(json.dumps({"messages": MESSAGES} | fields).encode(), CHAT), GenerationDefaults())


def test_every_sampling_field_arrives_under_its_own_name() -> None:
    fields: dict[str, Any] = {
        "n": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": -0.2,
        "allowed_token_ids": [1, 2],
        "max_tokens": 9,
        "min_tokens": 3,
        "stop": ["a", "b"],
        "stop_token_ids": [4],
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "seed": 11,
        "logprobs": 5,
        "skip_special_tokens": False,
    }
    expected = SamplingParams(**fields, logit_bias={5: -1.0})
    assert completion(**fields, logit_bias={"5": -1.0}) == expected
    assert chat(**fields | {"logprobs": True, "top_logprobs": 5}, logit_bias={"5": -1.0}) == expected


def test_defaults_are_openais() -> None:
    assert completion() == SamplingParams(max_tokens=16)
    assert chat() == SamplingParams(max_tokens=None)
    assert chat(max_tokens=5, max_completion_tokens=6).max_tokens == 6
    assert chat(max_tokens=5).max_tokens == 5
    assert chat(logprobs=True).logprobs == 0
    assert chat(logprobs=False).logprobs is None
    assert completion(top_k=-1).top_k == completion(top_k=0).top_k == 0


def test_a_checkpoints_recommendation_holds_where_the_request_says_nothing(tmp_path: Path) -> None:
    config = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": 2, "do_sample": True, "min_p": None}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    defaults = GenerationDefaults.load(tmp_path)
    asked = parse(b'{"prompt": "hi", "temperature": 0}', COMPLETION)
    params = completion_params(asked, defaults)
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0, 20, 0.95, 0)
    assert GenerationDefaults.load(tmp_path / "nothing") == GenerationDefaults()


@pytest.mark.parametrize("text", ["{", '{"temperature": "hot"}', '{"top_p": 3}'])
def test_a_recommendation_that_cannot_be_served_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        GenerationDefaults.load(tmp_path)


def test_prompts_come_in_four_forms() -> None:
    for prompt, prompts in (
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        ("", [""]),
    ):
        assert prompts_of(parse(json.dumps({"prompt": prompt}).encode(), COMPLETION)) == prompts


def test_messages_become_what_templates_read() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": [1]}'}}
    odd = {"function": {"name": "g", "arguments": "{no json"}}
    asked = parse(
        json.dumps(
            {
                "messages": [
                    {
                        "role": "user",
                        "name": "ada",
                        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": ""}],
                    },
                    {"role": "assistant", "tool_calls": [call, odd], "reasoning_content": "hm"},
                    {"role": "tool", "tool_call_id": "1", "content": "ok", "unknown": 1},
                ]
            }
        ).encode(),
        CHAT,
    )
    parsed_call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": [1]}}}
    parsed_odd = {"id": None, "type": "function", "function": {"name": "g", "arguments": "{no json"}}
    assert messages_of(asked.messages) == [
        {"role": "user", "name": "ada", "content": "a\n"},
        {"role": "assistant", "content": "", "tool_calls": [parsed_call, parsed_odd], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "1", "content": "ok"},
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def refusal(body: bytes, decoder: Any, params_of: Any, content_of: Any) -> InvalidRequest | None:
    """Why a body is refused, or None if all of it is served."""
    try:
        asked = parse(body, decoder)
        assert isinstance(params_of(asked, GenerationDefaults()), SamplingParams)
        assert content_of(asked)
    except InvalidRequest as refused:
        return refused
    return None


@settings(deadline=None, max_examples=500, derandomize=True)
@given(
    fields=st.dictionaries(
        st.sampled_from([*CompletionRequest.__struct_fields__, *ChatRequest.__struct_fields__]), json_values, max_size=4
    )
)
def test_any_json_is_served_or_refused_with_a_parameter_it_has(fields: dict[str, Any]) -> None:
    body = json.dumps({"prompt": "hi", "messages": MESSAGES} | fields).encode()
    names = ("prompt", "messages", "top_logprobs", *fields)
    for way in (
        (COMPLETION, completion_params, prompts_of),
        (CHAT, chat_params, lambda asked: messages_of(asked.messages)),
    ):
        refused = refusal(body, *way)
        assert refused is None or refused.param is None or refused.param.startswith(names)
