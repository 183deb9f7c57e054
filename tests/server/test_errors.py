"""Everything that can be refused: status, type, param and code as OpenAI's clients expect them."""

from __future__ import annotations

import json
import re
import socket
from typing import Any

import httpx
import openai
import pytest
from served import Served

pytestmark = pytest.mark.slow

JSON_POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BASE = {"prompt": "hi", "max_tokens": 2}
CHAT = {"messages": [{"role": "user", "content": "hi"}]}
# No address, path, trace or name of ours may be told to strangers.
LEAK = re.compile(r"0x[0-9a-f]{6,}|/tmp|/usr|/home|site-packages|Traceback|\.py\b|msgspec|starlette", re.IGNORECASE)


def post(served: Served, path: str, content: bytes, **headers: str) -> httpx.Response:
    return httpx.post(
        served.url + path, content=content, headers={"content-type": "application/json"} | headers, timeout=60
    )


def check_error(response: httpx.Response, status: int, code: str | None, param: str | None) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param), error
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["content-type"] == "application/json"
    assert re.fullmatch("req_[0-9a-f]{32}", response.headers["x-request-id"])
    assert not LEAK.search(response.text)
    assert len(response.content) < 8192
    return error


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"prompt": None}, "invalid_type", "prompt"),
        ({"prompt": {}}, "invalid_type", "prompt"),
        ({"prompt": []}, "invalid_type", "prompt"),
        ({"prompt": ["a", 1]}, "invalid_type", "prompt"),
        ({"prompt": [1, True]}, "invalid_type", "prompt"),
        ({"prompt": [[1], ["x"]]}, "invalid_type", "prompt"),
        ({"prompt": [[]]}, "invalid_value", "prompt"),
        ({"prompt": ""}, "invalid_value", "prompt"),
        ({"prompt": [512]}, "invalid_value", "prompt"),
        ({"prompt": [-1]}, "invalid_value", "prompt"),
        ({"prompt": [10**400]}, None, None),
        ({"prompt": ["a"] * 257}, "invalid_value", "prompt"),
        ({"prompt": [1] * 5000}, "context_length_exceeded", "prompt"),
        ({"max_tokens": 4096}, "context_length_exceeded", "max_tokens"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": "2"}, "invalid_type", "max_tokens"),
        ({"max_tokens": 2.5}, "invalid_type", "max_tokens"),
        ({"temperature": 2.1}, "invalid_value", "temperature"),
        ({"temperature": "hot"}, "invalid_type", "temperature"),
        ({"top_p": 0}, "invalid_value", "top_p"),
        ({"top_k": -2}, "invalid_value", "top_k"),
        ({"min_p": 1.5}, "invalid_value", "min_p"),
        ({"n": 0}, "invalid_value", "n"),
        ({"n": 17}, "invalid_value", "n"),
        ({"n": 10**30}, "invalid_value", "n"),
        ({"n": True}, "invalid_type", "n"),
        ({"seed": 2**64}, "invalid_value", "seed"),
        ({"stop": ["x"] * 17}, "invalid_value", "stop"),
        ({"stop": ""}, "invalid_value", "stop"),
        ({"stop": 5}, "invalid_type", "stop"),
        ({"stop_token_ids": [512]}, "invalid_value", "stop_token_ids"),
        ({"allowed_token_ids": []}, "invalid_value", "allowed_token_ids"),
        ({"logit_bias": {"x": 1}}, "invalid_type", "logit_bias"),
        ({"logit_bias": {"1": 101}}, "invalid_value", "logit_bias"),
        ({"logprobs": 21}, "invalid_value", "logprobs"),
        ({"logprobs": True}, "invalid_type", "logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "unsupported_parameter", "prompt_logprobs"),
        ({"prompt_logprobs": 21}, "invalid_value", "prompt_logprobs"),
        ({"truncate_prompt_tokens": 0}, "invalid_value", "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 4097}, "invalid_value", "truncate_prompt_tokens"),
        ({"priority": 2**31 + 1}, "invalid_value", "priority"),
        ({"priority": "1"}, "invalid_type", "priority"),
        ({"cache_salt": "a b"}, "invalid_value", "cache_salt"),
        ({"cache_salt": "a" * 65}, "invalid_value", "cache_salt"),
        ({"suffix": "end"}, "unsupported_parameter", "suffix"),
        ({"echo": True, "logprobs": 1, "stream": True}, "unsupported_parameter", "echo"),
        ({"best_of": 2, "stream": True}, "unsupported_parameter", "best_of"),
        ({"best_of": 1, "n": 2}, "invalid_value", "best_of"),
        ({"best_of": 200}, "invalid_value", "best_of"),
        ({"length_penalty": 2.0}, "invalid_value", "length_penalty"),
        ({"early_stopping": True}, "invalid_value", "early_stopping"),
        ({"use_beam_search": True, "early_stopping": "soon"}, "invalid_value", "early_stopping"),
        ({"use_beam_search": True, "length_penalty": 9}, "invalid_value", "length_penalty"),
        ({"use_beam_search": True, "n": 3, "best_of": 2}, "invalid_value", "best_of"),
        ({"use_beam_search": True, "n": 2, "temperature": 0.5}, "invalid_value", "temperature"),
        ({"use_beam_search": True, "n": 2, "top_p": 0.5}, "invalid_value", "top_p"),
        ({"use_beam_search": True, "n": 2, "stop": "a"}, "invalid_value", "stop"),
        ({"use_beam_search": True, "n": 2, "presence_penalty": 1}, "invalid_value", "presence_penalty"),
        ({"use_beam_search": True, "n": 2, "logit_bias": {"7": 1}}, "invalid_value", "logit_bias"),
        ({"use_beam_search": True, "n": 2, "prompt_logprobs": 1}, "invalid_value", "prompt_logprobs"),
        ({"use_beam_search": True, "n": 2, "echo": True, "logprobs": 1}, "unsupported_parameter", "echo"),
        ({"use_beam_search": True, "n": 128}, "invalid_value", "n"),
        ({"use_beam_search": True, "best_of": 128}, "invalid_value", "best_of"),
        ({"user": "u" * 257}, "invalid_value", "user"),
        ({"stream": "yes"}, "invalid_type", "stream"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
    ],
)
def test_a_bad_completion_request_is_a_400_that_names_the_parameter(
    served: Served, change: dict[str, Any], code: str | None, param: str
) -> None:
    response = post(served, "/v1/completions", json.dumps(BASE | change).encode())
    assert check_error(response, 400, code, param)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": "hi"}, "invalid_type", "messages"),
        ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
        ({"messages": [{"content": "hi"}]}, "missing_required_parameter", "messages[0].role"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "invalid_type", "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "invalid_value",
            "messages[0].content[0]",
        ),
        ({"messages": [{"role": "user", "content": "a b " * 5000}]}, "context_length_exceeded", "messages"),
        ({"max_tokens": 5000}, "context_length_exceeded", "max_tokens"),
        ({"max_completion_tokens": 0}, "invalid_value", "max_completion_tokens"),
        ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "invalid_value", "top_logprobs"),
        ({"logprobs": 2}, "invalid_type", "logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "unsupported_parameter", "tools"),
        ({"functions": [{"name": "f"}]}, "unsupported_parameter", "functions"),
        ({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format"),
        ({"chat_template": "{{ 1 }}"}, "unsupported_parameter", "chat_template"),
        ({"chat_template_kwargs": {"nonsense": 1}}, "invalid_value", "chat_template_kwargs"),
        ({"chat_template_kwargs": {"messages": "x"}}, "invalid_value", "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": [1]}}, "invalid_type", "chat_template_kwargs"),
    ],
)
def test_a_bad_chat_request_is_a_400_that_names_the_parameter(
    served: Served, change: dict[str, Any], code: str | None, param: str
) -> None:
    response = post(served, "/v1/chat/completions", json.dumps(CHAT | change).encode())
    assert check_error(response, 400, code, param)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b'{"prompt": "hi"} x',
        b"\xef\xbb\xbf{}",
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "hi", "temperature": NaN}',
        b'{"prompt": "hi", "temperature": Infinity}',
        b'{"prompt": "hi", "temperature": 1e999}',
        b'{"prompt": "hi", "n": ' + b"9" * 5000 + b"}",
        b'{"prompt": "hi", "x": ' + b"[" * 90_000 + b"]" * 90_000 + b"}",
        b'{"prompt": "hi", "x": ' + b'{"a":' * 20_000 + b"1" + b"}" * 20_000 + b"}",
        b"{'prompt': 'hi'}",
        b"{}",
    ],
)
def test_what_is_not_such_a_json_object_is_a_400(served: Served, body: bytes) -> None:
    response = post(served, "/v1/completions", body)
    error = response.json()["error"]
    check_error(response, 400, error["code"], error["param"])


