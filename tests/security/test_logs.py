"""What strangers write into logs and metrics, and what errors tell them of the inside: nothing (S20, S21)."""

from __future__ import annotations

import json
import re
import socket
from urllib.parse import unquote

import httpx
import pytest
from guarded import House

pytestmark = pytest.mark.slow
LEAK = re.compile(
    r"0x[0-9a-f]{6,}|/tmp|/usr|/home|/proc|/dev|site-packages|Traceback|\.py\b|msgspec|starlette|uvicorn|zmq|orcinus-\w{8}",
    re.IGNORECASE,
)
WEIRD = (
    "a\nERROR forged line",
    "a\r\nSet-Cookie: x=y",
    "\x1b[31mred\x1b[0m",
    "\x00",
    "{__class__}",
    "%s%s%n",
    "${jndi:ldap://x}",
    '"} 1\norcinus:forged{a="b"} 2',
    "\u2028\u202e\ufeff",
    "../../etc/passwd",
    "Ж" * 500,
    "",
)


def series(house: House) -> set[str]:
    """Names and labels of everything measured; from each front end that may answer."""
    found = set()
    for _ in range(8):
        with httpx.Client(base_url=house.url, headers=house.headers) as client:
            lines = client.get("/metrics").text.splitlines()
        found |= {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}
    return found


def ask(client: httpx.Client, model: str) -> httpx.Response:
    return client.post("/v1/completions", json={"model": model, "prompt": "hi", "max_tokens": 1})


def test_thousands_of_unknown_models_leave_no_series_and_no_line(house: House) -> None:
    measured, said = series(house), house.log()
    with httpx.Client(base_url=house.url, headers=house.headers, timeout=60) as client:
        statuses = {ask(client, f"model-{number}").status_code for number in range(2000)}
    assert statuses == {404}
    assert series(house) == measured
    assert house.log() == said


@pytest.mark.parametrize("name", WEIRD)
def test_a_strange_name_forges_nothing(house: House, name: str) -> None:
    measured, said = series(house), house.log()
    with httpx.Client(base_url=house.url, headers=house.headers, timeout=60) as client:
        answers = [ask(client, name), client.get("/v1/models/" + "".join(f"%{b:02x}" for b in name.encode()))]
    for answer in answers:
        # The list of models is what the empty name asks for.
        assert answer.status_code == 404, answer.text
        assert "\n" not in answer.text
        assert set(json.loads(answer.text)["error"]) == {"message", "type", "param", "code"}
        assert "Ж" * 101 not in answer.text
    assert series(house) == measured
    assert house.log() == said


@pytest.mark.parametrize(
    "wire",
    [
        b"GET / HTTP/1.1\r\nbad header: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /%0aforged HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer a\r\nconnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    ],
)
def test_what_is_not_http_fills_no_log(house: House, wire: bytes) -> None:
    said = house.log()
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", house.port), timeout=5) as connection:
            connection.sendall(wire)
            connection.recv(1000)
    assert house.log() == said


def test_a_prompt_is_in_no_log(house: House) -> None:
    secret = "the fox that nobody may read of"
    chat = {"messages": [{"role": "user", "content": secret}], "max_tokens": 4}
    for body in (chat, chat | {"stream": True}, chat | {"temperature": 9}, chat | {"max_tokens": 10**9}):
        httpx.post(f"{house.url}/v1/chat/completions", json=body, headers=house.headers, timeout=60)
    assert secret not in house.log()


BROKEN: tuple[tuple[str, str, bytes], ...] = (
    ("POST", "/v1/completions", b"{"),
    ("POST", "/v1/completions", b'{"prompt": 5.5}'),
    ("POST", "/v1/completions", b'{"prompt": "\xff"}'),
    ("POST", "/v1/completions", b'{"prompt": "a", "logit_bias": {"0x7fffdeadbeef": 1}}'),
    ("POST", "/v1/completions", b'{"prompt": [99999999]}'),
    ("POST", "/v1/chat/completions", b'{"messages": [{"role": "user", "content": {"a": 1}}]}'),
    (
        "POST",
        "/v1/chat/completions",
        b'{"messages": [{"role": "tool", "content": "x"}], "chat_template_kwargs": {"a": {}}}',
    ),
    ("POST", "/v1/embeddings", b'{"input": [[]]}'),
    ("POST", "/v1/classify", b'{"input": "a"}'),
    ("POST", "/detokenize", b'{"tokens": [-1]}'),
    ("GET", "/v1/streams/cmpl-ff", b""),
    ("GET", "/v1/streams/..%2f..%2fetc%2fpasswd", b""),
    ("GET", "/static/..%2fapp.py", b""),
    ("DELETE", "/v1/models", b""),
)


@pytest.mark.parametrize(("method", "path", "body"), BROKEN)
def test_an_error_tells_nothing_of_the_inside(house: House, method: str, path: str, body: bytes) -> None:
    headers = house.headers | {"content-type": "application/json"}
    answer = httpx.request(method, house.url + path, content=body, headers=headers, timeout=60)
    assert 400 <= answer.status_code < 500
    assert len(answer.content) < 8192
    message = answer.json()["error"]["message"].replace(unquote(path), "")
    assert not LEAK.search(message.replace("0x7fffdeadbeef", "")), message
    assert not {"server", "x-powered-by", "via"} & answer.headers.keys()
