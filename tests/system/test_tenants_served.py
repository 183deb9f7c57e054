"""Each API key is a tenant: what one has computed is never found by another (RELIABILITY.md, I28)."""

from __future__ import annotations

import signal

import httpx
import pytest
from test_serve import MODEL, start, url_of

pytestmark = pytest.mark.slow


def test_a_key_finds_its_own_prompt_in_the_cache_and_nobody_elses() -> None:
    server = start(
        str(MODEL), "--port", "0", "--threads", "1", "--policy", "fair", "--api-key", "one", "--api-key", "two"
    )
    url = f"{url_of(server)}/v1/completions"

    def cached_tokens(key: str) -> int:
        body = {"prompt": "Once upon a time there was a dragon. " * 8, "max_tokens": 2}
        answer = httpx.post(url, json=body, headers={"authorization": f"Bearer {key}"}, timeout=60)
        cached: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        return cached

    try:
        assert cached_tokens("one") == 0
        assert cached_tokens("one") > 0
        assert cached_tokens("two") == 0
        assert cached_tokens("two") > 0
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 0
        assert server.stderr is not None
        server.stderr.close()
