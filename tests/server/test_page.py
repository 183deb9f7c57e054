"""The page's files are public and closed to the outside; its feed needs the key and tells what the engine did."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest
from real_server import serve_tiny
from served import serve_fake
from test_life import engine_pid, events_of
from tokenizer_files import write_tokenizer

from orcinus.core.clock import VirtualClock
from orcinus.core.progress import Progress
from orcinus.core.request import FinishReason, Request, SamplingParams, pack_tokens
from orcinus.engine.client import Watcher
from orcinus.engine.messages import Iteration, Member, Outputs, Timeline
from orcinus.errors import Overloaded
from orcinus.server.live import LIVE_PATH, MAX_FEEDS, Feed, Latencies, LatencyWindow, Live, label_of
from orcinus.server.page_api import PAGE_PATHS

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "orcinus" / "server" / "page"


# ---- the shell


def test_every_file_of_the_folder_is_served_and_no_other() -> None:
    names = {"/" if path.name == "index.html" else f"/static/{path.name}" for path in PAGE.iterdir()}
    assert set(PAGE_PATHS) == names


def test_the_page_refers_to_nothing_outside_of_it() -> None:
    for path in PAGE.iterdir():
        for address in re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", path.read_text()):
            # A name, not an address: nothing is ever fetched from it.
            assert address == "http://www.w3.org/2000/svg", (path.name, address)


class Inline(HTMLParser):
    """Collects what a strict content security policy forbids."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.files: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.files += [given[name] or "" for name in ("src", "href") if name in given]
        self.found += [f"{tag} {name}" for name in given if name == "style" or name.startswith("on")]
        if tag == "style" or (tag == "script" and "src" not in given):
            self.found.append(tag)


def test_the_shell_has_nothing_inline_and_loads_only_what_is_served() -> None:
    shell = Inline()
    shell.feed((PAGE / "index.html").read_text())
    assert shell.found == []
    assert [file for file in shell.files if file != "data:,"]
    assert {file for file in shell.files if file != "data:,"} <= set(PAGE_PATHS)


