"""The server that is put under load, and what can be seen of it from outside while it is."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import aiohttp

# A part of each process' command line.
_MODULES = {"front": "orcinus.server.front", "engine": "engine."}
_PACED = """
import sys
from pathlib import Path
from orcinus.server.run import ServeSettings, serve
bound = {"max_queue_seconds": float(sys.argv[3])} if sys.argv[3] else {}
settings = ServeSettings(model=Path(sys.argv[1]), port=0, **bound)
serve(settings, lambda known: [sys.executable, sys.argv[2], "--slowness", sys.argv[4]], on_progress=lambda line: None,
      on_ready=lambda description, url: print("Serving on", url, flush=True))
"""


def real_server(model: Path, max_queue_seconds: float | None, options: Sequence[str]) -> list[str]:
    """The command that serves `model` on one thread."""
    bound = [] if max_queue_seconds is None else ["--max-queue-seconds", str(max_queue_seconds)]
    start = [sys.executable, "-m", "orcinus.cli", "serve", str(model)]
    return [*start, "--port", "0", "--threads", "1", *bound, *options]


def paced_server(model: Path, max_queue_seconds: float | None, slowness: float) -> list[str]:
    """The command that serves with `paced_engine.py`; of `model`, the tokenizer is read."""
    bound = "" if max_queue_seconds is None else str(max_queue_seconds)
    engine = Path(__file__).with_name("paced_engine.py")
    return [sys.executable, "-c", _PACED, str(model), str(engine), bound, str(slowness)]


class ServerUnderLoad:
    """A server as processes.

    Args:
        command: starts it; it says where it serves.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (as long as the server lives)
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        self.url = self._wait_for_url()
        self._pids = {"supervisor": self._process.pid} | {name: self._child(part) for name, part in _MODULES.items()}

    def _wait_for_url(self) -> str:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self._process.poll() is None:
            if found := re.search(r"Serving on (\S+)", self.log()):
                return found[1]
            time.sleep(0.05)
        raise SystemExit(f"the server didn't start:\n{self.log()}")

    def _child(self, module: str) -> int:
        for task in Path(f"/proc/{self._process.pid}/task").iterdir():
            for pid in (task / "children").read_text().split():
                if module in Path(f"/proc/{pid}/cmdline").read_text().replace("_", "."):
                    return int(pid)
        raise SystemExit(f"no process runs {module}")

    def log(self) -> str:
        """Everything that it said."""
        self._log.seek(0)
        return self._log.read()

    def rss_mib(self) -> dict[str, float]:
        """Resident memory by process."""
        return {name: int(_status(pid)["VmRSS"].split()[0]) / 1024 for name, pid in self._pids.items()}

    def cpu_seconds(self) -> dict[str, float]:
        """Used so far by each process."""
        return {name: _cpu(pid) for name, pid in self._pids.items()}

    def stop(self) -> None:
        """And wait."""
        self._process.terminate()
        self._process.wait(60)


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _cpu(pid: int) -> float:
    """utime and stime, fields 14 and 15 of proc(5); the name before them may hold blanks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


class EngineView:
    """Looks on through `/v1/live` while its block runs.

    Attributes:
        ttft: the server's percentiles of the last minute, as of the last event; only of requests that arrived since.
        gaps: seconds between two tokens of a sequence, by the ends of the iterations that made them.
        iterations: seconds that each took.
        most_waiting: at any event.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self._last: dict[int, float] = {}
        self._decoded: set[int] = set()
        self.ttft: dict[str, float] = {}
        self.gaps: list[float] = []
        self.iterations: list[float] = []
        self.most_waiting = 0

    async def __aenter__(self) -> Self:
        response = await self._session.get(f"{self._url}/v1/live")
        self._task = asyncio.create_task(self._read(response))
        return self

    async def __aexit__(self, *_: object) -> None:
        # The state after the end comes with the next event.
        await asyncio.sleep(1.2)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self, response: aiohttp.ClientResponse) -> None:
        buffer = b""
        async with response:
            async for chunk in response.content.iter_any():
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    if line.startswith(b"data: "):
                        self._take(json.loads(line[6:]))

    def _take(self, event: dict[str, object]) -> None:
        ttft, iterations, waiting = event["ttft"], event["iterations"], event["num_waiting"]
        assert isinstance(ttft, dict)
        assert isinstance(iterations, list)
        assert isinstance(waiting, int)
        self.ttft = {name: value for name, value in ttft.items() if value is not None}
        self.most_waiting = max(self.most_waiting, waiting)
        for _, began_at, seconds, _, parts in iterations:
            self.iterations.append(seconds)
            for key, _, _, is_prefill in parts:
                self._see(key, began_at + seconds, is_prefill)

    def _see(self, key: int, at: float, is_prefill: bool) -> None:
        """The first token comes from the last part of the prompt; a preempted sequence's recomputing isn't a token."""
        if not is_prefill:
            if key in self._last:
                self.gaps.append(at - self._last[key])
            self._decoded.add(key)
        if not is_prefill or key not in self._decoded:
            self._last[key] = at


async def metrics(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """`/metrics` without labels but a histogram's bound: sums, counts and buckets."""
    async with session.get(f"{url}/metrics") as response:
        text = await response.text()
    found = re.findall(r"^orcinus:(\w+?){(.*)} (\S+)$", text, re.MULTILINE)
    return {name + _bound(labels): float(value) for name, labels, value in found if not name.endswith("_created")}


def _bound(labels: str) -> str:
    found = re.search(r'(?:le|finished_reason)="([^"]*)"', labels)
    return f":{found[1]}" if found else ""


def histogram_quantile(metrics: dict[str, float], name: str, share: float) -> float | None:
    """As Prometheus interpolates it, from the difference of two scrapes. As exact as the buckets are narrow."""
    prefix = f"{name}_bucket:"
    bounds = sorted(
        (float(key.removeprefix(prefix)), count) for key, count in metrics.items() if key.startswith(prefix)
    )
    if not bounds or bounds[-1][1] == 0:
        return None
    wanted, low, below = share * bounds[-1][1], 0.0, 0.0
    for high, count in bounds:
        if count >= wanted:
            return low if high == float("inf") else low + (high - low) * (wanted - below) / max(count - below, 1e-9)
        low, below = high, count
    return low
