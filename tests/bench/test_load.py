"""The open loop: no answer, however late, delays a request."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from aiohttp import web
from strange_servers import DONE, serving, streams, text_chunk

from orcinus.bench.asks import Ask, Observation
from orcinus.bench.client import StreamingClient
from orcinus.bench.endpoint import Target, connections
from orcinus.bench.load import open_loop

COUNT = 40


def test_a_server_that_answers_only_when_all_have_asked_gets_all_requests_at_their_instants() -> None:
    """A closed loop would wait here for ever."""
    everybody = asyncio.Event()
    asked: list[list[int]] = []

    async def wait_for_everybody(request: web.Request) -> web.StreamResponse:
        asked.append((await request.json())["prompt"])
        if len(asked) == COUNT:
            everybody.set()
        await everybody.wait()
        return await streams(text_chunk("a"), text_chunk("", "stop"), DONE)(request)

    arrivals = [0.002 * index for index in range(COUNT)]
    ended = Counter[int]()

    async def run() -> list[Observation]:
        async with serving(wait_for_everybody) as url, connections(None, 60.0) as session:
            client = StreamingClient(session, Target(base_url=url, model="m", kind="completions"))
            asks = [Ask([index], 1) for index in range(COUNT)]
            return await open_loop(asks, arrivals, client.send, on_end=lambda one: ended.update([id(one)]))

    observations = asyncio.run(run())
    assert sorted(asked) == [[index] for index in range(COUNT)]
    assert all(one.failure is None for one in observations)
    assert set(ended.values()) == {1}
    assert len(ended) == COUNT
    begun = observations[0].scheduled_at
    assert [one.scheduled_at - begun for one in observations] == pytest.approx(arrivals)
    # Never before its instant, in order, and all before the first answer.
    assert all(one.scheduled_at <= one.released_at <= one.sent_at for one in observations)
    sent = [one.sent_at for one in observations]
    assert sent == sorted(sent)
    assert sent[-1] <= min(one.token_instants[0] for one in observations)


def test_a_concurrency_limit_holds_requests_back_and_says_how_long() -> None:
    out = most = 0

    async def send(ask: Ask, observation: Observation) -> None:
        nonlocal out, most
        observation.sent_at = asyncio.get_running_loop().time()
        out += 1
        most = max(most, out)
        for _ in range(5):
            await asyncio.sleep(0)
        out -= 1

    asks = [Ask("a", 1)] * 20
    asyncio.run(open_loop(asks, [0.0] * 20, send, max_concurrency=3, on_end=lambda one: None))
    assert most == 3
    asyncio.run(open_loop(asks, [0.0] * 20, send, on_end=lambda one: None))
    assert most == 20
