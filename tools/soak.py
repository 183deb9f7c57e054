"""Many mixed requests (short, long, streamed, refused, abandoned), and whether everything stays as it was.

    python tools/soak.py --requests 100000

Prints, for each process, by how much resident memory grows with requests (least squares after warming up, 95 %
interval, widened where samples hang together), and descriptors, sockets, threads and shared memory before and after.
Exit code 1 if memory surely grows by more than `--growth` MiB in 100,000 requests, if anything is left (a block, a
descriptor, a thread, a segment), or if any answer has a wrong status.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import aiohttp
from served import MODEL, Server, idle, leave
from tqdm import tqdm

KINDS = {"short": 60, "bad": 14, "stream": 10, "embed": 8, "abandon": 5, "long": 3}
CONCURRENT = 64
# Before these, buffers and caches fill up; streams are remembered for a minute after their end.
WARM_UP_SHARE, WARM_UP_SECONDS = 0.2, 90.0
WARM_UP_REQUESTS = 300
KIB_IN_MIB, PER = 1024, 100_000
SAMPLES = 60
OVERLOADED = 429


def body(rng: random.Random) -> tuple[str, dict[str, object], int]:
    """A kind of request, itself, and the status that it should get."""
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    chat: dict[str, object] = {
        "messages": [{"role": "user", "content": f"What is {rng.randrange(99)} + {rng.randrange(99)}?"}],
        "temperature": rng.choice([0, 1]),
        "n": rng.choice([1, 1, 1, 2]),
    }
    match kind:
        case "bad":
            wrong = rng.choice([{"n": 0}, {"temperature": 9}, {"messages": []}, {"stop": [""]}, {"max_tokens": 10**9}])
            return kind, chat | wrong, 400
        case "embed":
            return kind, {"input": [f"text {rng.random()}"] * rng.randint(1, 4)}, 200
        case "long" | "abandon":
            return kind, chat | {"max_tokens": 100, "ignore_eos": True, "stream": kind == "abandon"}, 200
        case "stream":
            return kind, chat | {"max_tokens": 6, "stream": True, "stream_options": {"include_usage": True}}, 200
    return kind, chat | {"max_tokens": rng.randint(1, 6)}, 200


async def one(session: aiohttp.ClientSession, url: str, rng: random.Random, counts: Counter[str]) -> None:
    """Send one request, and leave some in the middle. A refusal is no fault: come back when told."""
    kind, request, expected = body(rng)
    path = "/v1/embeddings" if kind == "embed" else "/v1/chat/completions"
    while True:
        async with session.post(url + path, json=request) as response:
            if response.status != OVERLOADED:
                counts[kind if response.status == expected else f"{kind}: {response.status} not {expected}"] += 1
                if kind == "abandon":
                    await response.content.readline()
                    response.close()
                else:
                    await response.read()
                return
            counts["refused"] += 1
            retry_after = float(response.headers["retry-after"])
        await asyncio.sleep(retry_after)


@dataclass(frozen=True)
class Belongings:
    """What one process holds on to, besides memory."""

    descriptors: int
    sockets: int
    threads: int
    shared: int

    @classmethod
    def of(cls, pid: int) -> Belongings:
        """Of a living process."""
        links = [str(link.readlink()) for link in _still_there(Path(f"/proc/{pid}/fd"))]
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
        shared = {line.split()[-1] for line in maps if "/dev/shm/" in line or "/memfd:" in line}
        return cls(
            len(links),
            sum(link.startswith("socket:") for link in links),
            sum(1 for _ in Path(f"/proc/{pid}/task").iterdir()),
            len(shared),
        )


def _still_there(folder: Path) -> list[Path]:
    return [link for link in folder.iterdir() if link.is_symlink()]


def processes(server: Server) -> dict[str, int]:
    """Process ids by name."""
    (engine,), (front,) = server.children("orcinus.engine.process"), server.children("orcinus.server.front")
    return {"supervisor": server.process.pid, "front": front, "engine": engine}


def resident_mib(pid: int) -> float:
    """Of one process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / KIB_IN_MIB
    raise AssertionError("no VmRSS")


@dataclass(frozen=True)
class Slope:
    """MiB in 100,000 requests, and half of its 95 % interval."""

    mib: float
    half: float

    def __str__(self) -> str:
        return f"{self.mib:+8.2f} ± {self.half:.2f} MiB in {PER:,} requests"


def slope_of(numbers: Sequence[float], values: Sequence[float]) -> Slope:
    """Least squares. Residuals that hang together count as fewer (first-order autoregression)."""
    count = len(values)
    if count < 4:
        return Slope(math.nan, math.inf)
    mean_x, mean_y = sum(numbers) / count, sum(values) / count
    square = sum((x - mean_x) ** 2 for x in numbers)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(numbers, values, strict=True)) / square
    rest = [y - mean_y - slope * (x - mean_x) for x, y in zip(numbers, values, strict=True)]
    spread = sum(one * one for one in rest)
    together = sum(one * other for one, other in pairwise(rest)) / spread if spread else 0.0
    together = min(max(together, 0.0), 0.95)
    effective = max(3.0, count * (1 - together) / (1 + together))
    error = math.sqrt(spread / count * effective / (effective - 2) / (square / count * effective))
    # Student's t at 97.5 %, to 2 % from three degrees of freedom on.
    student = 1.96 + 2.4 / (effective - 2) + 3.6 / (effective - 2) ** 3 if effective < 60 else 2.0
    return Slope(PER * slope, PER * error * student)


