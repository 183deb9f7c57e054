"""What this machine can do at the moment, by torch alone: a streaming read and a large bf16 product.

    python benchmarks/limits.py --threads 2

One line of JSON, the best of a few tries: GB/s over 1 GiB, GFLOP/s of 2,048³.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable

import torch

READ_BYTES = 2**30
SIDE = 2048
TRIES = 5


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    torch.set_num_threads(parser.parse_args().threads)
    print(json.dumps(measure()))


def measure() -> dict[str, float]:
    """By name."""
    memory = torch.ones(READ_BYTES // 8, dtype=torch.int64)
    a, b = torch.randn(SIDE, SIDE).bfloat16(), torch.randn(SIDE, SIDE).bfloat16()
    with torch.inference_mode():
        return {
            "read_gb_s": round(READ_BYTES / _fastest(memory.sum) / 1e9, 2),
            "gemm_bf16_gflop_s": round(2 * SIDE**3 / _fastest(lambda: a @ b) / 1e9, 1),
        }


def _fastest(run: Callable[[], object]) -> float:
    """Seconds; the first try warms up."""
    run()
    seconds = []
    for _ in range(TRIES):
        started_at = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started_at)
    return min(seconds)


if __name__ == "__main__":
    main()
