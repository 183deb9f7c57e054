"""The server's life: its port, its keys, its engine's death, its own end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import httpx
import pytest
from served import SERVE_FAKE, Served, serve_fake
from starlette.routing import Route
from tokenizer_files import write_tokenizer

from orcinus.server.gate import PUBLIC_PATHS, ApiKeys
from orcinus.server.page_api import PAGE_PATHS

LONG = {"prompt": "on and on ", "max_tokens": 3000, "stream": True, "ignore_eos": True}


def events_of(response: httpx.Response) -> Iterator[str]:
    """The data of each event."""
    return (line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: "))


def test_the_server_leaves_torch_unloaded() -> None:
    script = "import sys, orcinus.server.app, orcinus.server.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_key_passes_only_as_it_is() -> None:
    keys = ApiKeys(["first", "schlüssel"])
    assert keys
    assert keys.allow("Bearer first")
    assert keys.allow("bearer first")
    for refused in (
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer firs",
        "Bearer first2",
        "Basic first",
        "first",
        "Bearer FIRST",
    ):
        assert not keys.allow(refused)
    assert ApiKeys(()).allow(None)


@pytest.mark.slow
def test_every_route_but_health_needs_the_key(tmp_path: Path) -> None:
    from orcinus.server.app import create_app

    assert sorted(PUBLIC_PATHS - set(PAGE_PATHS)) == ["/health", "/ready"]
    with serve_fake(write_tokenizer(tmp_path), TEST_KEYS="secret,other") as server:
        for route in _routes(create_app):
            path = route.path.replace("{model:path}", "fake")
            for method in route.methods or ():
                for key in (None, "wrong", "secret", "other"):
                    headers = {} if key is None else {"authorization": f"Bearer {key}"}
                    passes = path in PUBLIC_PATHS or key in ("secret", "other")
                    # Some answers never end.
                    with httpx.stream(method, server.url + path, headers=headers) as response:
                        assert (response.status_code != 401) == passes, (method, path, key)
        refused = httpx.get(f"{server.url}/unknown")
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
        assert "x-request-id" in refused.headers


class NoEngine:
    """A front that nobody asks."""

    alive, num_live, stats, hopeless = True, 0, None, False

    def submit(self, request: object, arrival: object = None) -> NoReturn:
        raise AssertionError("nothing is served here")


def _routes(create_app: object) -> list[Route]:
    """The router's own table: a route that is added later is tested too."""
    import random

    from fake_engine import DESCRIPTION

    from orcinus.core.clock import VirtualClock
    from orcinus.engine.door import Door
    from orcinus.server.app import ServerContext

    assert callable(create_app)
    context = ServerContext(
        client=NoEngine(),
        door=Door(DESCRIPTION, random.Random(0)),
        clock=VirtualClock(),
        tokenizer=None,
        chat_template=None,
        text_workers=None,
        explainer=None,
        served_model_names=("fake",),
    )
    routes = [route for route in create_app(context).routes if isinstance(route, Route)]
    assert len(routes) >= 7
    return routes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"TEST_HOST": "0.0.0.0"}, "--api-key"),
        ({"TEST_HOST": "no.such.host.invalid"}, "not an address"),
        ({"TEST_PORT": "70000"}, "70000"),
        ({"TEST_FRONT_ENDS": "0"}, "api_server_count is 0"),
    ],
)
def test_an_address_that_must_not_be_used_is_refused_before_the_engine_starts(
    tmp_path: Path, environment: dict[str, str], message: str
) -> None:
    assert message in _refused(tmp_path, environment)


@pytest.mark.slow
def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"ConfigurationError: port {port} on 127.0.0.1 can't be used" in _refused(tmp_path, {"TEST_PORT": port})


def _refused(folder: Path, environment: dict[str, str]) -> str:
    """What the server says on its way out; its engine would wait for ever at the pipe that nobody reads."""
    os.mkfifo(folder / "log")
    command = [sys.executable, str(SERVE_FAKE), str(folder), "--log", str(folder / "log")]
    ended = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    return ended.stderr


