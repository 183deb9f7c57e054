"""A stream that lost its connection goes on where its client says, exactly once, with the undisturbed bits."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from served import Served, serve_fake
from test_life import child_pid
from tokenizer_files import write_tokenizer

pytestmark = pytest.mark.slow
PROMPT = "The lazy 🦊 says 你好. "


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve_fake(write_tokenizer(tmp_path_factory.mktemp("keyed")), TEST_KEYS="one,two") as server:
        yield server


def body(**options: object) -> dict[str, object]:
    return {"prompt": PROMPT, "max_tokens": 200, "ignore_eos": True, "stream": True, "seed": 3, **options}


class Reader:
    """A client that writes down ids and texts, over any number of connections."""

    def __init__(self, url: str, key: str = "", path: str = "/v1/completions") -> None:
        self.url = url
        self.path = path
        self.headers = {"authorization": f"Bearer {key}"} if key else {}
        self.ids: list[str] = []
        self.events: list[dict[str, object]] = []
        self.is_done = False

    @property
    def stream_id(self) -> str:
        return self.ids[0].split(":")[0]

    def begin(self, request: dict[str, object], events: int) -> None:
        """Read so many events, then hang up."""
        with httpx.stream("POST", self.url + self.path, json=request, headers=self.headers, timeout=60) as response:
            assert response.status_code == 200
            self._read(response, events)

    def resume(self, events: int) -> None:
        """Go on after the last event read."""
        headers = self.headers | {"last-event-id": self.ids[-1]}
        url = f"{self.url}/v1/streams/{self.stream_id}"
        with httpx.stream("GET", url, headers=headers, timeout=60) as response:
            assert response.status_code == 200
            self._read(response, events)

    def texts(self) -> dict[int, str]:
        texts: dict[int, str] = {}
        for event in self.events:
            for choice in event["choices"]:
                text = choice["text"] if "text" in choice else choice["delta"].get("content") or ""
                texts[choice["index"]] = texts.get(choice["index"], "") + text
        return texts

    def _read(self, response: httpx.Response, events: int) -> None:
        event_id = ""
        for line in response.iter_lines():
            if line.startswith("id: "):
                event_id = line.removeprefix("id: ")
            elif line == "data: [DONE]":
                self.is_done = True
                return
            elif line.startswith("data: "):
                self.ids.append(event_id)
                self.events.append(json.loads(line.removeprefix("data: ")))
                if len(self.events) >= events:
                    return


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("/v1/completions", {}),
        ("/v1/completions", {"n": 3}),
        ("/v1/completions", {"prompt": [PROMPT, "one two three "], "n": 2, "logprobs": 1}),
        ("/v1/completions", {"stop": ["says 你", "never"], "n": 2, "max_tokens": 60}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT}], "n": 2}),
    ],
    ids=["one", "three", "prompts", "stop", "chat"],
)
def test_a_stream_read_in_pieces_is_the_stream_read_at_once(
    served: Served, path: str, options: dict[str, object]
) -> None:
    request = body(**options)
    whole = Reader(served.url, path=path)
    whole.begin(request, 10**6)
    assert whole.is_done
    rng = random.Random(1)
    reader = Reader(served.url, path=path)
    reader.begin(request, rng.randint(1, 20))
    while not reader.is_done:
        reader.resume(len(reader.events) + rng.randint(1, 60))
    assert reader.texts() == whole.texts()
    assert len(reader.events) == len(whole.events)
    assert sorted(i.split(":", 1)[1] for i in reader.ids) == sorted(i.split(":", 1)[1] for i in whole.ids)
    finishes = [choice["finish_reason"] for event in reader.events for choice in event["choices"]]
    assert sorted(filter(None, finishes)) == sorted(
        filter(None, (choice["finish_reason"] for event in whole.events for choice in event["choices"]))
    )


def test_ids_count_the_tokens_delivered_of_each_choice(served: Served) -> None:
    reader = Reader(served.url)
    reader.begin(body(prompt=[40, 41, 42], n=2, max_tokens=5), 10**6)
    for choice in (0, 1):
        own = [event_id.split(":") for event_id in reader.ids if event_id.split(":")[1] == str(choice)]
        assert [int(count) for _, _, count in own] == [1, 2, 3, 4, 5]


def test_an_end_that_was_missed_can_be_read_again(served: Served) -> None:
    reader = Reader(served.url)
    reader.begin(body(max_tokens=30), 10**6)
    again = Reader(served.url)
    again.ids, again.events = reader.ids[:7], reader.events[:7]
    again.resume(10**6)
    assert again.is_done
    assert again.texts() == reader.texts()


def test_while_nobody_listens_the_engine_does_nothing_for_it(served: Served) -> None:
    reader = Reader(served.url)
    reader.begin(body(max_tokens=3000), 5)
    words = served.next_event("abort", f"{reader.stream_id}-0")
    assert words[-1] == "abort"
    reader.resume(50)
    assert served.next_event("add", f"{reader.stream_id}-0~1")


def test_resuming_after_the_engine_died_in_between_gives_the_same_stream(served: Served) -> None:
    whole = Reader(served.url)
    whole.begin(body(), 10**6)
    reader = Reader(served.url)
    reader.begin(body(), 40)
    os.kill(child_pid(served, "fake_engine"), signal.SIGKILL)
    reader.resume(80)
    os.kill(child_pid(served, "fake_engine"), signal.SIGKILL)
    reader.resume(10**6)
    assert reader.is_done
    assert reader.texts() == whole.texts()


def test_a_stream_belongs_to_the_key_that_began_it(keyed: Served) -> None:
    reader = Reader(keyed.url, "one")
    reader.begin(body(max_tokens=3000), 3)
    url = f"{keyed.url}/v1/streams/{reader.stream_id}"
    assert httpx.get(url).status_code == 401
    for key, stream in (("two", url), ("one", url + "x")):
        refused = httpx.get(stream, headers={"authorization": f"Bearer {key}"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "stream_not_found")
    reader.resume(10)


def test_an_event_that_never_was_is_refused(served: Served) -> None:
    reader = Reader(served.url)
    reader.begin(body(max_tokens=20), 10**6)
    headers = {"last-event-id": f"{reader.stream_id}:0:999"}
    refused = httpx.get(f"{served.url}/v1/streams/{reader.stream_id}", headers=headers)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "last-event-id")


def test_ids_are_unique_so_every_event_can_be_resumed_after(served: Served) -> None:
    """A stop string that is found late makes an event without a token."""
    reader = Reader(served.url)
    reader.begin(body(max_tokens=25, stop=["lazy 🦊"], n=2), 10**6)
    assert len(set(reader.ids)) == len(reader.ids)
    again = Reader(served.url)
    for read in range(1, len(reader.ids)):
        again.ids, again.events, again.is_done = reader.ids[:read], reader.events[:read], False
        again.resume(10**6)
        assert again.texts() == reader.texts()
        assert again.ids == reader.ids


def test_whichever_front_end_answers_a_stream_goes_on(tmp_path: Path) -> None:
    """Three processes share the port, so most resumptions meet one that didn't begin the stream."""
    with serve_fake(write_tokenizer(tmp_path), TEST_FRONT_ENDS="3") as server:
        whole = Reader(server.url)
        whole.begin(body(n=2), 10**6)
        owners = set()
        for seed in range(4):
            reader = Reader(server.url)
            reader.begin(body(n=2), 10 + seed)
            owners.add(reader.stream_id[-2:])
            while not reader.is_done:
                reader.resume(len(reader.events) + 40)
            assert reader.texts() == whole.texts()
        reader.ids[-1] = reader.stream_id + ":0:999"
        headers = {"last-event-id": reader.ids[-1]}
        for _ in range(6):
            refused = httpx.get(f"{server.url}/v1/streams/{reader.stream_id}", headers=headers)
            assert refused.status_code == 400
            gone = httpx.get(f"{server.url}/v1/streams/cmpl-{'0' * 30}07")
            assert (gone.status_code, gone.json()["error"]["code"]) == (404, "stream_not_found")
