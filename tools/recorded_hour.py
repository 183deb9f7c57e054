"""Records an hour of mixed traffic with faults, and replays it: every decision must be the recorded one.

    python tools/recorded_hour.py --minutes 60 --faults 10 --out hour
    python tools/recorded_hour.py --minutes 5 --serve "--policy mlfq --pipeline-parallel-size 2"

Starts `orcinus serve --record` for real. Requests of all kinds come in bursts: chats that go on, prompts that begin
alike, several answers, searches, log-probabilities, stop strings, vectors, priorities, tenants, deadlines; some clients
hang up. Meanwhile the engine is killed (SIGKILL) and stopped (SIGSTOP). Each engine that lived has written a recording;
all of them are replayed, and with `--what-if` the longest goes through the twin. Exit code 1 if a decision differs.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import aiohttp
from faults import MODEL, leave, ready
from served import Server
from tqdm import tqdm

TENANTS = ("key-of-anna", "key-of-ben", "key-of-cleo")
# Answers that a server under faults and deadlines may give.
EXPECTED = {200, 429, 503, 504}
# A pool that bursts exhaust, so that sequences are preempted and swapped.
TIGHT = "--kv-cache-gib 0.008 --swap-space-gib 0.02 --lookahead 1 --policy priority --max-queue-seconds 30"
SYSTEM = (
    "You are a patient teller of stories about animals that live in a forest near the sea. ",
    "Answer as shortly as you can. Numbers are written as digits, and lists with commas between. ",
)
ASKED = ("Tell me a story about a fox.", "Count from 3 to 40.", "What is 12 + 7?", "Sort 31, 7, 12.", "Who are you?")
SHAPES: tuple[dict[str, object], ...] = (
    {"temperature": 0},
    {"temperature": 0.9},
    {"temperature": 1.0, "n": 3, "top_p": 0.9},
    {"temperature": 0.8, "stop": ["the", "a fox"], "n": 2},
    {"temperature": 0.5, "seed": 11},
    {"use_beam_search": True, "n": 3},
)


class Traffic:
    """Clients of all kinds. What they ask is drawn from one seed; when answers come isn't."""

    def __init__(self, session: aiohttp.ClientSession, url: str, seed: int) -> None:
        self._session = session
        self._url = url
        self._rng = random.Random(seed)
        self._chats: list[list[dict[str, str]]] = []
        self.statuses: Counter[str] = Counter()

    def _chat(self) -> list[dict[str, str]]:
        """A new conversation, or one that goes on."""
        rng = self._rng
        if self._chats and rng.random() < 0.4:
            messages = self._chats.pop(rng.randrange(len(self._chats)))
        else:
            messages = [{"role": "system", "content": rng.choice(SYSTEM) * rng.randint(1, 6)}]
        return [*messages, {"role": "user", "content": rng.choice(ASKED)}]

    def _draw(self) -> tuple[str, dict[str, object], dict[str, str]]:
        """A path, a body and its headers."""
        rng = self._rng
        headers = {"authorization": f"Bearer {rng.choice(TENANTS)}"}
        if rng.random() < 0.1:
            return "/v1/embeddings", {"input": [f"{rng.choice(ASKED)} {rng.random()}"] * rng.randint(1, 3)}, headers
        if rng.random() < 0.1:
            headers["x-request-timeout"] = str(rng.choice([0.2, 1, 5, 20]))
        body: dict[str, object] = {
            "max_tokens": rng.choice([5, 20, 80, 200]),
            "ignore_eos": rng.random() < 0.5,
            "priority": rng.choice([0, 0, 0, -1, 3]),
            "stream": rng.random() < 0.6,
            **rng.choice(SHAPES),
        }
        if rng.random() < 0.3:
            return "/v1/completions", body | {"prompt": rng.choice(SYSTEM), "logprobs": rng.choice([None, 2])}, headers
        wants_logprobs = {"logprobs": True, "top_logprobs": 2} if rng.random() < 0.2 else {}
        return "/v1/chat/completions", body | {"messages": self._chat()} | wants_logprobs, headers

    async def one(self) -> None:
        """Ask, and read the answer to its end unless one loses patience before."""
        path, body, headers = self._draw()
        patience = self._rng.uniform(0.01, 1.5) if self._rng.random() < 0.1 else None
        try:
            async with asyncio.timeout(patience):
                status, text = await self._ask(path, body, headers)
        except TimeoutError:
            self.statuses["hung up"] += 1
            return
        except aiohttp.ClientError as error:
            self.statuses[f"broken: {type(error).__name__}"] += 1
            return
        self.statuses[str(status) if status in EXPECTED else f"{status}: {text[:200]}"] += 1
        if status == 200 and "messages" in body and not body["stream"]:
            self._goes_on(body, text)

    async def _ask(self, path: str, body: dict[str, object], headers: dict[str, str]) -> tuple[int, str]:
        async with self._session.post(self._url + path, json=body, headers=headers) as response:
            return response.status, await response.text()

    def _goes_on(self, body: dict[str, object], text: str) -> None:
        messages = body["messages"]
        assert isinstance(messages, list)
        answer = json.loads(text)["choices"][0]["message"]["content"] or "-"
        if len(messages) < 8:
            self._chats.append([*messages, {"role": "assistant", "content": answer}])

    async def flow(self, seconds: float, rate: float) -> None:
        """Bursts, and quiet between them; until all have been answered."""
        end = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            with tqdm(total=round(seconds), unit="s", disable=None) as bar:
                while (left := end - time.monotonic()) > 0:
                    burst = self._rng.choice([1, 1, 1, 2, 3, 40])
                    for _ in range(burst):
                        group.create_task(self.one())
                    await asyncio.sleep(min(left, burst * self._rng.expovariate(rate)))
                    bar.update(round(seconds - left) - bar.n)
                    bar.set_postfix(self.statuses)


