"""How long /health takes while something else goes on; asked by a process of its own, whose clock nobody holds up."""

from __future__ import annotations

import http.client
import json
import select
import subprocess
import sys
import time
from pathlib import Path
from statistics import quantiles
from urllib.parse import urlsplit

PERIOD = 0.05


class HealthWatch:
    """The process, while it asks."""

    def __init__(self, url: str) -> None:
        command = [sys.executable, str(Path(__file__)), url]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def end(self) -> dict[str, float]:
        """How often it asked, how often it didn't get a 200, and milliseconds: median, 99th percentile, longest."""
        said, _ = self._process.communicate("", timeout=30)
        seconds, num_bad = json.loads(said)
        cuts = quantiles(seconds, n=100, method="inclusive")
        return {
            "asked": len(seconds),
            "bad": num_bad,
            "p50_ms": 1e3 * cuts[49],
            "p99_ms": 1e3 * cuts[98],
            "max_ms": 1e3 * max(seconds),
        }


def ask(host: str) -> tuple[list[float], int]:
    """Until the end of standard input; each time how long it took, and how many answers weren't 200."""
    connection, seconds, num_bad = http.client.HTTPConnection(host, timeout=30), [], 0
    while len(seconds) < 2 or not select.select([sys.stdin], [], [], PERIOD)[0]:
        started_at = time.monotonic()
        try:
            connection.request("GET", "/health")
            response = connection.getresponse()
            response.read()
            num_bad += response.status != 200
        except OSError:
            connection.close()
            num_bad += 1
        seconds.append(time.monotonic() - started_at)
    return seconds, num_bad


if __name__ == "__main__":
    print(json.dumps(ask(urlsplit(sys.argv[1]).netloc)))
