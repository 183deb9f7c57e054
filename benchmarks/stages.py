"""Where does an iteration's time go? Each stage of W1 to W4, its share of the time, and how near it is to the roofline.

    python benchmarks/stages.py bench-160m --workloads W2 W4 [--threads 2] [--lookahead 1] [--dtype bfloat16]

The kernels are timed by a set that passes every call on and writes down when; what lies between the calls is Python and
torch's own operators. The roofline is the larger of bytes over the read bandwidth and operations over the rate of a
2048³ product through torch, both measured in the same run.
"""

from __future__ import annotations

import argparse
import mmap
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from workloads import bench_160m

from orcinus.bench.workloads import WORKLOADS, Job, warm_up, workload
from orcinus.core.kv.tiers import OnDisk
from orcinus.core.plan import IterationResult
from orcinus.core.request import Request, SamplingParams, pack_tokens
from orcinus.engine.build import engine_over, worker_config
from orcinus.engine.clock import MonotonicClock
from orcinus.engine.config import engine_config
from orcinus.engine.loop import Engine
from orcinus.executor.inline import InlineExecutor
from orcinus.kernels import AttentionBatch, AttentionSpec, KernelSet, LayerCall, PackedLinear
from orcinus.kernels.select import select_kernels
from orcinus.models.config import load_config
from orcinus.models.decoder import Decoder
from orcinus.models.quantized.recipes import RECIPES
from orcinus.parallel import Place
from orcinus.parallel.wiring import Links
from orcinus.worker.build import LoadedWorker, Memory, WorkerConfig, WorkerDescription

READ_BYTES = 400 << 20
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "processor": time.process_time}


@dataclass
class Stage:
    """Sums over the iterations of one run."""

    seconds: float = 0.0
    bytes: float = 0.0
    operations: float = 0.0
    calls: int = 0

    def add(self, seconds: float, num_bytes: float, operations: float) -> None:
        self.seconds += seconds
        self.bytes += num_bytes
        self.operations += operations
        self.calls += 1


@dataclass
class Record:
    """What was timed. `mark` is the end of the last thing that was."""

    stages: dict[str, Stage] = field(default_factory=lambda: defaultdict(Stage))
    names: dict[int, str] = field(default_factory=dict)
    clock: Clock = time.perf_counter
    mark: float = 0.0
    between: str = "pack, embedding"
    whole_layers: bool = False

    def gap(self, name: str) -> None:
        """All since the last mark went to `name`."""
        now = self.clock()
        self.stages[name].add(now - self.mark, 0, 0)
        self.mark = now

    def call(self, name: str, work: Callable[[], Any], num_bytes: float, operations: float) -> Any:
        self.gap(self.between)
        self.between = "Python between kernels"
        result = work()
        now = self.clock()
        self.stages[name].add(now - self.mark, num_bytes, operations)
        self.mark = now
        return result


class TimedKernels:
    """A kernel set that is timed. Passes on what it doesn't know."""

    def __init__(self, kernels: KernelSet, record: Record) -> None:
        self._kernels = kernels
        self._record = record

    def taped(self, layers: Sequence[LayerCall]) -> tuple[LayerCall, ...]:
        """Each kernel by itself, or whole layers."""
        if not self._record.whole_layers:
            return tuple(layers)
        return tuple(map(self._timed_layer, layers, self._kernels.taped(layers)))

    def _timed_layer(self, layer: Any, taped: LayerCall) -> LayerCall:
        products = (layer.attention.qkv, layer.attention.output, *layer.mlp.products)
        num_bytes = sum(product.data.nbytes for product in products)
        elements = sum(product.in_features * product.out_features for product in products)

        def timed(x: Tensor, batch: AttentionBatch, kv: tuple[Tensor, Tensor]) -> Any:
            seen_bytes, operations = _attention_work(x, kv[0], batch, layer.attention.spec)
            operations += 2 * len(x) * elements
            return self._record.call("layer", lambda: taped(x, batch, kv), num_bytes + seen_bytes, operations)

        return timed

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._kernels, name)
        in_layer = self._record.whole_layers and name != "linear_float32"
        if not callable(method) or name.startswith("pack") or in_layer:
            return method

        def timed(*arguments: Any) -> Any:
            num_bytes, operations = _work(name, arguments)
            label = next((self._record.names[id(a)] for a in arguments if id(a) in self._record.names), name)
            result = self._record.call(label, lambda: method(*arguments), num_bytes, operations)
            if label == "head":
                self._record.between = "sampler, result"
            return result

        return timed