def test_unknown_fields_and_nulls_are_ignored_as_openai_does(served: Served) -> None:
    body = BASE | {"metadata": {"a": 1}, "store": True, "temperature": None, "stop": None, "n": None, "best_of": 1}
    assert post(served, "/v1/completions", json.dumps(body).encode()).status_code == 200
    chat = CHAT | {"tools": [], "response_format": {"type": "text"}, "parallel_tool_calls": True, "max_tokens": 2}
    assert post(served, "/v1/chat/completions", json.dumps(chat).encode()).status_code == 200
    assert post(served, "/v1/completions", json.dumps(BASE | {"top_k": -1}).encode()).status_code == 200


def test_tool_messages_of_earlier_turns_are_rendered(served: Served) -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "5"},
    ]
    response = post(served, "/v1/chat/completions", json.dumps({"messages": messages, "max_tokens": 2}).encode())
    assert response.status_code == 200


def test_other_statuses_have_the_same_shape(served: Served) -> None:
    body = json.dumps(BASE).encode()
    check_error(post(served, "/v1/nothing", body), 404, "unknown_url", None)
    check_error(post(served, "/v1/completions/", body), 404, "unknown_url", None)
    check_error(post(served, "/v1/models", body), 405, "method_not_supported", None)
    wrong_method = httpx.get(f"{served.url}/v1/completions")
    check_error(wrong_method, 405, "method_not_supported", None)
    assert wrong_method.headers["allow"] == "POST"
    unknown = json.dumps(BASE | {"model": "gpt-7" + "x" * 500}).encode()
    check_error(post(served, "/v1/completions", unknown), 404, "model_not_found", "model")
    for headers in ({"content-type": "text/plain"}, {"content-encoding": "gzip"}):
        check_error(post(served, "/v1/completions", body, **headers), 415, "unsupported_content_type", None)


