"""How fast are the native CPU kernels? Each shape against torch's oneDNN, in turns, medians of paired rounds.

python benchmarks/kernels_cpu.py [--isa avx512bf16] [--threads 2] [--rounds 7] [--only linear|quantized|attention|rows]
    [--shapes 768x1280]

Weights are taken in turn from copies that fill 200 MB together, as a decode iteration of a small model would.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from orcinus.kernels import AttentionBatch, AttentionSpec
from orcinus.kernels.cpu import CpuKernels
from orcinus.kernels.quantized import Scheme, quantize
from orcinus.kernels.reference import ReferenceKernels

SHAPES = {
    "bench-160m": [(768, 1280), (768, 768), (768, 4096), (2048, 768), (768, 32000)],
    "bench-1b": [(2048, 3072), (2048, 16384), (8192, 2048), (2048, 128256)],
}
ROWS = [1, 4, 8, 16, 32, 64, 256, 512]
WORKING_SET = 200e6
# Shorter runs are repeated until they fill this many seconds.
LEAST_SECONDS = 0.01

# "tiled" is what keeps promise 2 without kernels of our own: packed weights, 32 rows at a time.
SCHEMES = {
    "int8": Scheme(8, None),
    "int8 by 32": Scheme(8, 32),
    "int4 by 32": Scheme(4, 32),
    "int4 by 128": Scheme(4, 128),
}
PEERS = {"packed": "oneDNN packed", "tiled": "oneDNN in tiles", "F.linear": "F.linear"}

Run = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds a call, one entry a round. On a shared machine the processor's time says more than the clock."""

    wall: list[float]
    cpu: list[float]

    @property
    def seconds(self) -> float:
        return statistics.median(self.wall)

    def ratio(self, ours: "Timing") -> str:
        """How many times as long as ours: the median of the rounds, by the clock and by the processor's time."""
        by_wall = statistics.median(a / b for a, b in zip(self.wall, ours.wall, strict=True))
        by_cpu = statistics.median(a / b for a, b in zip(self.cpu, ours.cpu, strict=True))
        return f"{by_wall:.2f} / {by_cpu:.2f}"


def timings(candidates: dict[str, Run], rounds: int) -> dict[str, Timing]:
    """The candidates take turns, each round in the other direction."""
    repeats = {}
    for name, run in candidates.items():
        run()
        start = time.perf_counter()
        run()
        repeats[name] = max(1, int(LEAST_SECONDS / (time.perf_counter() - start)))
    result = {name: Timing([], []) for name in candidates}
    for turn in range(rounds):
        for name in list(candidates) if turn % 2 == 0 else reversed(list(candidates)):
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(repeats[name]):
                candidates[name]()
            result[name].wall.append((time.perf_counter() - wall) / repeats[name])
            result[name].cpu.append((time.process_time() - cpu) / repeats[name])
    return result


def medians(candidates: dict[str, Run], rounds: int) -> dict[str, float]:
    """Median seconds a call by the clock."""
    return {name: timing.seconds for name, timing in timings(candidates, rounds).items()}


def in_turn(runs: list[Run]) -> Run:
    """Calls the next one each time."""
    turn = [0]

    def run() -> object:
        turn[0] = (turn[0] + 1) % len(runs)
        return runs[turn[0]]()

    return run


