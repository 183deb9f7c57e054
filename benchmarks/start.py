"""Seconds from starting `orcinus serve` to the first token of a first answer, everything installed.

python benchmarks/start.py --model models/orcinus-tiny --repeats 5
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.request


def measure(model: str) -> tuple[float, float]:
    """Seconds until the server serves, and until the first token has come."""
    started_at = time.perf_counter()
    command = [sys.executable, "-m", "orcinus.cli", "serve", model, "--port", "0", "--served-model-name", "m"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    url = next(found[1] for line in server.stderr if (found := re.search(r"Serving on (\S+)", line)))
    serving_at = time.perf_counter()
    body = json.dumps({"model": "m", "prompt": [5, 6, 7], "max_tokens": 4, "stream": True}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        answer.readline()
        first_token_at = time.perf_counter()
        answer.read()
    server.send_signal(signal.SIGTERM)
    server.wait()
    server.stderr.close()
    return serving_at - started_at, first_token_at - started_at


def main() -> None:
    """Repeat and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/orcinus-tiny")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    times = [measure(arguments.model) for _ in range(arguments.repeats)]
    serving, first = zip(*times, strict=True)
    print(f"serving after {statistics.median(serving):.2f} s, first token after {statistics.median(first):.2f} s")
    print(f"(first token {min(first):.2f} .. {max(first):.2f} s over {arguments.repeats} starts)")


if __name__ == "__main__":
    main()
