"""A real server under `--policy deadline`: what can't be answered in time is refused at the door."""

from __future__ import annotations

import signal

import httpx
import pytest
from test_serve import MODEL, start, url_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_that_cannot_be_met_is_refused_at_once_and_a_later_one_is_served(stream: bool) -> None:
    server = start(str(MODEL), "--port", "0", "--threads", "1", "--policy", "deadline")
    url = f"{url_of(server)}/v1/completions"

    def ask(max_tokens: int, **headers: str) -> httpx.Response:
        body = {"prompt": "Once", "max_tokens": max_tokens, "ignore_eos": True, "stream": stream}
        return httpx.post(url, json=body, headers={name.replace("_", "-"): it for name, it in headers.items()})

    try:
        assert ask(64).status_code == 200
        # 2,000 tokens one after another: no machine that runs these tests makes one in 50 µs.
        refused = ask(2000, x_request_timeout="0.1")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "deadline_unreachable")
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert int(refused.headers["retry-after"]) >= 1
        assert ask(64, x_request_timeout="600").status_code == 200
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 0
        assert server.stderr is not None
        server.stderr.close()
