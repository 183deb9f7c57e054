"""Two promises of the scheduler, through a real server: a long prompt beside streams, and a polite tenant.

    python benchmarks/gap.py gap    # worst gap of 16 streams beside a prompt of 8,000 tokens, with a target and without
    python benchmarks/gap.py fair   # TTFT of a polite tenant beside one that keeps ten times as many requests open

On bench-160m (random weights). `gap` asks first without a target, which gives the usual gap, then with a
target of 1.4 times that. Figures are medians of `--repeats`.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
from overload_server import ServerUnderLoad, real_server
from raw_client import RawClient, Reply
from workloads import bench_160m

LONG, STREAMS, STREAMED = 8000, 16, 1100
CONTEXT = 16_384
HOSTILE = 10


class Asker:
    """Sends prompts of random ids as one key."""

    def __init__(self, url: str, key: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._client = RawClient(host, int(port))
        self._head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        self._head += f"Authorization: Bearer {key}\r\n"
        # Other ids each time, or the prefix cache would know them.
        self._rng = random.Random()

    async def ask(self, num_prompt: int, max_tokens: int) -> Reply:
        """One stream, read to its end."""
        prompt = [self._rng.randrange(10, 30_000) for _ in range(num_prompt)]
        asked = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
        body = msgspec.json.encode(asked | {"stream": True, "return_token_ids": True})
        reply = await self._client.post(f"{self._head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        if reply.status != 200:
            raise SystemExit(f"refused with {reply.status}: {reply.body.decode()}")
        return reply


def served(model: Path, *options: str) -> ServerUnderLoad:
    """A server with two keys that lets everybody wait."""
    return ServerUnderLoad(real_server(model, 3600.0, [*options, "--api-key", "polite", "--api-key", "hostile"]))


async def gaps_beside_a_long_prompt(url: str) -> tuple[float, float, float]:
    """The usual gap (median while nothing else comes), the worst one beside the long prompt, and its TTFT."""
    asker = Asker(url, "polite")
    streams = [asyncio.create_task(asker.ask(32, STREAMED)) for _ in range(STREAMS)]
    await asyncio.sleep(0)
    alone = await asker.ask(32, 40)
    long = await asker.ask(LONG, 4)
    replies = [await stream for stream in streams]
    pairs = [pair for reply in replies for pair in pairwise(reply.events)]
    usual = [later - at for at, later in pairs if later < alone.ended_at]
    beside = [later - at for at, later in pairs if at < long.ended_at and later > long.sent_at]
    if not all(reply.events[-1] > long.ended_at for reply in replies):
        print("note: the streams ended before the long prompt did")
    return statistics.median(usual), max(beside), long.events[0] - long.sent_at


def gap(model: Path, repeats: int) -> None:
    """With a target, and without."""
    target = None
    for options in ([], ["--target-iteration-seconds"]):
        given = [] if target is None else [*options, f"{target:.4f}"]
        server = served(model, "--max-batch-tokens", "8192", *given)
        try:
            asyncio.run(gaps_beside_a_long_prompt(server.url))
            found = [asyncio.run(gaps_beside_a_long_prompt(server.url)) for _ in range(repeats)]
        finally:
            server.stop()
        usual, worst, ttft = (statistics.median(column) for column in zip(*found, strict=True))
        said = "none" if target is None else f"{1e3 * target:.0f} ms"
        beside = f"worst beside {LONG} tokens {1e3 * worst:.1f} ms = {worst / usual:.2f} x; its TTFT {ttft:.2f} s"
        print(f"target {said}: usual gap {1e3 * usual:.1f} ms, {beside}", flush=True)
        target = 1.4 * usual


async def polite_ttft(url: str, count: int, *, is_alone: bool) -> list[float]:
    """Seconds to the first token of the polite tenant's requests, one after another."""
    stopping = asyncio.Event()

    async def hostile(asker: Asker) -> None:
        while not stopping.is_set():
            await asker.ask(100, 60)

    others = [] if is_alone else [asyncio.create_task(hostile(Asker(url, "hostile"))) for _ in range(HOSTILE)]
    await asyncio.sleep(0.0 if is_alone else 3.0)
    polite = Asker(url, "polite")
    replies = [await polite.ask(100, 8) for _ in range(count)]
    stopping.set()
    await asyncio.gather(*others)
    return [reply.events[0] - reply.sent_at for reply in replies]


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that so many don't exceed."""
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def fair(model: Path, count: int) -> None:
    """Alone, then beside the hostile one, under fair and under fcfs; 4 places, so that they are in each other's way."""
    for policy in ("fair", "fcfs"):
        server = served(model, "--policy", policy, "--max-batch-size", "4", "--max-batch-tokens", "256")
        try:
            asyncio.run(polite_ttft(server.url, 5, is_alone=True))
            alone = asyncio.run(polite_ttft(server.url, count, is_alone=True))
            beside = asyncio.run(polite_ttft(server.url, count, is_alone=False))
        finally:
            server.stop()
        for percent in (50, 99):
            pair = (1e3 * percentile(alone, percent), 1e3 * percentile(beside, percent))
            print(f"{policy}: p{percent} TTFT alone {pair[0]:.0f} ms, beside {pair[1]:.0f} ms", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["gap", "fair"])
    parser.add_argument("--repeats", type=int, default=3, help="of gap")
    parser.add_argument("--count", type=int, default=60, help="requests of the polite tenant")
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "orcinus-bench")
    arguments = parser.parse_args()
    if arguments.kind == "gap":
        gap(bench_160m(arguments.models, CONTEXT), arguments.repeats)
    else:
        fair(bench_160m(arguments.models), arguments.count)


if __name__ == "__main__":
    main()
