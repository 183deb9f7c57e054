"""The printed memory plan against the memory that the process really takes (resident set), all KV pages touched.

    python benchmarks/memory_plan.py --kv-gib 1.0

Growth is counted from just before the checkpoint is loaded, libraries imported, to after full iterations with every
block written; the peak while loading is reported apart.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from pathlib import Path

import torch
from workloads import VOCAB_SIZE, bench_160m

from orcinus import LLM, SamplingParams

MIB = 2**20


def resident_bytes() -> int:
    """The process's resident set now."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system doesn't tell the resident set")


def main() -> None:
    """Load, touch all, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kv-gib", type=float, default=1.0)
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "orcinus-bench")
    arguments = parser.parse_args()
    folder = bench_160m(arguments.models)
    # What torch itself takes for its first product is not the plan's business.
    torch.nn.functional.linear(torch.ones(64, 64, dtype=torch.bfloat16), torch.ones(64, 64, dtype=torch.bfloat16))
    before = resident_bytes()
    with LLM(folder, kv_cache_gib=arguments.kv_gib, max_model_len=2048, max_batch_tokens=2048) as llm:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        description = llm.engine_description
        count = description.max_request_tokens // 2048
        # As many full-length prompts as the pool holds, all running at once, touch every block.
        prompts = [[(7 * i + j) % VOCAB_SIZE for j in range(2040)] for i in range(count)]
        llm.generate(prompts, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))
        grown = resident_bytes() - before
    print(description.memory_plan)
    planned = float(description.memory_plan.rsplit("total", 1)[1].split()[0]) * 2**30
    print(f"planned {planned / MIB:.0f} MiB, resident set grew by {grown / MIB:.0f} MiB: {grown / planned - 1:+.1%}")
    print(f"peak while loading: {(peak - before) / MIB:.0f} MiB above the start")


if __name__ == "__main__":
    main()