def _work(name: str, arguments: Sequence[Any]) -> tuple[float, float]:
    """Bytes that must be read, and operations. Of what isn't a product, only what comes in counts."""
    if name == "attention":
        q, keys, _, batch, spec = arguments
        return _attention_work(q, keys, batch, spec)
    packed = next((a for a in arguments if isinstance(a, PackedLinear)), None)
    x = next(a for a in arguments if isinstance(a, Tensor))
    if packed is None:
        return x.numel() * x.element_size(), 0
    return packed.data.nbytes + x.nbytes, 2 * len(x) * packed.in_features * packed.out_features


def _attention_work(q: Tensor, keys: Tensor, batch: AttentionBatch, spec: AttentionSpec) -> tuple[float, float]:
    contexts = batch.context_lengths.tolist()
    counts = batch.query_starts.diff().tolist()
    seen = sum(n * c - n * (n - 1) / 2 for n, c in zip(counts, contexts, strict=True))
    num_bytes = 2 * sum(contexts) * spec.num_kv_heads * spec.head_dim * keys.element_size() + q.nbytes
    return num_bytes, 4 * seen * spec.num_heads * spec.head_dim


class TimedExecutor(InlineExecutor):
    """Times what lies around a worker's kernels."""

    record: Record

    def collect(self) -> IterationResult:
        record = self.record
        record.gap("core, loop")
        record.between = "pack, embedding"
        result = super().collect()
        record.gap(record.between)
        return result


class TimedWorkers:
    """One worker over timed kernels, loaded here."""

    def __init__(self, config: WorkerConfig, record: Record) -> None:
        torch.set_num_threads(config.threads or 1)
        device, dtype, folder = torch.device("cpu"), getattr(torch, config.dtype), Path(config.model)
        kernels, _ = select_kernels(config.kernels, device, dtype)
        timed: Any = TimedKernels(kernels, record)
        recipe = RECIPES[config.quantization] if config.quantization else None
        model = Decoder.load(folder, load_config(folder), dtype=dtype, device=device, kernels=timed, recipe=recipe)
        record.names = {id(product): name for name, product in _products(model)}
        self._record = record
        self._loaded = LoadedWorker(config, Place(), Links(), model, timed, dtype, device)
        self.on_disk = OnDisk()
        self.descriptions: list[WorkerDescription] = [self._loaded.description]

    def with_memory(self, memory: Memory) -> TimedExecutor:
        executor = TimedExecutor(self._loaded.with_memory(memory))
        executor.record = self._record
        return executor

    def close(self) -> None:
        """Nothing to do."""


def _products(model: Decoder) -> list[tuple[str, object]]:
    named: list[tuple[str, object]] = [("head", model.body.head)]
    for layer in model.body.layers:
        named += [("qkv", layer.attention.qkv), ("attention output", layer.attention.output)]
        named += zip(("mlp in", "mlp down"), layer.mlp.products, strict=False)
    return named


def read_rate(clock: Clock) -> float:
    """Bytes a second that torch's threads read, the best of a few, from huge pages where there are some."""
    memory = mmap.mmap(-1, READ_BYTES)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    x = torch.frombuffer(memory, dtype=torch.float32).fill_(1.0)
    return READ_BYTES / min(_seconds(x.amax, clock) for _ in range(7))


