"""W1 to W4 on one machine: Orcinus and `transformers` (sdpa, static padded batches) in turns, in one run.

    python benchmarks/offline.py --workloads W1 --repeats 5

`transformers` runs each padded batch to its longest output; only the tokens that a request asked for are counted, and
its best batch size counts. Prints a line of JSON a repeat, then medians and the ratio of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from workloads import bench_160m

from orcinus import LLM, SamplingParams
from orcinus.bench.workloads import WORKLOADS, Job, warm_up, workload

PAD = 2
Run = Callable[[Sequence[Job]], None]


def orcinus_runner(folder: Path, threads: int, kernels: str) -> Run:
    """All requests at once into the offline library."""
    llm = LLM(folder, dtype="bfloat16", threads=threads, kernels=kernels, kv_cache_gib=1.0)

    def run(jobs: Sequence[Job]) -> None:
        params = [SamplingParams(temperature=0, max_tokens=job.num_output, ignore_eos=True) for job in jobs]
        outputs = llm.generate([job.prompt for job in jobs], params, use_tqdm=False)
        assert [len(output.outputs[0].token_ids) for output in outputs] == [job.num_output for job in jobs]

    return run


def transformers_runner(folder: Path, batch_size: int) -> Run:
    """generate() on left-padded batches."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    model.generation_config.eos_token_id = None

    @torch.inference_mode()
    def run(jobs: Sequence[Job]) -> None:
        for start in range(0, len(jobs), batch_size):
            part = jobs[start : start + batch_size]
            longest, steps = max(len(job.prompt) for job in part), max(job.num_output for job in part)
            ids = torch.full((len(part), longest), PAD)
            mask = torch.zeros_like(ids)
            for row, job in enumerate(part):
                ids[row, longest - len(job.prompt) :] = torch.tensor(job.prompt)
                mask[row, longest - len(job.prompt) :] = 1
            out = model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=steps,
                min_new_tokens=steps,
                pad_token_id=PAD,
            )
            assert out.shape[1] == longest + steps

    return run


def main() -> None:
    """Interleave the runners, repeat by repeat."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--kernels", nargs="+", default=["auto"])
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "orcinus-bench")
    arguments = parser.parse_args()
    folder = bench_160m(arguments.models)
    runners = {f"orcinus-{k}": orcinus_runner(folder, arguments.threads, k) for k in arguments.kernels}
    runners |= {f"transformers-{size}": transformers_runner(folder, size) for size in arguments.batch_sizes}
    torch.set_num_threads(arguments.threads)
    for name in arguments.workloads:
        report(name, measure(name, runners, arguments.repeats))


def measure(name: str, runners: dict[str, Run], repeats: int) -> dict[str, list[float]]:
    """Seconds of each repeat by runner; the first round warms up with shorter outputs."""
    seconds: dict[str, list[float]] = {runner: [] for runner in runners}
    for repeat in range(repeats + 1):
        jobs = (workload if repeat else warm_up)(name, seed=1000 + repeat)
        for runner, run in runners.items():
            started_at = time.perf_counter()
            run(jobs)
            if repeat:
                seconds[runner].append(time.perf_counter() - started_at)
                line = {"workload": name, "runner": runner, "seconds": round(seconds[runner][-1], 3)}
                print(json.dumps(line), file=sys.stderr, flush=True)
    return seconds


def report(name: str, seconds: dict[str, list[float]]) -> None:
    """Medians and spreads in generated (W4: prompt) tokens a second, and how far ahead of the best peer."""
    jobs = workload(name, seed=0)
    tokens = sum(len(job.prompt) if name == "W4" else job.num_output for job in jobs)
    speeds = {runner: tokens / statistics.median(times) for runner, times in seconds.items()}
    best_peer = max((speed for runner, speed in speeds.items() if runner.startswith("transformers")), default=None)
    for runner, times in seconds.items():
        ratio = f"  {speeds[runner] / best_peer:.2f} x the best peer" if best_peer else ""
        spread = f"{tokens / max(times):.1f} .. {tokens / min(times):.1f}"
        print(f"{name}  {runner:<18} {speeds[runner]:8.1f} tokens/s  ({spread}){ratio}")


if __name__ == "__main__":
    main()
