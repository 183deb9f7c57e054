"""Random and damaged HTTP requests against a running server, and a check of every answer.

    python tools/fuzz_http.py --requests 100000 --seed 1

Requests are made from the server's own OpenAPI document, then changed: values, JSON, bytes, headers, the wire. No
answer may be a 5xx (but a deliberate 503, or the 504 that a timeout header asks for), be refused in another shape than
OpenAI's, tell anything of the inside, echo more than 100 characters, or take more than 5 s; /health is asked all the
while by another process; and at the end nothing may be left in the engine. Exit code 1 if anything is wrong; each
complaint ends with what brings the request back: `--seed S --only N`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any
from urllib.parse import urlsplit

from fuzzing.connection import Answer, Connection
from fuzzing.health import HealthWatch
from fuzzing.judge import complaint
from fuzzing.requests import Fuzzer, Kind, Shot
from served import MODEL, Server, leave
from tqdm import tqdm

MAX_LOG_CHARACTERS = 20_000
SMALL_SERVER = ("--kv-cache-gib", "0.05", "--max-batch-size", "32", "--max-model-len", "96")


class FuzzedServer(Server):
    """A small one: the longest answer is short, whatever was asked."""

    def __init__(self, options: list[str]) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (as long as the server lives)
        command = [sys.executable, "-m", "orcinus.cli", "serve", str(MODEL), "--port", "0", "--threads", "1"]
        self.process = subprocess.Popen([*command, *SMALL_SERVER, *options], stderr=self._log, stdout=self._log)
        self.url = self._wait_for_url()


@dataclass
class Tally:
    """What came of all requests."""

    statuses: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    seconds: list[float] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, -1)
    complaints: list[str] = field(default_factory=list)

    def take(self, shot: Shot, answer: Answer, arguments: argparse.Namespace) -> None:
        """One more."""
        self.statuses[shot.kind][answer.status] += 1
        if shot.is_framed and shot.kind is not Kind.HANG_UP:
            self.seconds.append(answer.seconds)
            self.slowest = max(self.slowest, (answer.seconds, shot.number))
        if wrong := complaint(shot, answer, arguments.max_seconds):
            self.complaints.append(
                f"{wrong} ({shot.kind}, {shot.method} {shot.path}) --seed {arguments.seed} --only {shot.number}"
            )


async def fuzz(fuzzer: Fuzzer, arguments: argparse.Namespace, url: str) -> Tally:
    """All requests, over so many connections at a time."""
    host, port = urlsplit(url).hostname or "", urlsplit(url).port or 80
    tally, numbers = Tally(), iter(range(arguments.first, arguments.first + arguments.requests))
    with tqdm(total=arguments.requests, unit="request", disable=None) as bar:

        async def client() -> None:
            connection = Connection(host, port)
            for number in numbers:
                shot = fuzzer.shot(number)
                tally.take(shot, await connection.ask(shot), arguments)
                bar.update()
                bar.set_postfix(wrong=len(tally.complaints), refresh=False)
            connection.close()

        await asyncio.gather(*(client() for _ in range(arguments.connections)))
    return tally


def resident_mib(pids: list[int]) -> float:
    """Of all these processes together."""
    texts = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return sum(int(found[1]) for text in texts if (found := re.search(r"VmRSS:\s+(\d+)", text))) / 1024


def left_in_engine(url: str) -> str:
    """Wait until /load says that nothing is left; what it says if that takes too long."""
    deadline = time.monotonic() + 30
    while True:
        with urllib.request.urlopen(f"{url}/load", timeout=10) as response:
            load: dict[str, float] = json.load(response)
        if not any(load.values()):
            return ""
        if time.monotonic() > deadline:
            return f"left in the engine: {load}"
        time.sleep(0.2)


def check(fuzzer: Fuzzer, url: str, server: FuzzedServer | None, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all, and say what came of it."""
    pids = [] if server is None else [server.process.pid, *server.children("orcinus.")]
    before, watch, started_at = resident_mib(pids), HealthWatch(url), time.monotonic()
    tally = asyncio.run(fuzz(fuzzer, arguments, url))
    wall, health = time.monotonic() - started_at, watch.end()
    complaints = [*tally.complaints, *filter(None, [left_in_engine(url)])]
    if health["p99_ms"] > arguments.max_health_ms or health["bad"]:
        complaints.append(f"/health: {health}")
    if server is not None and pids != [server.process.pid, *server.children("orcinus.")]:
        complaints.append("a process of the server was replaced")
    cuts = quantiles(tally.seconds, n=1000, method="inclusive")
    return {
        "requests": arguments.requests,
        "seed": arguments.seed,
        "wall_s": wall,
        "requests_per_s": arguments.requests / wall,
        "statuses": {kind: dict(sorted(counts.items())) for kind, counts in sorted(tally.statuses.items())},
        "answer_ms": {"p50": 1e3 * cuts[499], "p99": 1e3 * cuts[989], "p99.9": 1e3 * cuts[998]},
        "slowest": {"seconds": tally.slowest[0], "number": tally.slowest[1]},
        "health": health,
        "resident_mib": {"before": before, "after": resident_mib([p for p in pids if Path(f"/proc/{p}").exists()])},
        "complaints": complaints,
    }


