"""What sampling costs an iteration: 64 rows of 32k and of 128k tokens, in milliseconds.

    python benchmarks/sampler.py [--threads 2] [--rows 64]

Logits are Zipf-like: log-probabilities fall with the logarithm of the rank, in a random order of ids, as a language
model's do; `flat` rows are the hard case for top-p, where three quarters of the vocabulary stay. `argmax` is torch's
own, for comparison in the same run. Each figure is the median of the runs, with the fastest in brackets.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from orcinus.core.request import SamplingParams
from orcinus.worker.sampler import Sampler, SampleRow

CASES: dict[str, dict[str, object]] = {
    "greedy": {"temperature": 0.0},
    "greedy, logprobs 1": {"temperature": 0.0, "logprobs": 1},
    "temperature 1": {},
    "top-k 50, top-p 0.9": {"top_k": 50, "top_p": 0.9},
    "top-p 0.9": {"top_p": 0.9},
    "min-p 0.05": {"min_p": 0.05},
    "penalties, 1k context": {"temperature": 0.0, "repetition_penalty": 1.1, "frequency_penalty": 0.5},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.rows} rows, {arguments.threads} thread(s), torch {torch.__version__}; ms: median (fastest)")
    for vocab_size in (32_000, 128_256):
        _measure_vocabulary(vocab_size, arguments.rows, arguments.runs)


def _measure_vocabulary(vocab_size: int, num_rows: int, runs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    ranks = torch.rand(num_rows, vocab_size, generator=generator).argsort(dim=1) + 1
    logits = -1.2 * ranks.to(torch.float32).log()
    print(f"vocabulary {vocab_size}")
    _report("torch argmax", lambda: logits.argmax(dim=1), lambda: None, runs)
    sampler = Sampler(vocab_size, torch.device("cpu"))
    tokens = np.random.default_rng(0).integers(0, vocab_size, 1000).astype(np.uint32)
    work = logits.clone()
    for name, options in CASES.items():
        rows = [
            SampleRow(SamplingParams(seed=i, **options), 0, 500, (), tokens)  # type: ignore[arg-type]
            for i in range(num_rows)
        ]
        _report(name, lambda rows=rows: sampler.sample(work, rows), lambda: work.copy_(logits), runs)
    flat = torch.randn(num_rows, vocab_size, generator=generator)
    rows = [SampleRow(SamplingParams(seed=i, top_p=0.9), 0, 500, (), tokens) for i in range(num_rows)]
    _report("top-p 0.9, flat", lambda: sampler.sample(flat, rows), lambda: None, 2)


def _report(name: str, run: Callable[[], object], prepare: Callable[[], object], runs: int) -> None:
    prepare()
    run()
    times = []
    for _ in range(runs):
        prepare()
        started_at = time.perf_counter()
        run()
        times.append((time.perf_counter() - started_at) * 1e3)
    print(f"  {name:24s} {statistics.median(times):8.2f} ({min(times):.2f})", flush=True)


if __name__ == "__main__":
    main()
