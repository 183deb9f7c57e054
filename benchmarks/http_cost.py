"""What HTTP, processes and detokenising cost: W1 through `orcinus serve`, streamed, and through `LLM` in this process.

    python benchmarks/http_cost.py [--repeats 5]

Both take turns in one run, on the same checkpoint and threads; the client shares the cores with the server.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp
from workloads import bench_160m

from orcinus import LLM, SamplingParams
from orcinus.bench.workloads import Job, workload


def through_llm(llm: LLM, jobs: Sequence[Job]) -> float:
    """Seconds."""
    params = [SamplingParams(temperature=0, max_tokens=job.num_output, ignore_eos=True) for job in jobs]
    started_at = time.perf_counter()
    llm.generate([job.prompt for job in jobs], params, use_tqdm=False)
    return time.perf_counter() - started_at


async def through_http(url: str, jobs: Sequence[Job]) -> float:
    """Seconds; every stream is read to its end and its events are counted."""

    async def one(session: aiohttp.ClientSession, job: Job) -> None:
        body = {
            "prompt": job.prompt,
            "max_tokens": job.num_output,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        async with session.post(f"{url}/v1/completions", json=body | {"return_token_ids": True}) as response:
            assert response.status == 200, await response.text()
            text = await response.text()
        assert text.count('"token_ids"') == job.num_output, "one event a token"

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        started_at = time.perf_counter()
        await asyncio.gather(*(one(session, job) for job in jobs))
        return time.perf_counter() - started_at


def serve(model: Path, threads: int) -> tuple[subprocess.Popen[str], str]:
    """The server, and where it is."""
    options = [
        "--threads",
        str(threads),
        "--kv-cache-gib",
        "1",
        "--dtype",
        "bfloat16",
        "--port",
        "0",
        "--max-queue-seconds",
        "600",
    ]
    command = [sys.executable, "-m", "orcinus.cli", "serve", str(model), *options]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"Serving on (\S+)", line):
            return server, found[1]
    raise SystemExit("the server didn't start")


def main() -> None:
    """Medians, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tokenizer", type=Path, default=Path("models/orcinus-tiny"), help="detokenises (%(default)s)")
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "orcinus-bench")
    arguments = parser.parse_args()
    model = bench_160m(arguments.models)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(arguments.tokenizer / name, model / name)
    llm = LLM(model, dtype="bfloat16", threads=arguments.threads, kv_cache_gib=1.0)
    server, url = serve(model, arguments.threads)
    seconds: dict[str, list[float]] = {"LLM": [], "HTTP": []}
    try:
        for repeat in range(arguments.repeats + 1):
            jobs = workload("W1", 1000 + repeat, 32_000)
            jobs = [Job(job.prompt, min(8, job.num_output)) for job in jobs[:8]] if repeat == 0 else jobs
            for name, run in (
                ("LLM", lambda jobs=jobs: through_llm(llm, jobs)),
                ("HTTP", lambda jobs=jobs: asyncio.run(through_http(url, jobs))),
            ):
                spent = run()
                if repeat:
                    seconds[name].append(spent)
    finally:
        server.terminate()
        server.wait()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (model / name).unlink()
    for name, times in seconds.items():
        print(f"{name:<5} {statistics.median(times):6.2f} s ({min(times):.2f} .. {max(times):.2f})")
    ratios = sorted(http / llm for http, llm in zip(seconds["HTTP"], seconds["LLM"], strict=True))
    print(f"HTTP costs {statistics.median(ratios) - 1:+.1%} ({ratios[0] - 1:+.1%} .. {ratios[-1] - 1:+.1%})")


if __name__ == "__main__":
    main()