def linear_shape(kernels: CpuKernels, dtype: torch.dtype, k: int, n: int, rounds: int) -> None:
    """One line of the table a number of rows."""
    copies = max(1, min(64, int(WORKING_SET / (k * n * dtype.itemsize))))
    weights = [torch.randn(n, k, dtype=dtype) * 0.02 for _ in range(copies)]
    packed = [kernels.pack(w, None) for w in weights]
    plain = ReferenceKernels()
    tiled = [plain.pack(w, None) for w in weights]
    reordered = [torch.ops.mkldnn._reorder_linear_weight(w, 32) for w in weights] if dtype is torch.bfloat16 else []
    for m in ROWS:
        x = torch.randn(m, k, dtype=dtype)
        candidates: dict[str, Run] = {
            "ours": in_turn([partial(kernels.linear, x, p) for p in packed]),
            "F.linear": in_turn([partial(F.linear, x, w) for w in weights]),
            "tiled": in_turn([partial(plain.linear, x, p) for p in tiled]),
        }
        if reordered:
            candidates["packed"] = in_turn(
                [partial(torch.ops.mkldnn._linear_pointwise, x, w, None, "none", [], "") for w in reordered]
            )
        result = timings(candidates, rounds)
        ours = result["ours"]
        cpu = statistics.median(ours.cpu)
        # By the processor's time: what a thread that had its core to itself would reach.
        seconds = cpu / torch.get_num_threads()
        rates = f"{k * n * dtype.itemsize / seconds / 1e9:.1f} | {2 * m * k * n / seconds / 1e9:.0f}"
        others = " | ".join(result[name].ratio(ours) if name in result else "-" for name in PEERS)
        print(
            f"| {k} → {n} | {m} | {1e9 * ours.seconds:,.0f} | {1e9 * cpu:,.0f} | {rates} | {others} |",
            flush=True,
        )


def linear(kernels: CpuKernels, dtype: torch.dtype, rounds: int, shapes: list[str]) -> None:
    """The table of products."""
    print("\nRatios: the peer's time over ours, by the clock / by the processor's time; above 1 we are faster.")
    print(f"| in → out | rows | ns | ns CPU | GB/s | GFLOP/s | {' | '.join(PEERS.values())} |")
    print("|---" * (6 + len(PEERS)) + "|")
    for k, n in dict.fromkeys(shape for model in SHAPES.values() for shape in model):
        if not shapes or f"{k}x{n}" in shapes:
            linear_shape(kernels, dtype, k, n, rounds)


def quantized(kernels: CpuKernels, rounds: int, shapes: list[str]) -> None:
    """Weights of 8 and 4 bits against our bfloat16 product, whose copies are too many for the caches."""
    print("\nRatios: the time over that of our bfloat16 product, by the clock / by processor time; below 1 is faster.")
    print(f"| in → out | rows | bf16 ns | {' | '.join(SCHEMES)} |")
    print("|---" * (3 + len(SCHEMES)) + "|")
    for k, n in dict.fromkeys(shape for model in SHAPES.values() for shape in model):
        if shapes and f"{k}x{n}" not in shapes:
            continue
        weight, copies = torch.randn(n, k) * 0.02, max(1, min(64, int(WORKING_SET / (k * n * 2))))
        packed = {"bf16": [kernels.pack(weight.bfloat16(), None) for _ in range(copies)]}
        for name, scheme in SCHEMES.items():
            codes = quantize(weight, scheme)
            packed[name] = [kernels.pack_codes(codes, None) for _ in range(copies)]
        for m in ROWS:
            x = torch.randn(m, k, dtype=torch.bfloat16)
            runs = {name: in_turn([partial(kernels.linear, x, p) for p in each]) for name, each in packed.items()}
            result = timings(runs, rounds)
            ratios = " | ".join(result[name].ratio(result["bf16"]) for name in SCHEMES)
            print(f"| {k} → {n} | {m} | {1e9 * result['bf16'].seconds:,.0f} | {ratios} |", flush=True)


