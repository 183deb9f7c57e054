"""What openai 3.x does by itself with our refusals: which class it raises, how long it waits, how it gets through."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import openai
import pytest
from openai import DefaultHttpxClient
from served import Served, serve_fake
from tokenizer_files import write_tokenizer

pytestmark = pytest.mark.slow
# What tests/server/serve_fake.py allows at a time.
MAX_LIVE = 8
LONG = {"model": "fake", "prompt": "on and on ", "max_tokens": 4000, "stream": True, "extra_body": {"ignore_eos": True}}
SHORT = {"model": "fake", "prompt": "and one more ", "max_tokens": 3}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve_fake(write_tokenizer(tmp_path_factory.mktemp("clients")), TEST_KEYS="right") as server:
        yield server


@contextmanager
def crowd(served: Served) -> Iterator[ExitStack]:
    """So many running streams that no more are taken, until the stack is closed."""
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="right", max_retries=0) as client, ExitStack() as streams:
        for _ in range(MAX_LIVE):
            stream = streams.enter_context(client.completions.create(**LONG))
            next(iter(stream))
        yield streams


def test_a_wrong_key_is_an_authentication_error(keyed: Served) -> None:
    with (
        openai.OpenAI(base_url=f"{keyed.url}/v1", api_key="wrong") as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.models.list()
    assert caught.value.code == "invalid_api_key"


def test_a_url_without_v1_is_a_not_found_error(keyed: Served) -> None:
    with (
        openai.OpenAI(base_url=keyed.url, api_key="right") as client,
        pytest.raises(openai.NotFoundError) as caught,
    ):
        client.models.list()
    assert caught.value.code == "unknown_url"


def test_too_much_at_once_is_a_rate_limit_error_that_says_when_to_come_again(keyed: Served) -> None:
    with (
        crowd(keyed),
        openai.OpenAI(base_url=f"{keyed.url}/v1", api_key="right", max_retries=0) as client,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        client.completions.create(**SHORT)
    assert (caught.value.code, caught.value.type) == ("engine_overloaded", "rate_limit_error")
    assert int(caught.value.response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("stream", [False, True])
def test_the_sdk_waits_as_long_as_we_say_and_gets_through(
    keyed: Served, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    waits: list[str] = []

    with crowd(keyed) as streams:

        def on_response(response: object) -> None:
            if response.status_code == 429:
                waits.append(response.headers["retry-after"])
                streams.close()

        http_client = DefaultHttpxClient(event_hooks={"response": [on_response]})
        with (
            caplog.at_level(logging.INFO, "openai._base_client"),
            openai.OpenAI(base_url=f"{keyed.url}/v1", api_key="right", http_client=http_client) as client,
        ):
            reply = client.completions.create(**SHORT, stream=stream)
            text = "".join(part.choices[0].text for part in (reply if stream else [reply]))
    ids = keyed.tokenizer.encode(SHORT["prompt"], add_special_tokens=False)
    assert text == keyed.tokenizer.decode(ids[:3], skip_special_tokens=True)
    # Its own first pause is under half a second; this one is ours.
    (said,) = [record.getMessage() for record in caplog.records if "Retrying request" in record.getMessage()]
    assert waits
    assert f"in {float(waits[0]):f} seconds" in said


def test_the_sdk_asks_again_when_the_server_closes_a_connection_that_it_kept(tmp_path: Path) -> None:
    """Another server on the same port: the connection in the SDK's pool is dead, and nobody notices."""
    folder = write_tokenizer(tmp_path)
    with serve_fake(folder, TEST_DRAIN="1") as first:
        port = str(first.address[1])
        client = openai.OpenAI(base_url=f"{first.url}/v1", api_key="none", max_retries=8)
        before = client.completions.create(**SHORT).choices
    with serve_fake(folder, TEST_PORT=port), client:
        assert client.completions.create(**SHORT).choices == before
