"""What do int8 and int4 weights give? bf16, int8 and int4 of one checkpoint in turns, in one run.

    python benchmarks/quantized.py --threads 1 --repeats 3

Of W2 (one request, 128 in and 128 out) the milliseconds of a decoded token; of W1 (64 requests at once) generated
tokens/s. Prints medians, spreads and the ratio to bf16, by the clock and by processor time: the latter tells more where
others are at work.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from workloads import bench_160m

from orcinus import LLM, SamplingParams
from orcinus.bench.workloads import Job, workload

KINDS = (None, "int8", "int4")
Cost = tuple[float, float]


def cost(llm: LLM, jobs: Sequence[Job]) -> Cost:
    """Seconds by the clock and of the processor."""
    started_at, used = time.perf_counter(), time.process_time()
    params = [SamplingParams(temperature=0, max_tokens=job.num_output, ignore_eos=True) for job in jobs]
    outputs = llm.generate([job.prompt for job in jobs], params, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [job.num_output for job in jobs]
    return time.perf_counter() - started_at, time.process_time() - used


def decode_cost(llm: LLM, seed: int) -> Cost:
    """Milliseconds of one decoded token of W2."""
    (job,) = workload("W2", seed)
    # Afterwards the prompt's blocks are cached, but for the last token.
    cost(llm, [Job(job.prompt, 1)])
    whole = cost(llm, [Job(job.prompt, job.num_output + 1)])
    tail = cost(llm, [Job(job.prompt, 1)])
    return tuple(1000 * (a - b) / job.num_output for a, b in zip(whole, tail, strict=True))  # type: ignore[return-value]


def speed(llm: LLM, seed: int) -> Cost:
    """Generated tokens a second of W1."""
    jobs = workload("W1", seed)
    tokens = sum(job.num_output for job in jobs)
    return tuple(tokens / seconds for seconds in cost(llm, jobs))  # type: ignore[return-value]


def main() -> None:
    """Interleave the kinds, repeat by repeat."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="a checkpoint; made if not given")
    parser.add_argument("--workloads", nargs="+", default=["W2", "W1"])
    arguments = parser.parse_args()
    folder = arguments.folder or bench_160m(Path(tempfile.gettempdir()) / "orcinus-bench")
    llms = {
        kind or "bf16": LLM(folder, dtype="bfloat16", threads=arguments.threads, quantization=kind, kv_cache_gib=0.7)
        for kind in KINDS
    }
    for name in arguments.workloads:
        measure = decode_cost if name == "W2" else speed
        found: dict[str, list[Cost]] = {kind: [] for kind in llms}
        for repeat in range(arguments.repeats + 1):
            for kind, llm in llms.items():
                result = measure(llm, 1000 + repeat)
                found[kind] += [result] * (repeat > 0)
        report(name, "ms a token" if name == "W2" else "tokens/s", found)


def report(name: str, unit: str, found: dict[str, list[Cost]]) -> None:
    """Medians, spreads, and the ratio of medians to bf16's."""
    for index, by in enumerate(("clock", "processor")):
        base = statistics.median(result[index] for result in found["bf16"])
        for kind, results in found.items():
            values = [result[index] for result in results]
            middle = statistics.median(values)
            spread = f"{min(values):.2f} .. {max(values):.2f}"
            print(f"{name}  {kind:<5} {middle:9.2f} {unit} by {by} ({spread})  {middle / base:.2f} x bf16", flush=True)


if __name__ == "__main__":
    main()