def test_a_body_that_is_too_large_is_a_413_whether_announced_or_not(served: Served) -> None:
    body = json.dumps({"prompt": "a" * 300_000}).encode()
    check_error(post(served, "/v1/completions", body), 413, None, None)
    unannounced = httpx.post(
        f"{served.url}/v1/completions",
        content=(body[i : i + 10_000] for i in range(0, len(body), 10_000)),
        headers={"content-type": "application/json"},
    )
    check_error(unannounced, 413, None, None)


def test_more_requests_than_can_be_kept_track_of_are_a_429_that_says_when_to_retry(served: Served) -> None:
    full = post(served, "/v1/completions", json.dumps({"prompt": ["a"] * 9}).encode())
    error = check_error(full, 429, "engine_overloaded", None)
    assert error["type"] == "rate_limit_error"
    assert int(full.headers["retry-after"]) >= 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_fails_in_the_engine_before_its_first_token_is_an_http_error(
    served: Served, stream: bool
) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=60)
    with pytest.raises(openai.InternalServerError) as failed:
        client.completions.create(model="fake", prompt=[7], stream=stream)
    assert failed.value.status_code == 500
    assert isinstance(failed.value.body, dict)
    assert (failed.value.body["type"], failed.value.body["code"]) == ("server_error", "numerical_error")


def test_the_sdk_raises_its_own_classes(served: Served) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=60)
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model="fake", prompt="hi", temperature=3)
    assert bad.value.param == "temperature"
    assert bad.value.request_id is not None
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="other", prompt="hi")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.RateLimitError):
        client.completions.create(model="fake", prompt=["a"] * 9)


@pytest.mark.parametrize(
    "wire",
    [
        b"POST /v1/completions HTTP/1.1\r\n\r\n",
        b"GARBAGE\r\n\r\n",
        JSON_POST + b"Content-Length: nine\r\n\r\n",
        JSON_POST + b"Content-Length: 900\r\n\r\n{",
        b"GET /v1/models\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_a_broken_wire_harms_nobody(served: Served, wire: bytes) -> None:
    with socket.create_connection(served.address, timeout=60) as connection:
        connection.sendall(wire)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    assert answer == b"" or re.match(rb"HTTP/1.1 4\d\d ", answer)
    assert post(served, "/v1/completions", json.dumps(BASE).encode()).status_code == 200


def test_a_stream_is_events_and_ends_with_done_in_the_last_write(served: Served) -> None:
    body = json.dumps(BASE | {"stream": True, "prompt": "the fox"}).encode()
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    )
    with socket.create_connection(served.address, timeout=60) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    headers, _, chunks = answer.partition(b"\r\n\r\n")
    assert b"content-type: text/event-stream" in headers
    assert chunks.endswith(b"\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
    assert all(line.startswith((b"data: ", b"id: ")) for line in re.findall(rb"^\S+: .*", chunks, re.MULTILINE))
