"""Does a decode get dearer at some size than it must? Sequences 1 to 256, contexts 128 to 16k, against the roofline.

    python benchmarks/growth.py bench-160m --plot docs/images/growth.svg [--kv-gib 2]

A worker decodes sequences whose contexts are said to be there: their blocks are written, but what with changes no cost.
The roofline of an iteration is the larger of bytes (weights, KV) over the read bandwidth and operations over the rate
of a 2048³ product through torch, both measured here. One thread, by processor time: others at work disturb that less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from stages import product_rate, read_rate
from workloads import bench_160m

from orcinus.core.plan import FED_BACK, IterationPlan, NewSequence, Output, Work
from orcinus.core.request import SamplingParams
from orcinus.executor.inline import InlineWorkers
from orcinus.models.decoder import Decoder
from orcinus.worker.build import Memory, WorkerConfig
from orcinus.worker.worker import Worker

SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS = (128, 512, 2048, 8192, 16384)
BLOCK = 16
# Room for the tokens that are decoded here.
ITERATIONS = 8
GIB = 1 << 30


@dataclass(frozen=True)
class Point:
    """Seconds of one iteration, and the least that it could take."""

    sequences: int
    context: int
    seconds: float
    roofline: float


def with_positions(folder: Path, positions: int, target: Path) -> Path:
    """The same checkpoint, but for a longer context."""
    for file in folder.iterdir():
        if file.name != "config.json":
            (target / file.name).symlink_to(file.resolve())
    config = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "max_position_embeddings": positions}))
    return target


def decode_seconds(worker: Worker, sequences: int, context: int, epoch: int) -> float:
    """Median processor time of an iteration in which each of them goes on by a token."""
    blocks = -(-(context + ITERATIONS) // BLOCK)
    params, prompt = SamplingParams(temperature=0, seed=0), np.full(context + 1, 7, dtype=np.uint32).tobytes()
    new = tuple(
        NewSequence(
            i, 0, context + 1, prompt, np.arange(i * blocks, (i + 1) * blocks, dtype=np.uint32).tobytes(), params, ()
        )
        for i in range(sequences)
    )
    taken = []
    for step in range(ITERATIONS):
        work = tuple(Work(i, context + step, 1, FED_BACK, Output.SAMPLE) for i in range(sequences))
        started_at = time.process_time()
        worker.execute(IterationPlan(epoch, step, work, new if step == 0 else ()))
        taken.append(time.process_time() - started_at)
    return statistics.median(taken[2:])


def least_seconds(model: Decoder, block_bytes: int, sequences: int, context: int, rates: tuple[float, float]) -> float:
    """The roofline of such an iteration."""
    products = model.body.products
    weights = sum(product.data.nbytes for product in products)
    heads = sum(layer.attention.spec.num_heads * layer.attention.spec.head_dim for layer in model.body.layers)
    operations = 2 * sum(product.in_features * product.out_features for product in products) + 4 * context * heads
    num_bytes = weights + sequences * context * block_bytes / BLOCK
    return max(num_bytes / rates[0], sequences * operations / rates[1])


def measure(folder: Path, kv_gib: float, dtype: str) -> list[Point]:
    """All points that the memory for KV admits."""
    config = WorkerConfig(
        model=str(folder), dtype=dtype, device="cpu", kernels="auto", threads=1, block_size=BLOCK,
        max_batch_size=max(SEQUENCES),
    )  # fmt: skip
    workers = InlineWorkers(config, print)
    (description,) = workers.descriptions
    num_blocks = int(kv_gib * GIB / description.block_bytes)
    worker = workers.with_memory(Memory(num_blocks, max(CONTEXTS) + 64, 0, None))._worker
    for keys, values in worker._kv.layers:
        # Memory that nobody wrote to is one page of zeros, which lies in the cache.
        keys.fill_(0.01)
        values.fill_(0.01)
    rates, points = (read_rate(time.process_time), product_rate(time.process_time)), []
    print(f"{rates[0] / 1e9:.1f} GB/s read, {rates[1] / 1e9:.0f} GFLOP/s")
    for context in CONTEXTS:
        for sequences in SEQUENCES:
            if sequences * -(-(context + ITERATIONS) // BLOCK) > num_blocks:
                break
            seconds = decode_seconds(worker, sequences, context, len(points) + 1)
            roofline = least_seconds(worker._model, description.block_bytes, sequences, context, rates)
            points.append(Point(sequences, context, seconds, roofline))
            each = 1e3 / sequences
            print(
                f"{context:>6} in context, {sequences:>3} sequences: {seconds * each:8.3f} ms a token, "
                f"at least {roofline * each:8.3f}: {roofline / seconds:.0%}",
                flush=True,
            )
    return points


def plot(points: Sequence[Point], title: str, path: Path) -> None:
    """Cost of a token by sequences, a line a context; dashed the roofline."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for context in dict.fromkeys(point.context for point in points):
        line = [point for point in points if point.context == context]
        x = [point.sequences for point in line]
        (drawn,) = axes.plot(x, [1e3 * p.seconds / p.sequences for p in line], marker="o", label=f"{context:,}")
        axes.plot(x, [1e3 * p.roofline / p.sequences for p in line], linestyle="--", color=drawn.get_color())
    axes.set(xscale="log", yscale="log", xlabel="sequences that decode at once", ylabel="ms a token", title=title)
    axes.set_xticks(SEQUENCES, [str(n) for n in SEQUENCES])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(title="tokens in context\n(dashed: roofline)")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="a checkpoint's folder; bench-160m is made if missing")
    parser.add_argument("--kv-gib", type=float, default=2.0)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    folder = arguments.model or bench_160m(Path(tempfile.gettempdir()) / "orcinus-bench")
    with tempfile.TemporaryDirectory() as longer:
        target = with_positions(folder, max(CONTEXTS) + 64, Path(longer))
        points = measure(target, arguments.kv_gib, arguments.dtype)
    if arguments.plot is not None:
        plot(points, f"{folder.name}, {arguments.dtype}, one thread", arguments.plot)


if __name__ == "__main__":
    main()