def product_rate(clock: Clock) -> float:
    """Operations a second of a 2048³ product in bfloat16 through torch, the best of a few."""
    x = torch.randn(2048, 2048, dtype=torch.bfloat16)
    return float(2 * 2048**3 / min(_seconds(lambda: x @ x, clock) for _ in range(5)))


def _seconds(run: Callable[[], object], clock: Clock) -> float:
    started_at = clock()
    run()
    return clock() - started_at


def generate(engine: Engine, jobs: Sequence[Job], prefix: str) -> int:
    """All of them at once; returns how many iterations it took."""
    for number, job in enumerate(jobs):
        params = SamplingParams(temperature=0, seed=0, max_tokens=job.num_output, ignore_eos=True)
        engine.add(Request(request_id=f"{prefix}-{number}", prompt=pack_tokens(job.prompt), params=params))
    iterations = 0
    while (progress := engine.step()) is not None:
        iterations += bool(progress)
    return iterations


def table(name: str, record: Record, iterations: int, bandwidth: float, rate: float) -> None:
    """One line a stage, the longest first."""
    total = sum(stage.seconds for stage in record.stages.values())
    print(f"\n{name}: {1e3 * total:.1f} ms, {iterations} iterations of {1e3 * total / iterations:.3f} ms")
    print(
        "| stage | ms an iteration | share | calls | GB/s | GFLOP/s | of the roofline |\n|---|---|---|---|---|---|---|"
    )
    for label, stage in sorted(record.stages.items(), key=lambda item: -item[1].seconds):
        limit = max(stage.bytes / bandwidth, stage.operations / rate)
        print(
            f"| {label} | {1e3 * stage.seconds / iterations:.3f} | {stage.seconds / total:.1%} | "
            f"{stage.calls / iterations:.1f} | {stage.bytes / stage.seconds / 1e9:.1f} | "
            f"{stage.operations / stage.seconds / 1e9:.0f} | {f'{limit / stage.seconds:.0%}' if limit else '-'} |"
        )
    limit = sum(max(s.bytes / bandwidth, s.operations / rate) for s in record.stages.values())
    print(f"| all | {1e3 * total / iterations:.3f} | | | | | {limit / total:.0%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a checkpoint's folder; bench-160m is made if missing")
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantization", choices=list(RECIPES))
    parser.add_argument("--whole-layers", action="store_true", help="as they run: several kernels in one call")
    parser.add_argument("--lookahead", type=int, default=0)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="on a busy machine, processor says more")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    model = arguments.model or bench_160m(Path(tempfile.gettempdir()) / "orcinus-bench")
    options: dict[str, Any] = {
        "model": str(model),
        "dtype": arguments.dtype,
        "threads": arguments.threads,
        "kv_cache_gib": 1.0,
    }
    options["quantization"] = arguments.quantization
    config, clock, record = engine_config({**options, "lookahead": arguments.lookahead}), MonotonicClock(), Record()
    record.clock, record.whole_layers = CLOCKS[arguments.clock], arguments.whole_layers
    engine, _ = engine_over(TimedWorkers(worker_config(config), record), config, clock)
    bandwidth, rate = read_rate(record.clock), product_rate(record.clock)
    print(f"{arguments.threads} threads: {bandwidth / 1e9:.1f} GB/s read, {rate / 1e9:.0f} GFLOP/s")
    for name in arguments.workloads:
        generate(engine, warm_up(name, seed=0), f"{name}-warm")
        runs = []
        for repeat in range(arguments.repeats):
            record.stages.clear()
            record.mark = record.clock()
            iterations = generate(engine, workload(name, seed=ord(name[1]) * 100 + repeat), f"{name}-{repeat}")
            runs.append((sum(s.seconds for s in record.stages.values()), iterations, Record(dict(record.stages))))
        _, iterations, middle = sorted(runs, key=lambda run: run[0])[len(runs) // 2]
        table(name, middle, iterations, bandwidth, rate)
        print(f"(median of {statistics.median(run[0] for run in runs) * 1e3:.1f} ms of {len(runs)} runs)")


if __name__ == "__main__":
    main()