@pytest.mark.slow
def test_an_engine_that_cannot_start_ends_the_server_with_its_reason(tmp_path: Path) -> None:
    command = [sys.executable, str(SERVE_FAKE), str(tmp_path), "--fail", "no such shard", "--exit-code", "3"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "CheckpointError: no such shard" in ended.stderr


@pytest.mark.slow
def test_a_tokenizer_that_cannot_be_read_ends_the_server_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    ended = subprocess.run(
        [sys.executable, str(SERVE_FAKE), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert "CheckpointError" in ended.stderr
    assert "tokenizer.json" in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_when_the_engine_dies_a_stream_goes_on_and_the_client_sees_nothing_of_it(
    tmp_path: Path, number: signal.Signals
) -> None:
    with (
        serve_fake(write_tokenizer(tmp_path)) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        body = LONG | {"max_tokens": 500, "n": 2}
        undisturbed = text_of(client.post("/v1/completions", json=body | {"stream": False}))
        with client.stream("POST", "/v1/completions", json=body) as response:
            events = events_of(response)
            pieces = [next(events)]
            os.kill(engine_pid(server), number)
            *rest, done = events
        assert done == "[DONE]"
        assert streamed_text([*pieces, *rest]) == undisturbed
        assert client.get("/health").status_code == 200


@pytest.mark.slow
def test_when_a_front_end_dies_its_work_is_dropped_and_another_one_serves(tmp_path: Path) -> None:
    with serve_fake(write_tokenizer(tmp_path)) as server:
        with httpx.stream("POST", f"{server.url}/v1/completions", json=LONG, timeout=60) as response:
            events = events_of(response)
            next(events)
            os.kill(child_pid(server, "orcinus.server.front"), signal.SIGKILL)
            with pytest.raises(httpx.RemoteProtocolError):
                list(events)
        server.next_event("front", "gone")
        answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x"}, timeout=60)
        assert answer.status_code == 200


@pytest.mark.slow
def test_several_front_ends_share_one_port(tmp_path: Path) -> None:
    with serve_fake(write_tokenizer(tmp_path), TEST_FRONT_ENDS="2") as server:
        for _ in range(20):
            answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x"}, timeout=60)
            assert answer.status_code == 200
        assert len(children(server, "orcinus.server.front")) == 2


@pytest.mark.slow
def test_a_server_whose_engines_die_again_and_again_leaves_with_the_reason(tmp_path: Path) -> None:
    command = [sys.executable, str(SERVE_FAKE), str(tmp_path), "--crash-when-ready"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "EngineDied" in ended.stderr
    assert "died too soon" in ended.stderr


def text_of(response: httpx.Response) -> list[str]:
    """The text of each choice."""
    return [choice["text"] for choice in response.json()["choices"]]


def streamed_text(events: list[str]) -> list[str]:
    """The same from a stream of two choices."""
    texts = ["", ""]
    for event in events:
        for choice in json.loads(event)["choices"]:
            texts[choice["index"]] += choice["text"]
    return texts


def children(server: Served, module: str) -> list[int]:
    """Processes that the server has started, by a word of their command line."""
    found = []
    for task in Path(f"/proc/{server.process.pid}/task").iterdir():
        for pid in (task / "children").read_text().split():
            if module in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(int(pid))
    return found


def child_pid(server: Served, module: str) -> int:
    (pid,) = children(server, module)
    return pid


def engine_pid(server: Served) -> int:
    return child_pid(server, "fake_engine")


def _end(server: Served, response: httpx.Response, *signals: signal.Signals) -> list[str]:
    """The events of a stream during which the server gets signals; it must leave with code 0."""
    events = events_of(response)
    seen = [next(events)]
    for number in signals:
        server.process.send_signal(number)
    seen += events
    assert server.process.wait() == 0
    return seen


@pytest.mark.slow
def test_sigterm_lets_running_streams_finish(tmp_path: Path) -> None:
    with (
        serve_fake(write_tokenizer(tmp_path)) as server,
        httpx.stream("POST", f"{server.url}/v1/completions", json=LONG | {"max_tokens": 400}, timeout=60) as response,
    ):
        *_, last, done = _end(server, response, signal.SIGTERM)
        assert done == "[DONE]"
        assert json.loads(last)["choices"][0]["finish_reason"] == "length"
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/health")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("drain", "signals"), [("0", [signal.SIGTERM]), ("60", [signal.SIGTERM, signal.SIGINT])], ids=["bound", "twice"]
)
def test_streams_that_outlast_the_drain_end_with_an_error_event(
    tmp_path: Path, drain: str, signals: list[signal.Signals]
) -> None:
    with (
        serve_fake(write_tokenizer(tmp_path), TEST_DRAIN=drain) as server,
        httpx.stream("POST", f"{server.url}/v1/completions", json=LONG, timeout=60) as response,
    ):
        *_, error, done = _end(server, response, *signals)
        assert done == "[DONE]"
        assert json.loads(error)["error"]["code"] == "service_unavailable"


@pytest.mark.slow
def test_before_it_drains_a_server_says_that_it_will_and_still_serves(tmp_path: Path) -> None:
    with serve_fake(write_tokenizer(tmp_path), TEST_DRAIN_DELAY="600") as server:
        server.process.terminate()
        while httpx.get(f"{server.url}/ready").status_code == 200:
            time.sleep(0.01)
        answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "one two", "max_tokens": 3})
        assert (answer.status_code, httpx.get(f"{server.url}/health").status_code) == (200, 200)
        # A second signal doesn't wait.
        server.process.terminate()
        assert server.process.wait(timeout=60) == 0


@pytest.mark.slow
def test_sigterm_while_the_engine_loads_leaves_at_once_and_takes_the_engine_along(tmp_path: Path) -> None:
    log = tmp_path / "log"
    os.mkfifo(log)
    # The fake engine waits at the pipe, as if it were loading, until somebody opens the other end.
    server = subprocess.Popen([sys.executable, str(SERVE_FAKE), str(tmp_path), "--log", str(log)])
    with server:
        reader = os.open(log, os.O_RDONLY)
        server.terminate()
        assert server.wait() == 0
    with os.fdopen(reader, encoding="utf-8") as engine_log:
        assert engine_log.read() in ("", "shutdown\n")
