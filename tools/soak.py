"""Many mixed requests (short, long, refused, abandoned), and whether memory, blocks and descriptors stay as they were.

    python tools/soak.py --requests 100000

Prints resident memory of each process as it goes. Exit code 1 if, after warming up, memory grows by more than
`--growth` MiB, if a descriptor or a block is left, or if any answer has a wrong status.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections import Counter
from pathlib import Path

import aiohttp
from faults import MODEL, Server, idle, leave
from tqdm import tqdm

CONCURRENT = 32
WARM_UP = 0.2


def body(rng: random.Random) -> tuple[str, dict[str, object], int]:
    """A kind of request, itself, and the status that it should get."""
    kind = rng.choice(["short", "short", "short", "long", "bad", "embed", "abandon", "stream"])
    chat: dict[str, object] = {
        "messages": [{"role": "user", "content": f"What is {rng.randrange(99)} + {rng.randrange(99)}?"}],
        "temperature": rng.choice([0, 1]),
        "n": rng.choice([1, 1, 2]),
    }
    match kind:
        case "bad":
            wrong = rng.choice([{"n": 0}, {"temperature": 9}, {"messages": []}, {"stop": [""]}, {"max_tokens": 10**9}])
            return kind, chat | wrong, 400
        case "embed":
            return kind, {"input": [f"text {rng.random()}"] * rng.randint(1, 8)}, 200
        case "long" | "abandon":
            return kind, chat | {"max_tokens": 120, "ignore_eos": True, "stream": kind == "abandon"}, 200
        case "stream":
            return kind, chat | {"max_tokens": 16, "stream": True, "stream_options": {"include_usage": True}}, 200
    return kind, chat | {"max_tokens": 12}, 200


async def one(session: aiohttp.ClientSession, url: str, rng: random.Random, wrong: Counter[str]) -> None:
    """Send one request, and leave some in the middle."""
    kind, request, expected = body(rng)
    path = "/v1/embeddings" if kind == "embed" else "/v1/chat/completions"
    async with session.post(url + path, json=request) as response:
        if response.status != expected:
            wrong[f"{kind}: {response.status} instead of {expected}"] += 1
        elif kind == "abandon":
            await response.content.readline()
            response.close()
        else:
            await response.read()


def resident_mib(pid: int) -> float:
    """Of one process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


def memory(server: Server) -> dict[str, float]:
    """Resident MiB by process."""
    (engine,), (front,) = server.children("orcinus.engine.process"), server.children("orcinus.server.front")
    return {
        name: resident_mib(p) for name, p in (("supervisor", server.process.pid), ("front", front), ("engine", engine))
    }


async def run(server: Server, arguments: argparse.Namespace) -> list[str]:
    """What is wrong."""
    wrong: Counter[str] = Counter()
    connector = aiohttp.TCPConnector(limit=CONCURRENT)
    async with aiohttp.ClientSession(connector=connector) as session:
        gate = asyncio.Semaphore(CONCURRENT)

        async def bounded(number: int) -> None:
            async with gate:
                await one(session, server.url, random.Random(arguments.seed * 1_000_003 + number), wrong)
            bar.update()

        samples = []
        with tqdm(total=arguments.requests, unit="request", disable=None) as bar:
            step = max(1, arguments.requests // 20)
            for start in range(0, arguments.requests, step):
                await asyncio.gather(*(bounded(n) for n in range(start, min(start + step, arguments.requests))))
                samples.append(memory(server))
                bar.set_postfix({name: f"{mib:.0f}" for name, mib in samples[-1].items()})
        left = await idle(session, server.url)
    base, end = samples[int(len(samples) * WARM_UP)], samples[-1]
    growth = {name: end[name] - base[name] for name in base}
    print(f"{arguments.requests} requests; resident MiB after warming up {base}, at the end {end}")
    return [
        *(f"{count} times {what}" for what, count in wrong.items()),
        *([f"left in the engine: {left}"] if left else []),
        *(f"{name} grew by {mib:.1f} MiB" for name, mib in growth.items() if mib > arguments.growth),
    ]


def main() -> None:
    """Exit code 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--growth", type=float, default=16.0, help="MiB a process may grow (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", type=Path, default=MODEL)
    arguments = parser.parse_args()
    server = Server(arguments.model)
    try:
        complaints = asyncio.run(run(server, arguments)) + leave(server)
    finally:
        server.process.kill()
    print("\n".join(complaints) or "nothing is wrong")
    sys.exit(bool(complaints))


if __name__ == "__main__":
    main()
