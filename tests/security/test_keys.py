"""The one choke point: who may ask for what, and where a key must never be seen (S5)."""

from __future__ import annotations

import ast
import hmac
import http.client
import inspect
import textwrap
from itertools import product
from pathlib import Path

import httpx
import pytest
from guarded import KEY, House
from served import Served
from test_life import _routes

from orcinus.server.app import create_app
from orcinus.server.gate import PUBLIC_PATHS, ApiKeys

# A path that anybody may ask for is a decision: it is made here too.
PUBLIC = {
    "/health",
    "/ready",
    "/",
    "/static/page.css",
    "/static/page.js",
    "/static/api.js",
    "/static/chat.js",
    "/static/crowd.js",
    "/static/live.js",
    "/static/timeline.js",
}
ANN, BOB = "right-key-of-ann", "right-key-of-bob"
WITHOUT_KEY: tuple[dict[str, str], ...] = (
    {},
    {"authorization": ""},
    {"authorization": "Bearer"},
    {"authorization": "Bearer "},
    {"authorization": "Bearer wrong"},
    {"authorization": f"Bearer {ANN[:-1]}"},
    {"authorization": f"Bearer {ANN}x"},
    {"authorization": f"Bearer {ANN.upper()}"},
    {"authorization": f"Bearer {ANN},{BOB}"},
    {"authorization": f"Bearer {ANN} {BOB}"},
    {"authorization": ANN},
    {"authorization": f"Basic {ANN}"},
    {"authorization": f"Token {ANN}"},
    {"authorization": "Bearer null"},
    {"x-api-key": ANN},
    {"api-key": ANN},
    {"cookie": f"authorization=Bearer {ANN}; key={ANN}"},
    {"proxy-authorization": f"Bearer {ANN}"},
)
WITH_KEY = ({"authorization": f"Bearer {ANN}"}, {"authorization": f"Bearer {BOB}"}, {"authorization": f"bearer {ANN}"})


def status(served: Served, method: str, path: str, headers: dict[str, str]) -> int:
    """Of an answer whose end isn't waited for; the path is sent as it is."""
    connection = http.client.HTTPConnection(*served.address, timeout=30)
    try:
        connection.request(method, path, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def table() -> list[tuple[str, str]]:
    """The router's own: a route that is added later is tested too."""
    routes = [(route.path, method) for route in _routes(create_app) for method in sorted(route.methods or ())]
    assert len(routes) > 30
    return [(path.replace("{model:path}", "fake").replace("{stream_id}", "cmpl-00"), method) for path, method in routes]


def test_what_is_public_is_listed_here() -> None:
    assert set(PUBLIC_PATHS) == PUBLIC


@pytest.mark.slow
def test_every_route_but_the_public_ones_needs_the_key(locked: Served) -> None:
    for (path, method), headers in product(table(), WITHOUT_KEY):
        assert (status(locked, method, path, headers) == 401) == (path not in PUBLIC), (method, path, headers)


@pytest.mark.slow
def test_every_route_is_open_to_each_key(locked: Served) -> None:
    for (path, method), headers in product(table(), WITH_KEY):
        assert status(locked, method, path, headers) != 401, (method, path, headers)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        "/unknown",
        "/v1",
        "/v1/models/",
        "//v1/models",
        "/health/",
        "/HEALTH",
        "/health/../v1/models",
        "/static/../v1/models",
        "/static/%2e%2e/v1/models",
        "/static/",
        "/static/page.css/",
        "/static/secret.txt",
        "/v1/models%00",
        "/v1%2fmodels",
        "/v1/models?path=/health",
        "/metrics#/health",
        "/openapi.json;/health",
        "http://localhost/v1/models",
        f"/v1/models?api_key={ANN}",
        "/docs",
    ],
)
def test_no_spelling_of_a_path_leads_past_the_gate(locked: Served, path: str) -> None:
    for method in ("GET", "HEAD", "OPTIONS", "POST", "DELETE"):
        assert status(locked, method, path, {}) == 401


@pytest.mark.slow
def test_a_refusal_is_in_openais_shape_and_tells_no_key(locked: Served) -> None:
    answer = httpx.get(f"{locked.url}/v1/models", headers={"authorization": "Bearer not-a-key-of-ours"})
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert not [word for word in ("not-a-key-of-ours", ANN, BOB) if word in answer.text + str(answer.headers)]


def test_all_keys_are_compared_whole_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def counting(left: bytes, right: bytes) -> bool:
        compared.append((len(left), len(right)))
        return compare(left, right)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    keys = ApiKeys(["first", "second" * 50, "third"])
    for offered in ("Bearer first", "Bearer third", "Bearer no", "Basic first", "Bearer " + "x" * 5000, "", None):
        compared.clear()
        keys.allow(offered)
        assert compared == [(32, 32)] * 3, offered


def test_keys_are_compared_in_no_other_way() -> None:
    """`==`, `in` and sets stop at the first difference, or at a hash that tells of one."""
    checks = ast.parse(textwrap.dedent(inspect.getsource(ApiKeys.allow)))
    compared = {ast.unparse(node) for node in ast.walk(checks) if isinstance(node, ast.Compare)}
    assert compared == {"scheme.lower() == 'bearer'"}


@pytest.mark.slow
def test_a_key_is_in_no_command_line_and_in_no_log(house: House) -> None:
    wrong = {"authorization": "Bearer sk-somebody-elses"}
    assert httpx.get(f"{house.url}/v1/models", headers=house.headers).status_code == 200
    assert httpx.get(f"{house.url}/v1/models", headers=wrong).status_code == 401
    assert httpx.post(f"{house.url}/v1/completions", content=KEY, headers=house.headers).status_code == 415
    said = [Path(f"/proc/{pid}/cmdline").read_text() for pid in house.pids()]
    assert any("orcinus.server.front" in line for line in said)
    for text in (*said, house.log()):
        assert KEY not in text
        assert "sk-somebody-elses" not in text


@pytest.mark.slow
def test_metrics_and_errors_tell_no_key(house: House) -> None:
    for path in ("/metrics", "/openapi.json", "/version", "/load", "/v1/models", "/v1/models/none", "/none"):
        answer = httpx.get(house.url + path, headers=house.headers)
        assert KEY not in answer.text + str(answer.headers)