@pytest.mark.slow
def test_the_shell_is_public_and_says_that_nothing_else_may_run(tmp_path: Path) -> None:
    with serve_fake(write_tokenizer(tmp_path), TEST_KEYS="secret") as server:
        for path in PAGE_PATHS:
            response = httpx.get(server.url + path)
            assert response.status_code == 200
            policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
            assert policy["default-src"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
            assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
            assert response.headers["x-content-type-options"] == "nosniff"
        assert httpx.post(f"{server.url}/").status_code == 405
        for closed in ("/static/", "/static/index.html", "/static/../page_api.py", "/static/%2e%2e/page_api.py", "//"):
            assert httpx.get(server.url + closed).status_code == 401, closed


# ---- the feed


def read_feed(url: str, headers: dict[str, str] | None = None) -> Iterator[dict[str, object]]:
    """Its events, from the first on."""
    with httpx.stream("GET", url + LIVE_PATH, headers=headers, timeout=60) as response:
        assert response.status_code == 200
        yield from map(json.loads, events_of(response))


@pytest.mark.slow
def test_the_feed_needs_the_key(tmp_path: Path) -> None:
    with serve_fake(write_tokenizer(tmp_path), TEST_KEYS="secret") as server:
        assert httpx.get(server.url + LIVE_PATH).status_code == 401
        feed = read_feed(server.url, {"authorization": "Bearer secret"})
        assert next(feed)["is_alive"] is True
        feed.close()


@pytest.mark.slow
def test_a_page_that_is_left_open_does_not_hold_up_a_server_that_leaves(tmp_path: Path) -> None:
    with serve_fake(write_tokenizer(tmp_path), TEST_DRAIN="100000") as server:
        feed = read_feed(server.url)
        next(feed)
        server.process.terminate()
        # An orderly end: httpx would complain about a body that is cut off.
        for _ in feed:
            pass
        assert server.process.wait() == 0


@pytest.mark.slow
def test_the_feed_tells_of_another_engine(tmp_path: Path) -> None:
    with serve_fake(write_tokenizer(tmp_path)) as server:
        feed = read_feed(server.url)
        assert next(feed)["engine"] == 0
        os.kill(engine_pid(server), signal.SIGKILL)
        after = next(event for event in feed if event["engine"])
        assert (after["engine"], after["is_alive"]) == (1, True)
        feed.close()


@pytest.mark.slow
def test_the_feed_tells_who_was_in_each_iteration_of_the_real_engine() -> None:
    prompts = [list(range(40, 140)), list(range(50, 60)), [33]]
    asked = {"prompt": prompts, "max_tokens": 30, "ignore_eos": True, "n": 2, "return_token_ids": True}
    with serve_tiny("--max-batch-tokens", "64") as server:
        url = server.url
        feed = read_feed(url)
        before = next(feed)
        reply = httpx.post(f"{url}/v1/completions", json=asked, timeout=120).json()
        assert reply["usage"]["completion_tokens"] == 180
        events = []
        for event in feed:
            events.append(event)
            if event["ttft"]["count"] == event["tpot"]["count"] == 6 and event["num_running"] == 0:
                break
        feed.close()
    _check_state(before, events)
    _check_sequences(events, reply["id"], [len(prompt) for prompt in prompts])
    assert sum(iteration[3] for event in events for iteration in event["iterations"]) == 180


def _check_state(before: dict[str, object], events: list[dict[str, object]]) -> None:
    """The queues were empty, were used, and are empty again; the figures are of a possible world."""
    last = events[-1]
    assert before["total_blocks"] == before["free_blocks"] == last["free_blocks"] == last["total_blocks"] > 0
    assert last["num_live"] == last["num_waiting"] == 0
    for name in ("ttft", "tpot"):
        assert 0 < last[name]["p50"] <= last[name]["p90"] <= last[name]["p99"]
    instants = [event["at"] for event in events]
    assert instants == sorted(instants)


def _check_sequences(events: list[dict[str, object]], reply_id: str, lengths: list[int]) -> None:
    """Each answer's parts cover its positions: the prompt in chunks (or shared), then one token an iteration."""
    members = {member[0]: member[1:] for event in events for member in event["members"]}
    parts: dict[int, list[list[object]]] = {}
    batches = []
    for _, _, seconds, _, batch in (iteration for event in events for iteration in event["iterations"]):
        assert seconds > 0
        assert sum(part[2] for part in batch) <= 64
        batches.append({part[0] for part in batch})
        for key, *part in batch:
            parts.setdefault(key, []).append(part)
    stem = reply_id.split("-")[1][:4]
    names = [stem, f"{stem}.1", f"{stem}.2"]
    assert sorted(map(tuple, members.values())) == sorted(
        (name, index, length) for name, length in zip(names, lengths, strict=True) for index in (0, 1)
    )
    for key, own in parts.items():
        _, index, length = members[key]
        assert own[0][0] == 0 or index == 1
        assert [start + count for start, count, _ in own[:-1]] == [start for start, _, _ in own[1:]]
        assert own[-1][0] + own[-1][1] == length + 29
        assert all(is_prefill == (start < length) for start, _, is_prefill in own)
    # Iteration-level scheduling: they run together, and the short ones began before the long prompt was through.
    assert any(len(batch) == 6 for batch in batches)


# ---- its parts


class FakeFront:
    """Stands for the engine's client."""

    hopeless, num_live, stats = False, 3, Outputs((), num_running=2)

    def __init__(self) -> None:
        self.alive = True
        self.watcher: Watcher | None = None

    def watch(self, watcher: Watcher) -> None:
        self.watcher = watcher

    def unwatch(self) -> None:
        if self.watcher is not None:
            watcher, self.watcher = self.watcher, None
            watcher.end()


def frame(*numbers: int, num_running: int = 1) -> Timeline:
    iterations = tuple(Iteration(number, float(number), 0.5, 1, ()) for number in numbers)
    members = tuple(Member(number, f"cmpl-abcdef-{number}", 0, 3) for number in numbers)
    return Timeline(members, iterations, num_running=num_running)


class Reader:
    """One client of the feed, over ASGI."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.leave = asyncio.Event()
        self.may_read = asyncio.Event()
        self.may_read.set()
        self.arrived: asyncio.Queue[dict[str, object]] = asyncio.Queue()
        self.task = asyncio.create_task(feed({}, self._receive, self._send))

    async def next(self) -> dict[str, object]:
        return await self.arrived.get()

    async def _receive(self) -> dict[str, object]:
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, object]) -> None:
        await self.may_read.wait()
        if body := message.get("body"):
            assert isinstance(body, bytes)
            await self.arrived.put(json.loads(body.removeprefix(b"data: ")))


def test_the_engine_is_watched_only_while_somebody_looks_on() -> None:
    async def body() -> None:
        front = FakeFront()
        live = Live(front, VirtualClock())
        first, second = Reader(live.feed()), Reader(live.feed())
        await first.next()
        await second.next()
        assert front.watcher is live
        first.leave.set()
        await first.task
        assert front.watcher is live
        second.leave.set()
        await second.task
        assert front.watcher is None
        third = Reader(live.feed())
        assert (await third.next())["num_running"] == 2
        assert front.watcher is live
        front.unwatch()
        await third.task

    asyncio.run(asyncio.wait_for(body(), 30))


def test_a_slow_reader_misses_the_eldest_and_holds_up_nobody() -> None:
    async def body() -> None:
        live = Live(FakeFront(), VirtualClock())
        slow, quick = Reader(live.feed()), Reader(live.feed())
        await slow.next()
        await quick.next()
        slow.may_read.clear()
        seen: list[int] = []
        for number in range(100):
            live.see_iterations(frame(number))
            if number % 20 == 19:
                while not seen or seen[-1] != number:
                    seen += [iteration[0] for iteration in (await quick.next())["iterations"]]
        assert seen == list(range(100))
        slow.may_read.set()
        told: list[int] = []
        while not told or told[-1] != 99:
            told += [iteration[0] for iteration in (await slow.next())["iterations"]]
        assert len(told) < 100
        assert told[-30:] == list(range(70, 100))
        for reader in (slow, quick):
            reader.leave.set()
            await reader.task

    asyncio.run(asyncio.wait_for(body(), 60))


def test_what_a_dead_engine_had_left_to_tell_is_not_taken_for_the_next_ones() -> None:
    async def body() -> None:
        front = FakeFront()
        live = Live(front, VirtualClock())
        reader = Reader(live.feed())
        await reader.next()
        live.see_iterations(frame(700, num_running=9))
        front.alive = False
        live.see_engine_down()
        assert (await reader.next())["is_alive"] is False
        live.see_iterations(frame(701, num_running=9))
        front.alive = True
        live.see_engine_up()
        live.see_iterations(frame(0, 1))
        event = await reader.next()
        assert (event["engine"], event["is_alive"], event["num_running"]) == (1, True, 1)
        assert [iteration[0] for iteration in event["iterations"]] == [0, 1]
        assert event["members"] == [[0, "abcd", 0, 3], [1, "abcd.1", 0, 3]]
        front.unwatch()
        await reader.task

    asyncio.run(asyncio.wait_for(body(), 30))


def test_there_are_only_so_many_feeds() -> None:
    async def body() -> None:
        front = FakeFront()
        live = Live(front, VirtualClock())
        readers = [Reader(live.feed()) for _ in range(MAX_FEEDS)]
        for reader in readers:
            await reader.next()
        with pytest.raises(Overloaded):
            live.feed()
        front.unwatch()
        await asyncio.gather(*(reader.task for reader in readers))
        live.feed()

    asyncio.run(asyncio.wait_for(body(), 60))


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 100, 1000])
def test_percentiles_are_those_of_numpy_by_nearest_rank(count: int) -> None:
    rng = random.Random(count)
    values = [rng.expovariate(1.0) for _ in range(count)]
    window = LatencyWindow()
    for value in values:
        window.put(value, 0.0)
    got = window.percentiles(60.0)
    expected = np.percentile(values, [50, 90, 99], method="inverted_cdf").tolist()
    assert [got.p50, got.p90, got.p99] == expected
    assert got.count == count
    assert window.percentiles(60.1).count == 0


def test_latencies_are_measured_from_arrival_and_between_tokens() -> None:
    def request(name: str, arrived_at: float, **more: object) -> Request:
        asked = Request(request_id=name, prompt=pack_tokens([1]), params=SamplingParams(), arrived_at=arrived_at)
        return msgspec.structs.replace(asked, **more)

    latencies = Latencies(since=10.0)
    plain, elder, resumed = request("a", 11.0), request("b", 9.0), request("c", 11.0, resumed=(pack_tokens([1]),))
    for at, tokens, reason in ((12.0, (4,), None), (13.0, (), None), (15.0, (5, 6), None), (18.0, (7,), "stop")):
        for one in (plain, elder, resumed):
            end = FinishReason(reason) if reason else None
            latencies.see(one, Progress(one.request_id, 0, tokens, finish_reason=end), at)
    ttft, tpot = latencies.ttft.percentiles(18.0), latencies.tpot.percentiles(18.0)
    assert (ttft.count, ttft.p50) == (1, 1.0)
    assert (tpot.count, tpot.p50) == (1, 2.0)


def test_labels_tell_the_prompts_of_one_request_apart() -> None:
    assert label_of("cmpl-3f2a0b-0") == "3f2a"
    assert label_of("cmpl-3f2a0b-11") == "3f2a.11"
    assert label_of("chatcmpl-3f2a0b-1~2") == "3f2a.1"
