"""Do policies differ in the real server the way the twin says? One trace, each policy served and simulated, by turns.

    python benchmarks/policies.py MODEL --policies fcfs mlfq --load 0.9

Commands alone: `orcinus profile`, then for each policy `orcinus serve` under `orcinus bench online`, and `orcinus
simulate` with the same trace. Most answers are short and a few are long, which is where policies part.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from overload_server import ServerUnderLoad, real_server

ORCINUS = [sys.executable, "-m", "orcinus.cli"]
# The queue is to be long enough to matter, and nobody to be turned away.
PATIENCE_SECONDS = 3600.0
FIGURES = ("mean_e2el_ms", "p50_e2el_ms", "p95_e2el_ms", "mean_ttft_ms", "mean_tpot_ms", "output_throughput")


def write_trace(path: Path, count: int, seed: int) -> None:
    """One request a second (the rate is set later); nine of ten answers take 4 to 24 tokens, the tenth 150 to 250."""
    rng = random.Random(seed)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for _ in range(count):
        answer = rng.randint(150, 250) if rng.random() < 0.1 else rng.randint(4, 24)
        lines.append(f"{at:%Y-%m-%d %H:%M:%S.%f},{rng.randint(16, 128)},{answer}")
        at += timedelta(seconds=rng.expovariate(1.0))
    path.write_text("\n".join(lines) + "\n")


def told(*command: str) -> dict[str, float]:
    """What a command of ours writes as JSON."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        subprocess.run([*ORCINUS, *command, "--json", file.name], check=True, stdout=subprocess.DEVNULL)
        figures: dict[str, float] = json.load(file)
    return figures


class Bench:
    """The trace, and both ways to run it at a rate."""

    def __init__(self, model: Path, trace: Path, profile: Path, batch: int) -> None:
        self._model, self._trace, self._profile, self._batch = model, trace, profile, batch

    def twin(self, policy: str, rate: float) -> dict[str, float]:
        """In virtual time."""
        load = ("--trace", str(self._trace), "--rate", str(rate), "--arrivals", "trace")
        size = ("--max-batch-size", str(self._batch))
        return told("simulate", "--profile", str(self._profile), "--policy", policy, *size, *load)

    def served(self, policy: str, rate: float) -> dict[str, float]:
        """By a server of its own, on one thread."""
        options = ["--policy", policy, "--max-batch-size", str(self._batch)]
        server = ServerUnderLoad(real_server(self._model, PATIENCE_SECONDS, options))
        load = ("--dataset", "trace", "--dataset-path", str(self._trace), "--request-rate", str(rate))
        asked = ("--base-url", server.url, "--tokenizer", str(self._model), "--percentiles", "50,95")
        try:
            return told("bench", "online", *asked, *load, "--arrivals", "trace", "--ignore-eos")
        finally:
            server.stop()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--policies", nargs="+", default=["fcfs", "mlfq"])
    parser.add_argument("--load", type=float, default=0.9, help="share of what the twin bears")
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--max-batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trace, profile = Path(folder) / "trace.csv", Path(folder) / "profile.json"
        write_trace(trace, options.requests, seed=1)
        measure = ("profile", str(options.model), "--threads", "1", "--output", str(profile))
        subprocess.run([*ORCINUS, *measure], check=True, stdout=subprocess.DEVNULL)
        bench = Bench(options.model, trace, profile, options.max_batch_size)
        rate = options.load * bench.twin("fcfs", 1e6)["request_throughput"]
        print(f"{rate:.2f} requests/s; real: median of {options.repeats} (smallest .. largest)")
        runs: dict[str, list[dict[str, float]]] = {policy: [] for policy in options.policies}
        for _ in range(options.repeats):
            for policy in options.policies:
                runs[policy].append(bench.served(policy, rate))
        for policy in options.policies:
            twin = bench.twin(policy, rate)
            for name in FIGURES:
                real = sorted(run[name] for run in runs[policy])
                middle = statistics.median(real)
                spread = f"{middle:.1f} ({real[0]:.1f} .. {real[-1]:.1f})"
                print(f"{policy:9} {name:18} {spread:>30} twin {twin[name]:10.1f} {twin[name] / middle - 1:+7.1%}")


if __name__ == "__main__":
    main()
