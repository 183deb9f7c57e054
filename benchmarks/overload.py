"""What overload does to those who are let in: an open loop at 0.7 to 10 times what the server can do.

    python benchmarks/overload.py /tmp/models/bench-160m [--phases 0.7,1,2,5,10,herd,obey,ignore] [--seconds 60]
                                  [--scale 1] [--seed 1] [--json FILE] [--max-queue-seconds 2] [--serve "--dtype ..."]
    python benchmarks/overload.py models/orcinus-tiny --paced 1 ...

Starts `orcinus serve --threads 1`: the engine has one core, the front end and the client share another. `--paced`
serves with an engine that sleeps as long as a model would compute: other jobs change how fast a real one is.

Capacity is what a closed loop of as many clients as an iteration has places gets answered. The phases are Poisson
arrivals at a multiple of it: `obey` is 10 times it with clients that come back twice when Retry-After says, `ignore`
with clients that come back ten times after half a second whatever it says, `herd` is 10 times it for `--herd` seconds
and then silence, where everybody who was refused comes back when told.

Server-side figures: TTFT as the server's own clock has it (`/v1/live`, nearest rank), gaps between the tokens of a
sequence as the engine's iterations have them. Client-side figures are those of the process that sends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import msgspec
from overload_figures import (
    COLUMNS,
    OVERLOADED,
    SERVED,
    WARM_UP,
    client_side,
    line_of,
    ranks,
    server_side,
    tokens_between,
)
from overload_server import EngineView, ServerUnderLoad, metrics, paced_server, real_server
from raw_client import RawClient, Reply
from tqdm import tqdm

from orcinus.bench.arrivals import gamma_arrivals
from orcinus.bench.asks import Ask, Failure, FailureKind, Observation
from orcinus.bench.load import Heartbeat, open_loop

# Sequences in an iteration, by default.
PLACES = 64
RETRIES_OBEYING, RETRIES_IGNORING, IMPATIENCE = 2, 10, 0.5
FULL = 10.0


def make_asks(count: int, scale: float, rng: random.Random) -> list[Ask]:
    """Three short ones to a long one, in random order: 16..64 in and 8..24 out; 256..512 in and 32..96 out."""

    def length(low: int, high: int) -> int:
        return max(2, round(scale * rng.randint(low, high)))

    asks = []
    for _ in range(count):
        prompt, answer = ((256, 512), (32, 96)) if rng.random() < 0.25 else ((16, 64), (8, 24))
        asks.append(Ask([rng.randrange(10, 30_000) for _ in range(length(*prompt))], length(*answer)))
    return asks


@dataclass(frozen=True)
class Manners:
    """What a client does that is refused: come back `times` times, after `delay` seconds, or when it was told."""

    times: int = 0
    delay: float | None = None


@dataclass(frozen=True)
class Phase:
    """How much, for how long, and how clients behave that are refused."""

    name: str
    load: float
    seconds: float
    manners: Manners = Manners()

    @classmethod
    def named(cls, name: str, seconds: float, herd: float) -> Phase:
        """A number is a multiple of capacity."""
        match name:
            case "obey":
                return cls(name, FULL, seconds, Manners(RETRIES_OBEYING))
            case "ignore":
                return cls(name, FULL, seconds, Manners(RETRIES_IGNORING, IMPATIENCE))
            case "herd":
                return cls(name, FULL, herd, Manners(RETRIES_OBEYING))
        return cls(f"{float(name):g}x", float(name), seconds)


@dataclass
class Sender:
    """Sends asks and keeps every reply, and what came of it in the loop's observation."""

    client: RawClient
    manners: Manners = Manners()
    first: list[Reply] = field(default_factory=list)
    returns: list[list[Reply]] = field(default_factory=list)

    async def __call__(self, ask: Ask, observation: Observation) -> None:
        """One request, with its returns."""
        body = {"prompt": ask.prompt, "max_tokens": ask.max_tokens, "temperature": 0, "ignore_eos": True}
        # With ids, each token is an event.
        streamed = body | {"stream": True, "return_token_ids": True}
        message = self.client.message("/v1/completions", msgspec.json.encode(streamed))
        reply = await self.client.post(message)
        self.first.append(reply)
        returns: list[Reply] = []
        while reply.status == OVERLOADED and reply.retry_after is not None and len(returns) < self.manners.times:
            await asyncio.sleep(reply.retry_after if self.manners.delay is None else self.manners.delay)
            reply = await self.client.post(message)
            returns.append(reply)
        if returns:
            self.returns.append(returns)
        observation.sent_at, observation.ended_at = reply.sent_at, reply.ended_at
        observation.token_instants, observation.tokens_seen = reply.events, len(reply.events)
        if reply.status == SERVED and len(reply.events) == ask.max_tokens:
            return
        observation.failure = Failure(FailureKind.STATUS, reply.failure or reply.body[:200].decode(), reply.status)