def bring_back(fuzzer: Fuzzer, url: str, number: int, max_seconds: float) -> str | None:
    """One request and its answer, shown; what is wrong with it, if anything is."""
    shot = fuzzer.shot(number)
    print(f"{shot.kind}: {shot.wire!r}")
    answer = asyncio.run(Connection(urlsplit(url).hostname or "", urlsplit(url).port or 80).ask(shot))
    print(f"{answer.status} after {answer.seconds:.3f} s {answer.headers}\n{bytes(answer.body)!r} {answer.trouble}")
    return complaint(shot, answer, max_seconds) or None


def show(report: dict[str, Any]) -> None:
    """A table for people."""
    for kind, counts in report["statuses"].items():
        print(f"{kind:12} {sum(counts.values()):8}  " + "  ".join(f"{status}: {n}" for status, n in counts.items()))
    for name in ("answer_ms", "health", "resident_mib", "slowest"):
        print(f"{name:12} " + "  ".join(f"{key} {value:.1f}" for key, value in report[name].items()))
    print(f"{report['requests']} requests in {report['wall_s']:.0f} s, {report['requests_per_s']:.0f} a second")


def main() -> None:
    """Exit code 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first request (%(default)s)")
    parser.add_argument("--only", type=int, help="send only the request of this number, and show what comes")
    parser.add_argument("--connections", type=int, default=24, help="at a time (%(default)s)")
    parser.add_argument("--max-seconds", type=float, default=5.0, help="of an answer (%(default)s)")
    parser.add_argument("--max-health-ms", type=float, default=100.0, help="99th percentile of /health (%(default)s)")
    parser.add_argument("--url", help="of a running server; without it one is started")
    parser.add_argument("--json", type=Path, help="where the report goes")
    arguments, options = parser.parse_known_args()
    server = None if arguments.url else FuzzedServer(options)
    try:
        url = arguments.url or server.url
        with urllib.request.urlopen(f"{url}/openapi.json", timeout=30) as response:
            fuzzer = Fuzzer(json.load(response), urlsplit(url).netloc, arguments.seed)
        if arguments.only is not None:
            sys.exit(bring_back(fuzzer, url, arguments.only, arguments.max_seconds))
        report = check(fuzzer, url, server, arguments)
        if server is not None:
            report["complaints"] += leave(server)
            report["log"] = server.log()[-MAX_LOG_CHARACTERS:]
    finally:
        if server is not None:
            server.process.kill()
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    show(report)
    print("\n".join(report["complaints"][:50]) or "nothing is wrong")
    sys.exit(bool(report["complaints"]))


if __name__ == "__main__":
    main()