@dataclass
class Record:
    """Resident memory as it went: requests ended, seconds, MiB by process."""

    begun: float = field(default_factory=time.monotonic)
    numbers: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    mib: list[dict[str, float]] = field(default_factory=list)

    def take(self, number: int, pids: dict[str, int]) -> None:
        """One sample."""
        self.numbers.append(number)
        self.seconds.append(time.monotonic() - self.begun)
        self.mib.append({name: resident_mib(pid) for name, pid in pids.items()})

    def warm(self) -> int:
        """The first sample that counts."""
        total = self.numbers[-1]
        for index, (number, seconds) in enumerate(zip(self.numbers, self.seconds, strict=True)):
            if number >= WARM_UP_SHARE * total and seconds >= WARM_UP_SECONDS:
                return index
        return len(self.numbers) // 2

    def slopes(self) -> dict[str, Slope]:
        """Of each process."""
        first = self.warm()
        return {name: slope_of(self.numbers[first:], [mib[name] for mib in self.mib[first:]]) for name in self.mib[-1]}


async def send_all(url: str, seeds: range, seed: int, counts: Counter[str], on_end: Callable[[int], None]) -> None:
    """All of them, so many at a time, over connections that are closed in the end."""
    numbers = iter(seeds)
    connector = aiohttp.TCPConnector(limit=CONCURRENT)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def client() -> None:
            for number in numbers:
                await one(session, url, random.Random(seed * 1_000_003 + number), counts)
                on_end(number)

        async with asyncio.TaskGroup() as clients:
            for _ in range(CONCURRENT):
                clients.create_task(client())


async def left_in_engine(url: str) -> str:
    """Sequences or blocks that nobody uses; nothing if there are none."""
    async with aiohttp.ClientSession() as session:
        return await idle(session, url)


async def run(server: Server, arguments: argparse.Namespace) -> list[str]:
    """What is wrong."""
    pids, counts, record = processes(server), Counter[str](), Record()
    await send_all(server.url, range(-WARM_UP_REQUESTS, 0), arguments.seed, counts, lambda number: None)
    await left_in_engine(server.url)
    await asyncio.sleep(2)
    before = {name: Belongings.of(pid) for name, pid in pids.items()}
    step = max(1, arguments.requests // SAMPLES)
    with tqdm(total=arguments.requests, unit="request", disable=None, dynamic_ncols=True) as bar:
        num_ended = 0

        def ended(number: int) -> None:
            nonlocal num_ended
            num_ended += 1
            bar.update()
            if num_ended % step == 0 or num_ended == arguments.requests:
                record.take(num_ended, pids)
                if bar.disable:
                    print(f"{num_ended:,} after {record.seconds[-1]:.0f} s: {record.mib[-1]}", flush=True)

        await send_all(server.url, range(arguments.requests), arguments.seed, counts, ended)
    left = await left_in_engine(server.url)
    await asyncio.sleep(2)
    after = {name: Belongings.of(pid) for name, pid in pids.items()}
    tell(record, counts, before, after)
    return [
        *([f"left in the engine: {left}"] if left else []),
        *(["a process was replaced"] if processes(server) != pids else []),
        *(f"{what}: {count} times" for what, count in counts.items() if " not " in what),
        *(
            f"{name} grows: {slope}"
            for name, slope in record.slopes().items()
            if slope.mib - slope.half > arguments.growth
        ),
        *(f"{name} had {before[name]} and has {after[name]}" for name in pids if is_more(before[name], after[name])),
    ]


def is_more(before: Belongings, after: Belongings) -> bool:
    """Anything grew. A few descriptors are opened at need and kept, whatever comes."""
    return (
        after.descriptors > before.descriptors + 2
        or after.sockets > before.sockets + 2
        or after.threads > before.threads + 1
        or after.shared > before.shared
    )


def tell(record: Record, counts: Counter[str], before: dict[str, Belongings], after: dict[str, Belongings]) -> None:
    """For people."""
    first, kinds = record.warm(), dict(counts.most_common())
    print(f"{int(record.numbers[-1]):,} requests in {record.seconds[-1]:.0f} s: {kinds}")
    print(f"memory counts from request {int(record.numbers[first]):,} (second {record.seconds[first]:.0f})")
    for name, slope in record.slopes().items():
        print(f"{name:<11} {record.mib[first][name]:8.1f} MiB, then {record.mib[-1][name]:8.1f} {slope}")
        print(f"{'':<11} {before[name]}\n{'':<11} {after[name]}")


def main() -> None:
    """Exit code 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument(
        "--growth", type=float, default=16.0, help="MiB a process may grow in 100,000 requests (%(default)s)"
    )
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