class Measurement:
    """A server under load and a client, over all phases."""

    def __init__(
        self, server: ServerUnderLoad, session: aiohttp.ClientSession, scale: float, rng: random.Random
    ) -> None:
        self._server = server
        self._session = session
        self._rng = rng
        self._scale = scale
        host, port = server.url.removeprefix("http://").split(":")
        self._client = RawClient(host, int(port))

    async def capacity(self, seconds: float) -> dict[str, float]:
        """Requests and tokens a second in a closed loop that always has somebody for every place."""
        sender = Sender(self._client)
        asks = iter(make_asks(20_000, self._scale, self._rng))
        end = time.monotonic() + WARM_UP + seconds

        async def one() -> None:
            while time.monotonic() < end:
                await sender(next(asks), Observation(0.0, 0.0))
                if sender.first[-1].status == OVERLOADED:
                    await asyncio.sleep(0.1)

        await asyncio.gather(*(one() for _ in range(PLACES)))
        served = [reply for reply in sender.first if reply.status == SERVED]
        ends = sum(end - seconds <= reply.ended_at < end for reply in served)
        return {"requests": ends / seconds, "tokens": tokens_between(served, end - seconds, end) / seconds}

    async def run(self, phase: Phase, capacity: float) -> dict[str, object]:
        """The figures of one phase, from its first arrival until all is over."""
        rate = phase.load * capacity
        arrivals = gamma_arrivals(max(1, round(rate * phase.seconds)), rate, 1.0, self._rng)
        asks = make_asks(len(arrivals), self._scale, self._rng)
        sender = Sender(self._client, phase.manners)
        before, cpu = await metrics(self._session, self._server.url), self._cpu()
        async with EngineView(self._session, self._server.url) as view, Heartbeat() as heartbeat:
            begun = time.monotonic()
            normal = asyncio.create_task(self._normal_after(begun + arrivals[-1]))
            with tqdm(total=len(asks), desc=phase.name, unit="request", disable=None, dynamic_ncols=True) as bar:
                observations = await open_loop(asks, arrivals, sender, on_end=lambda _: bar.update())
            spent, took = self._cpu(), time.monotonic() - begun
            normal_after = await normal
        after = await metrics(self._session, self._server.url)
        return {
            "phase": phase.name,
            "offered": rate,
            **client_side(sender.first, sender.returns, begun, phase.seconds),
            **server_side(view, {name: value - before.get(name, 0.0) for name, value in after.items()}),
            "normal_after": normal_after,
            "rss_mib": self._server.rss_mib(),
            "cpu": {name: (spent[name] - cpu[name]) / took for name in cpu},
            "client_stall": ranks(heartbeat.stalls),
            "client_late": ranks([one.released_at - one.scheduled_at for one in observations]),
        }

    async def _normal_after(self, end: float) -> float:
        """Seconds from `end` until nobody waits."""
        await asyncio.sleep(max(0.0, end - time.monotonic()))
        while True:
            async with self._session.get(f"{self._server.url}/load") as response:
                if (await response.json())["num_waiting"] == 0:
                    return time.monotonic() - end
            await asyncio.sleep(0.1)

    def _cpu(self) -> dict[str, float]:
        return {"client": time.process_time()} | self._server.cpu_seconds()


async def measure(server: ServerUnderLoad, arguments: argparse.Namespace) -> None:
    """All phases, with a table line each; all figures in a file, after each phase."""
    async with aiohttp.ClientSession() as session:
        measurement = Measurement(server, session, arguments.scale, random.Random(arguments.seed))
        capacity = await measurement.capacity(arguments.seconds / 2)
        print(f"capacity: {capacity['requests']:.2f} requests/s, {capacity['tokens']:.0f} tokens/s")
        print(" ".join(f"{title:>11}" for title in COLUMNS.values()), flush=True)
        phases = []
        for name in arguments.phases.split(","):
            phase = Phase.named(name, arguments.seconds, arguments.herd)
            phases.append(await measurement.run(phase, capacity["requests"]))
            print(line_of(phases[-1]), flush=True)
            if arguments.json:
                result = {"arguments": vars(arguments), "capacity": capacity, "phases": phases}
                arguments.json.write_text(json.dumps(result, indent=1, default=str))


def main() -> None:
    """A table, and all of it in a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--phases", default="0.7,1,2,5,10,herd,obey,ignore")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each phase (%(default)s)")
    parser.add_argument("--herd", type=float, default=5.0, help="seconds of the herd's arrivals (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of all lengths; less for a slow machine (%(default)s)"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--paced", type=float, help="an engine that sleeps instead of computing; 1 is quick, 2 half so")
    parser.add_argument("--max-queue-seconds", type=float)
    parser.add_argument("--serve", default="", help="more options for orcinus serve, in one string")
    arguments = parser.parse_args()
    if arguments.paced:
        command = paced_server(arguments.model, arguments.max_queue_seconds, arguments.paced)
    else:
        command = real_server(arguments.model, arguments.max_queue_seconds, shlex.split(arguments.serve))
    server = ServerUnderLoad(command)
    try:
        asyncio.run(measure(server, arguments))
    finally:
        server.stop()


if __name__ == "__main__":
    main()
