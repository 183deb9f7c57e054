"""A real `orcinus serve` for tools: what belongs to it, whether it is idle, and what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import aiohttp

# Generous: a busy machine takes minutes for four workers that import torch.
START_SECONDS = 600
WORKERS = ("orcinus.executor.worker_process", "orcinus.executor.joining")
MODEL = Path(__file__).resolve().parent.parent / "models" / "orcinus-tiny"


class Server:
    """`orcinus serve` as a process, and what belongs to it."""

    def __init__(self, model: Path, options: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (as long as the server lives)
        command = [sys.executable, "-m", "orcinus.cli", "serve", str(model), "--port", "0", "--threads", "1"]
        usual = {"--kv-cache-gib": "0.05", "--max-batch-size": "32", "--max-queue-seconds": "600"}
        command += [word for pair in usual.items() if pair[0] not in options for word in pair]
        self.process = subprocess.Popen([*command, *options], stderr=self._log, stdout=self._log, env=environment)
        self.url = self._wait_for_url()

    def _wait_for_url(self) -> str:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(r"Serving on (\S+)", self.log()):
                return found[1]
            time.sleep(0.05)
        self.process.kill()
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

    def children(self, module: str) -> list[int]:
        """Its processes that run `module`."""
        return [pid for pid in _children(self.process.pid) if _runs(pid, module)]

    def descriptors(self) -> int:
        """Open in the supervisor and the front ends."""
        pids = [self.process.pid, *self.children("orcinus.server.front")]
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)

    def ends(self) -> Counter[str]:
        """Why engines were replaced, and how often."""
        return Counter(re.findall(r"(?:the engine process|the engine) (.*); starting another", self.log()))


def beneath(pid: int, modules: Sequence[str]) -> list[int]:
    """Processes that it or its descendants started, which run one of `modules`."""
    found = []
    for child in _children(pid):
        found += [child] if any(_runs(child, module) for module in modules) else []
        found += beneath(child, modules)
    return found


def _children(pid: int) -> list[int]:
    # It may have just died.
    with contextlib.suppress(OSError):
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return []


def _runs(pid: int, module: str) -> bool:
    with contextlib.suppress(OSError):
        return module in Path(f"/proc/{pid}/cmdline").read_text()
    return False


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
    workers = beneath(os.getpid(), WORKERS)
    pids = [*server.children("orcinus.engine.process"), *server.children("orcinus.server.front")]
    folder = {
        line.split()[-1]
        for pid in pids
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
        if "/orcinus-" in line
    }
    server.process.terminate()
    code = server.process.wait(60)
    left = [pid for pid in (*pids, *workers) if Path(f"/proc/{pid}").exists()]
    files = [path for path in folder if Path(path).exists()]
    return [
        *([f"exit code {code}"] if code else []),
        *([f"processes left: {left}"] if left else []),
        *([f"files left: {files}"] if files else []),
    ]
