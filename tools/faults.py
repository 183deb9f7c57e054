"""Kills, stops and disconnects at random moments under load, and a checker of what every client saw.

    python tools/faults.py --streams 3000 --faults 300 --seed 1
    python tools/faults.py --streams 1000 --faults 100 --serve "--tensor-parallel-size 2 --pipeline-parallel-size 2"

Starts `orcinus serve` for real. Each kind of request is answered once undisturbed; then thousands of streams run while
the engine or one of its workers is killed (SIGKILL, SIGSEGV) and stopped (SIGSTOP), and clients hang up in the middle
and resume. Every history must equal the undisturbed answer: nothing lost, nothing twice, no other token, exactly one
end of each choice. Afterwards nothing may be left: no sequence, no block, no descriptor, no process, no file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from tqdm import tqdm

MODEL = Path(__file__).resolve().parent.parent / "models" / "orcinus-tiny"
KINDS = ("kill", "kill", "crash", "stop", "hang_up", "hang_up", "hang_up", "hang_up")
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


@dataclass
class History:
    """What one client saw of one response, over all its connections."""

    ids: list[str] = field(default_factory=list)
    choices: dict[int, list[object]] = field(default_factory=dict)
    ends: Counter[int] = field(default_factory=Counter)
    is_done: bool = False
    trouble: str = ""

    def take(self, event_id: str, data: str) -> None:
        """One event."""
        event = json.loads(data)
        if "error" in event:
            self.trouble = event["error"]["message"]
            return
        self.ids.append(event_id)
        for choice in event["choices"]:
            pieces = self.choices.setdefault(choice["index"], [])
            pieces.append(choice["delta"].get("content") or "")
            if choice["logprobs"]:
                pieces.append([(one["token"], one["logprob"]) for one in choice["logprobs"]["content"]])
            if choice["finish_reason"]:
                self.ends[choice["index"]] += 1
                pieces.append({"end": choice["finish_reason"]})

    def answers(self) -> dict[int, tuple[str, list[object], list[object]]]:
        """Text, log-probabilities and end of each choice, however they were cut into events."""
        return {
            index: (
                "".join(piece for piece in pieces if isinstance(piece, str)),
                [entry for piece in pieces if isinstance(piece, list) for entry in piece],
                [piece["end"] for piece in pieces if isinstance(piece, dict)],
            )
            for index, pieces in self.choices.items()
        }

    def complaint(self, truth: dict[int, tuple[str, list[object], list[object]]]) -> str:
        """What is wrong with it; empty if nothing is."""
        if self.trouble:
            return f"error event: {self.trouble}"
        if not self.is_done:
            return "lost: no [DONE]"
        if len(set(self.ids)) != len(self.ids):
            return "an event came twice"
        if any(count != 1 for count in self.ends.values()) or set(self.ends) != set(truth):
            return f"ends: {dict(self.ends)}"
        return "" if self.answers() == truth else f"other tokens than undisturbed: {difference(self.answers(), truth)}"


def difference(found: dict[int, tuple[str, list[object], list[object]]], truth: object) -> str:
    """Where they part."""
    assert isinstance(truth, dict)
    for index, (text, logprobs, ends) in sorted(found.items()):
        expected = truth.get(index, ("", [], []))
        if text != expected[0]:
            pairs = enumerate(zip(text, expected[0], strict=False))
            at = next((i for i, (a, b) in pairs if a != b), min(len(text), len(expected[0])))
            return (
                f"choice {index} at character {at}: {text[at - 20 : at + 20]!r}, not {expected[0][at - 20 : at + 20]!r}"
            )
        if logprobs != expected[1]:
            at = next(i for i, (a, b) in enumerate(zip(logprobs, expected[1], strict=False)) if a != b)
            return f"choice {index}: logprob {at} is {logprobs[at]}, not {expected[1][at]}"
        if ends != expected[2]:
            return f"choice {index} ends with {ends}, not {expected[2]}"
    return "a choice is missing"


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


class Server:
    """`orcinus serve` as a process, and what belongs to it."""

    def __init__(self, model: Path, options: Sequence[str] = ()) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (as long as the server lives)
        command = [sys.executable, "-m", "orcinus.cli", "serve", str(model), "--port", "0", "--threads", "1"]
        usual = {"--kv-cache-gib": "0.05", "--max-batch-size": "32", "--max-queue-seconds": "600"}
        command += [word for pair in usual.items() if pair[0] not in options for word in pair]
        self.process = subprocess.Popen([*command, *options], stderr=self._log, stdout=self._log)
        self.url = self._wait_for_url()

    def _wait_for_url(self) -> str:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(r"Serving on (\S+)", self.log()):
                return found[1]
            time.sleep(0.05)
        raise SystemExit(f"the server didn't start:\n{self.log()}")

    def log(self) -> str:
        """Everything that it said."""
        self._log.seek(0)
        return self._log.read()

    def is_ready(self) -> bool:
        """An engine takes requests."""
        try:
            with urllib.request.urlopen(f"{self.url}/ready", timeout=1):
                return True
        except OSError:
            return False

    def children(self, module: str, parent: int | None = None) -> list[int]:
        """Its processes that run `module`; or those of another parent."""
        found = []
        try:
            for task in Path(f"/proc/{parent or self.process.pid}/task").iterdir():
                for pid in (task / "children").read_text().split():
                    if module in Path(f"/proc/{pid}/cmdline").read_text():
                        found.append(int(pid))
        except OSError:
            # One of them has just died.
            return found
        return found

    def descriptors(self) -> int:
        """Open in the supervisor and the front ends."""
        pids = [self.process.pid, *self.children("orcinus.server.front")]
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)

    def hurt(self, number: signal.Signals, rng: random.Random) -> bool:
        """Send a signal to the engine or one of its workers, if they are there at the moment.

        Crashes come from work, so an engine that is still starting is only killed and stopped.
        """
        engines = self.children("orcinus.engine.process")
        workers = [worker for pid in engines for worker in self.children("orcinus.executor.worker_process", pid)]
        if not engines or (number is signal.SIGSEGV and not self.is_ready()):
            return False
        try:
            os.kill(rng.choice([*engines, *workers]), number)
        except ProcessLookupError:
            return False
        return True


async def inject(
    server: Server, client: Client, rng: random.Random, kinds: Sequence[str], count: int, injected: Counter[str]
) -> None:
    """Faults at random moments until there were so many."""
    while injected.total() < count:
        await asyncio.sleep(rng.uniform(0.05, 0.9))
        kind = rng.choice(kinds)
        match kind:
            case "hang_up":
                some = [task for task in client.hang_ups if rng.random() < 0.3]
                for task in some:
                    task.cancel()
                injected[kind] += len(some)
            case "kill" | "crash" | "stop":
                number = {"kill": signal.SIGKILL, "crash": signal.SIGSEGV, "stop": signal.SIGSTOP}[kind]
                injected[kind] += server.hurt(number, rng)
                # Let it come back: an engine that isn't there can't be hurt, one that never gets to work serves nobody.
                await asyncio.sleep(rng.uniform(0.5, 2.5))
                if rng.random() < 0.7:
                    await ready(server)


async def ready(server: Server) -> None:
    """An engine takes requests; or none has for long, and who waits for it will complain."""
    for _ in range(200):
        if await asyncio.to_thread(server.is_ready):
            return
        await asyncio.sleep(0.5)


async def run(server: Server, arguments: argparse.Namespace) -> list[str]:
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
        injecting = asyncio.create_task(inject(server, client, rng, arguments.how, arguments.faults, injected))
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
        print(f"{number} streams, faults: {dict(injected)}, complaints: {len(complaints)}")
    return complaints


async def idle(session: aiohttp.ClientSession, url: str) -> str:
    """Wait until the engine has nothing left; what it has if that takes too long."""
    gauges = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    for _ in range(200):
        async with session.get(f"{url}/metrics") as response:
            text = await response.text()
        values = {name: float(re.search(rf"^orcinus:{name}{{.*}} (\S+)$", text, re.MULTILINE)[1]) for name in gauges}  # type: ignore[index]
        if not any(values.values()):
            return ""
        await asyncio.sleep(0.1)
    return str(values)


def leave(server: Server) -> list[str]:
    """SIGTERM; complaints about what is left behind."""
    pids = [*server.children("orcinus.engine.process"), *server.children("orcinus.server.front")]
    folder = {
        line.split()[-1]
        for pid in pids
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
        if "/orcinus-" in line
    }
    server.process.terminate()
    code = server.process.wait(60)
    left = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    files = [path for path in folder if Path(path).exists()]
    return [
        *([f"exit code {code}"] if code else []),
        *([f"processes left: {left}"] if left else []),
        *([f"files left: {files}"] if files else []),
    ]


def main() -> None:
    """Exit code 1 if a single stream was not what it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=3000)
    parser.add_argument("--faults", type=int, default=300)
    parser.add_argument("--kinds", type=int, default=40, help="distinct requests (%(default)s)")
    parser.add_argument("--how", nargs="+", choices=sorted(set(KINDS)), default=KINDS, help="kinds of faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--serve", type=shlex.split, default=[], help="more options of orcinus serve")
    arguments = parser.parse_args()
    server = Server(arguments.model, arguments.serve)
    complaints = ["the run was cut short"]
    try:
        complaints = asyncio.run(run(server, arguments))
        complaints += leave(server)
    except aiohttp.ClientError as error:
        complaints.append(f"the server is gone: {error}")
    finally:
        server.process.kill()
    for complaint in complaints[:50]:
        print(complaint)
    if complaints:
        print("the server said last:", server.log()[-3000:], sep="\n")
    sys.exit(bool(complaints))


if __name__ == "__main__":
    main()
