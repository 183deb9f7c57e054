"""Kills, stops, cut links and disconnects at random moments under load, and a checker of what every client saw.

    python tools/faults.py --streams 3000 --faults 300 --seed 1
    python tools/faults.py --streams 1000 --faults 100 --serve "--tensor-parallel-size 2 --pipeline-parallel-size 2"
    python tools/faults.py --streams 300 --faults 20 --how cut --serve "--pipeline-parallel-size 2"

Starts `orcinus serve` for real. Each kind of request is answered once undisturbed; then thousands of streams run while
the engine or one of its workers is killed (SIGKILL, SIGSEGV) and stopped (SIGSTOP), and clients hang up in the middle
and resume. Every history must equal the undisturbed answer: nothing lost, nothing twice, no other token, exactly one
end of each choice. Afterwards nothing may be left: no sequence, no block, no descriptor, no process, no file.

Where links are cut (`--how cut`), the workers live on a Ray cluster of three hosts, which are network namespaces: for
some seconds nothing that one of two hosts sends to the other arrives, or both (root, iproute2, the extra ray).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import namespaces
from histories import History
from namespaces import Host
from ray_cluster import ray_cluster
from served import MODEL, WORKERS, Server, beneath, idle, leave
from tqdm import tqdm

NUMBERS = {"kill": signal.SIGKILL, "crash": signal.SIGSEGV, "stop": signal.SIGSTOP}
KINDS = ("kill", "kill", "crash", "stop", "hang_up", "hang_up", "hang_up", "hang_up")
ON_RAY = ("--executor", "ray", "--ray-spread", "spread")
CONCURRENT = 24


def requests(rng: random.Random, count: int) -> list[dict[str, object]]:
    """Distinct requests over everything that resumption must carry on."""
    shapes: list[dict[str, object]] = [
        {"temperature": 0},
        {"temperature": 0.9, "seed": 7},
        {"temperature": 1.0, "seed": 8, "top_p": 0.9, "top_k": 30, "n": 3},
        {"temperature": 0.8, "seed": 9, "presence_penalty": 0.6, "frequency_penalty": 0.4, "repetition_penalty": 1.1},
        {"temperature": 0.7, "seed": 10, "stop": ["the", "a fox"], "n": 2},
        {"temperature": 0.5, "seed": 11, "logprobs": True, "top_logprobs": 2},
        {"temperature": 1.2, "seed": 12, "min_p": 0.05, "logit_bias": {"40": 1.5}, "min_tokens": 20},
        {"use_beam_search": True, "n": 3, "logprobs": True},
    ]
    asked = (
        "Tell me a story about a fox.",
        "Count from 3 to 40.",
        "What is 12 + 7?",
        "Sort 31, 7, 12.",
        "Who are you?",
    )
    return [
        {
            "messages": [{"role": "user", "content": rng.choice(asked)}],
            "max_tokens": rng.choice([20, 80, 200]),
            "ignore_eos": rng.random() < 0.7,
            "stream": True,
            **rng.choice(shapes),
        }
        for _ in range(count)
    ]


class Client:
    """Streams, and hangs up when it is told to."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self.hang_ups: set[asyncio.Task[None]] = set()

    async def run(self, request: dict[str, object]) -> History:
        """One response from its beginning to its end, over as many connections as it takes."""
        history = History()
        while not history.is_done and not history.trouble:
            reading = asyncio.create_task(self._read(history, request))
            self.hang_ups.add(reading)
            try:
                await reading
            except asyncio.CancelledError:
                continue
            except aiohttp.ClientError as error:
                history.trouble = f"the connection broke: {error}"
            finally:
                self.hang_ups.discard(reading)
        return history

    async def _read(self, history: History, request: dict[str, object]) -> None:
        if history.ids:
            stream = history.ids[-1].split(":")[0]
            asking = self._session.get(f"{self._url}/v1/streams/{stream}", headers={"last-event-id": history.ids[-1]})
        else:
            asking = self._session.post(f"{self._url}/v1/chat/completions", json=request)
        async with asking as response:
            if response.status != 200:
                history.trouble = f"status {response.status}: {(await response.text())[:200]}"
                return
            event_id = ""
            async for raw in response.content:
                line = raw.decode().rstrip("\n")
                if line.startswith("id: "):
                    event_id = line[4:]
                elif line == "data: [DONE]":
                    history.is_done = True
                elif line.startswith("data: "):
                    history.take(event_id, line[6:])


def hurt(server: Server, number: signal.Signals, rng: random.Random) -> bool:
    """Send a signal to the engine or one of its workers, if they are there at the moment.

    Crashes come from work, so an engine that is still starting is only killed and stopped.
    """
    engines = server.children("orcinus.engine.process")
    # Those of a Ray cluster are ours, not the engine's.
    workers = beneath(os.getpid(), WORKERS) if engines else []
    if not engines or (number is signal.SIGSEGV and not server.is_ready()):
        return False
    try:
        os.kill(rng.choice([*engines, *workers]), number)
    except ProcessLookupError:
        return False
    return True


