"""What a browser on this machine may be made to do by a stranger's page: rebinding and cross-site requests (S27)."""

from __future__ import annotations

import http.client
import json

import pytest
from served import Served

pytestmark = pytest.mark.slow
COMPLETION = json.dumps({"prompt": "hi", "max_tokens": 1}).encode()
JSON = {"content-type": "application/json"}
EVIL = {"origin": "http://evil.example", "sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}


def ask(
    served: Served, method: str, path: str, hosts: list[str], headers: dict[str, str] | None = None, body: bytes = b""
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body; with exactly these `Host` lines."""
    connection = http.client.HTTPConnection(*served.address, timeout=30)
    try:
        connection.putrequest(method, path, skip_host=True)
        for name, value in [*(("host", host) for host in hosts), *(headers or {}).items()]:
            connection.putheader(name, value)
        connection.putheader("content-length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def own_host(served: Served) -> str:
    """As a client that means it writes it."""
    return f"127.0.0.1:{served.address[1]}"


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "localhost.evil.example", "127.0.0.1.nip.io:{port}", "0.0.0.0:{port}"],
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/metrics")])
def test_a_name_that_was_made_to_point_here_gets_nothing(served: Served, host: str, method: str, path: str) -> None:
    hosts = [host.format(port=served.address[1])]
    status, headers, body = ask(served, method, path, hosts, JSON, COMPLETION if method == "POST" else b"")
    assert status in (403, 421)
    assert headers["content-type"] == "application/json"
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    assert headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "[::1]:{port}", "LOCALHOST", "127.0.0.1:1"])
def test_our_own_names_pass(served: Served, host: str) -> None:
    hosts = [host.format(port=served.address[1])]
    assert ask(served, "POST", "/v1/completions", hosts, JSON, COMPLETION)[0] == 200


def test_of_two_names_neither_counts(served: Served) -> None:
    assert ask(served, "GET", "/v1/models", [own_host(served), "evil.example"])[0] in (400, 403, 421)
    assert ask(served, "GET", "/v1/models", ["evil.example", own_host(served)])[0] in (400, 403, 421)


def test_with_a_key_any_name_will_do(locked: Served) -> None:
    key = {"authorization": "Bearer right-key-of-ann"}
    assert ask(locked, "GET", "/v1/models", ["api.example"], key)[0] == 200


@pytest.mark.parametrize(
    "media", ["text/plain", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_what_a_form_could_send_is_refused(served: Served, media: str) -> None:
    """These need no preflight, so only the type says that it was no script of ours."""
    headers = {"content-type": media} if media else {}
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize", "/detokenize", "/v1/rerank"):
        assert ask(served, "POST", path, [own_host(served)], headers | EVIL, COMPLETION)[0] == 415


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD", "PUT"])
def test_no_answer_lets_another_origin_read_it(served: Served, method: str) -> None:
    preflight = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    for path in ("/v1/completions", "/v1/models", "/", "/health", "/openapi.json", "/nothing"):
        body = COMPLETION if method == "POST" else b""
        status, headers, _ = ask(served, method, path, [own_host(served)], JSON | EVIL | preflight, body)
        assert not [name for name in headers if name.startswith("access-control-")]
        assert method != "OPTIONS" or status >= 400


def test_a_page_of_ours_cant_be_framed_and_runs_only_our_scripts(served: Served) -> None:
    _, headers, _ = ask(served, "GET", "/", [own_host(served)])
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