def attention_case(kernels: CpuKernels, dtype: torch.dtype, spec: AttentionSpec, contexts: list[int], new: int) -> Run:
    """One layer's attention of the last `new` tokens of each context."""
    block_size = 16
    counts = [-(-context // block_size) for context in contexts]
    order = torch.randperm(sum(counts)).to(torch.int32)
    tables = torch.zeros(len(contexts), max(counts), dtype=torch.int32)
    for i, count in enumerate(counts):
        tables[i, :count] = order[sum(counts[:i]) : sum(counts[:i]) + count]
    # 12 layers' worth of KV, in turn, so that it comes from where it would.
    shape = (sum(counts), spec.num_kv_heads, block_size, spec.head_dim)
    layers = [(torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)) for _ in range(12)]
    q = torch.randn(len(contexts) * new, spec.num_heads, spec.head_dim).to(dtype)
    batch = AttentionBatch(
        query_starts=torch.arange(len(contexts) + 1, dtype=torch.int32) * new,
        context_lengths=torch.tensor(contexts, dtype=torch.int32),
        block_tables=tables,
        slots=torch.empty(0, dtype=torch.int64),
        positions=torch.empty(0, dtype=torch.int64),
    )
    return in_turn([lambda kv=kv: kernels.attention(q, kv[0], kv[1], batch, spec) for kv in layers])


def attention(kernels: CpuKernels, dtype: torch.dtype, rounds: int) -> None:
    spec = AttentionSpec(num_heads=12, num_kv_heads=4, head_dim=64, scale=0.125)
    generator = torch.Generator().manual_seed(0)
    contexts = torch.randint(100, 300, (64,), generator=generator).tolist()
    run = attention_case(kernels, dtype, spec, contexts, 1)
    seconds = medians({"ours": run}, rounds)["ours"]
    read = sum(contexts) * 2 * 4 * 64 * dtype.itemsize
    print(
        f"attention, 64 sequences of ~200, 1 new token: {1e3 * seconds:.3f} ms, {read / seconds / 1e9:.1f} GB/s of KV"
    )
    for context, sequences in ((512, 1), (512, 4), (2048, 1)):
        run = attention_case(kernels, dtype, spec, [context] * sequences, context)
        q, k = torch.randn(2, sequences, 12, context, 64).to(dtype)
        peer = medians({"ours": run, "sdpa": partial(F.scaled_dot_product_attention, q, k, k, is_causal=True)}, rounds)
        flops = sequences * 12 * 2 * 64 * context * (context + 1)
        rate = flops / peer["ours"] / 1e9
        ratio = peer["sdpa"] / peer["ours"]
        print(
            f"attention, prefill of {sequences} × {context}: {1e3 * peer['ours']:.3f} ms, {rate:.0f} GFLOP/s, "
            f"sdpa {ratio:.2f}x"
        )
    run = attention_case(kernels, dtype, spec, [8192], 1)
    seconds = medians({"ours": run}, rounds)["ours"]
    read = 8192 * 2 * 4 * 64 * dtype.itemsize
    print(f"attention, 1 sequence of 8192, 1 new token: {1e3 * seconds:.3f} ms, {read / seconds / 1e9:.1f} GB/s of KV")


def rows(kernels: CpuKernels, dtype: torch.dtype, rounds: int) -> None:
    cos_sin = torch.randn(4096, 2, 32)
    for tokens in (1, 64, 512):
        x, weight = torch.randn(tokens, 768, dtype=dtype), torch.ones(768, dtype=dtype)
        wide, qkv = torch.randn(tokens, 4096, dtype=dtype), torch.randn(tokens, 20, 64, dtype=dtype)
        none, places = torch.empty(0, dtype=torch.int32), torch.arange(tokens)
        batch, kv = AttentionBatch(none, none, none, places, places), torch.zeros(2, 64, 4, 16, 64, dtype=dtype)
        result = medians(
            {
                "rms_norm": lambda x=x, w=weight: kernels.rms_norm(x, w, 1e-5),
                "F.rms_norm": lambda x=x, w=weight: F.rms_norm(x, (768,), w, 1e-5),
                "gated": lambda wide=wide: kernels.gated(wide, "silu"),
                "place": lambda qkv=qkv, b=batch, kv=kv: kernels.place(
                    qkv[:, :12], qkv[:, 12:16], qkv[:, 16:], b, cos_sin, (kv[0], kv[1])
                ),
            },
            rounds,
        )
        print(f"{tokens:4} rows: " + ", ".join(f"{name} {1e6 * s:.1f} µs" for name, s in result.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--only", choices=["linear", "quantized", "attention", "rows"])
    parser.add_argument("--shapes", nargs="*", help="as 768x1280; all if absent")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    kernels, dtype = CpuKernels(args.isa), getattr(torch, args.dtype)
    print(f"{kernels.name}, {args.dtype}, {args.threads} threads")
    if args.only in (None, "rows"):
        rows(kernels, dtype, args.rounds)
    if args.only in (None, "attention"):
        attention(kernels, dtype, args.rounds)
    if args.only in (None, "linear"):
        linear(kernels, dtype, args.rounds, args.shapes or [])
    if args.only in (None, "quantized"):
        quantized(kernels, args.rounds, args.shapes or [])


if __name__ == "__main__":
    main()