async def hurt(server: Server, rng: random.Random, seconds: float, count: int) -> Counter[str]:
    """Kill and stop the engine at random moments."""
    moments = sorted(rng.uniform(0, seconds) for _ in range(count))
    injected: Counter[str] = Counter()
    begun = time.monotonic()
    for moment, number in zip(moments, itertools.cycle([signal.SIGKILL, signal.SIGSTOP]), strict=False):
        await asyncio.sleep(max(0.0, begun + moment - time.monotonic()))
        await ready(server)
        injected[number.name] += server.hurt(number, rng)
        # A stopped engine is only noticed, and killed, after a while.
        await asyncio.sleep(2.0)
    return injected


async def record(server: Server, arguments: argparse.Namespace) -> None:
    """The hour."""
    seconds = arguments.minutes * 60
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        traffic = Traffic(session, server.url, arguments.seed)
        rng = random.Random(arguments.seed)
        _, injected = await asyncio.gather(
            traffic.flow(seconds, arguments.rate), hurt(server, rng, seconds, arguments.faults)
        )
    print(f"answers: {dict(traffic.statuses.most_common())}\nfaults: {dict(injected)}")
    strange = [status for status in traffic.statuses if status not in {*map(str, EXPECTED), "hung up"}]
    if strange:
        raise SystemExit(f"answers that nobody should get: {strange}")


def replay(recordings: list[Path], what_if: str) -> bool:
    """All of them; whether every decision was the recorded one."""
    command = [sys.executable, "-m", "orcinus.cli", "replay"]
    codes = []
    for recording in recordings:
        print(f"{recording.name}: ", end="", flush=True)
        codes.append(subprocess.run([*command, str(recording)], check=False).returncode)
    longest = max(recordings, key=lambda recording: recording.stat().st_size)
    if what_if:
        print(f"{longest.name}, what if {what_if}:", flush=True)
        codes.append(subprocess.run([*command, str(longest), "--what-if", what_if], check=False).returncode)
    return not any(codes)


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=float, default=1.5, help="requests a second (%(default)s)")
    parser.add_argument("--faults", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--serve", type=shlex.split, default=shlex.split(TIGHT), help="options of orcinus serve")
    parser.add_argument("--what-if", default="policy=mlfq")
    parser.add_argument("--out", type=Path, default=Path("hour"), help="a new folder for the recordings")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True)
    keys = [word for tenant in TENANTS for word in ("--api-key", tenant)]
    server = Server(arguments.model, ["--record", str(arguments.out / "recording.jsonl"), *keys, *arguments.serve])
    try:
        asyncio.run(record(server, arguments))
        complaints = leave(server)
    finally:
        server.process.kill()
    print(*complaints, sep="\n")
    recordings = sorted(arguments.out.iterdir(), key=lambda path: path.stat().st_mtime)
    return int(not replay(recordings, arguments.what_if) or bool(complaints))


if __name__ == "__main__":
    sys.exit(main())