async def cut(hosts: Sequence[Host], rng: random.Random) -> None:
    """Between two of them, one way or both, for some seconds: some cuts are over before anybody could notice."""
    one, other = rng.sample(hosts, 2)
    ways = [(one, other), (other, one)][: rng.choice([1, 2])]
    for sender, receiver in ways:
        sender.cut_off(receiver)
    try:
        await asyncio.sleep(rng.uniform(1, 15))
    finally:
        for sender, receiver in ways:
            sender.heal(receiver)


@dataclass(frozen=True)
class Scene:
    """What can be hurt."""

    server: Server
    hosts: Sequence[Host]
    client: Client


async def inject(scene: Scene, rng: random.Random, kinds: Sequence[str], count: int, injected: Counter[str]) -> None:
    """Faults at random moments until there were so many."""
    while injected.total() < count:
        await asyncio.sleep(rng.uniform(0.05, 0.9))
        kind = rng.choice(kinds)
        match kind:
            case "hang_up":
                some = [task for task in scene.client.hang_ups if rng.random() < 0.3]
                for task in some:
                    task.cancel()
                injected[kind] += len(some)
            case "kill" | "crash" | "stop" | "cut":
                if kind == "cut":
                    await cut(scene.hosts, rng)
                injected[kind] += kind == "cut" or hurt(scene.server, NUMBERS[kind], rng)
                # Let it come back: an engine that isn't there can't be hurt, one that never gets to work serves nobody.
                await asyncio.sleep(rng.uniform(0.5, 2.5))
                if rng.random() < 0.7:
                    await ready(scene.server)


async def ready(server: Server) -> None:
    """An engine takes requests; or none has for long, and who waits for it will complain."""
    for _ in range(200):
        if await asyncio.to_thread(server.is_ready):
            return
        await asyncio.sleep(0.5)


async def run(server: Server, hosts: Sequence[Host], arguments: argparse.Namespace) -> list[str]:
    """The complaints."""
    rng = random.Random(arguments.seed)
    timeout = aiohttp.ClientTimeout(total=None, sock_read=600)
    async with aiohttp.ClientSession(
        timeout=timeout, connector=aiohttp.TCPConnector(limit=0, force_close=True)
    ) as session:
        client = Client(session, server.url)
        kinds = requests(rng, arguments.kinds)
        truths = [history.answers() for history in [await client.run(request) for request in kinds]]
        await idle(session, server.url)
        before = server.descriptors()
        injected: Counter[str] = Counter()
        injecting = asyncio.create_task(
            inject(Scene(server, hosts, client), rng, arguments.how, arguments.faults, injected)
        )
        complaints: list[str] = []
        gate = asyncio.Semaphore(CONCURRENT)
        with tqdm(total=arguments.streams, unit="stream", disable=None) as bar:

            async def one(number: int) -> None:
                async with gate:
                    kind = random.Random(arguments.seed * 1_000_003 + number).randrange(len(kinds))
                    history = await client.run(kinds[kind])
                if complaint := history.complaint(truths[kind]):
                    complaints.append(f"stream {number} (request {kind}): {complaint}")
                bar.update()
                bar.set_postfix(faults=injected.total(), bad=len(complaints))

            number = 0
            # As many as asked for, and for as long as faults are still to come.
            while number < arguments.streams or not injecting.done():
                await asyncio.gather(*(one(number + i) for i in range(50)))
                number += 50
        await injecting
        complaints += [f"the engine is busy: {left}" for left in [await idle(session, server.url)] if left]
        after = server.descriptors()
        # A second process for long texts may have been started since: a socket and a descriptor of the process.
        if after > before + 2 + 2:
            complaints.append(f"{after} open descriptors, {before} before")
        print(f"{number} streams, faults: {dict(injected)}, ends: {dict(server.ends())}, complaints: {len(complaints)}")
    return complaints


def main() -> None:
    """Exit code 1 if a single stream was not what it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=3000)
    parser.add_argument("--faults", type=int, default=300)
    parser.add_argument("--kinds", type=int, default=40, help="distinct requests (%(default)s)")
    parser.add_argument("--how", nargs="+", choices=sorted({*KINDS, "cut"}), default=KINDS, help="kinds of faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--serve", type=shlex.split, default=[], help="more options of orcinus serve")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        hosts = stack.enter_context(namespaces.hosts(3)) if "cut" in arguments.how else []
        if hosts:
            environment = stack.enter_context(ray_cluster(hosts=hosts, rooms=(0, 2, 2)))
            hosts[0].enter()
            server = Server(arguments.model, [*arguments.serve, *ON_RAY], environment)
        else:
            server = Server(arguments.model, arguments.serve)
        sys.exit(bool(complaints_of(server, hosts, arguments)))


def complaints_of(server: Server, hosts: Sequence[Host], arguments: argparse.Namespace) -> list[str]:
    """All of them, printed."""
    complaints = ["the run was cut short"]
    try:
        complaints = asyncio.run(run(server, hosts, arguments))
        complaints += leave(server)
    except aiohttp.ClientError as error:
        complaints.append(f"the server is gone: {error}")
    finally:
        server.process.kill()
    for complaint in complaints[:50]:
        print(complaint)
    if complaints:
        print("the server said last:", server.log()[-3000:], sep="\n")
    return complaints


if __name__ == "__main__":
    main()
