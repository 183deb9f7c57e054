"""What a mixture-of-experts layer costs, against Transformers' own block in the same run.

    python benchmarks/moe.py [--threads 1] [--hidden 512] [--experts 32] [--top-k 4] [--inner 256] [--tokens 1 ... 1024]

The same random weights and rows go through our layer, with both kernel sets, and through Qwen3's block with each of
Transformers' ways to run experts. Contestants take turns, so that what else the machine does hits all of them. Each
figure is thousands of tokens a second: the median of the runs, with slowest and fastest in brackets. First the outputs
are compared: a contestant that computes something else would be no peer.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from orcinus.kernels import KernelSet, cpu
from orcinus.kernels.reference import ReferenceKernels
from orcinus.layers.mlp import GatedMlp
from orcinus.layers.moe import MoeMlp, Router
from orcinus.parallel import Alone, Span

PEERS = ("grouped_mm", "batched_mm", "eager")
# Copies of weights that batched_mm gathers for each token grow past the memory of a small machine.
MOST_BATCHED_TOKENS = 128
# Errors of bfloat16 that a few choices of other experts make; a wrong weight makes ten times more.
LARGEST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 0.1}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of the layer."""

    hidden: int
    experts: int
    top_k: int
    inner: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("threads", 1), ("hidden", 512), ("experts", 32), ("top-k", 4), ("inner", 256), ("runs", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1024])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sizes = Sizes(arguments.hidden, arguments.experts, arguments.top_k, arguments.inner)
    print(
        f"{sizes}, {arguments.threads} thread(s), torch {torch.__version__}; 1000 tokens/s: median (slowest, fastest)"
    )
    for dtype in (torch.float32, torch.bfloat16):
        print(dtype)
        with torch.inference_mode():
            for tokens in arguments.tokens:
                _measure(sizes, dtype, tokens, arguments.runs)


def _measure(sizes: Sizes, dtype: torch.dtype, tokens: int, runs: int) -> None:
    x = torch.randn(tokens, sizes.hidden, generator=torch.Generator().manual_seed(1)).to(dtype)
    contestants = _contestants(sizes, dtype, tokens)
    expected = contestants["eager"](x).float()
    for name, run in contestants.items():
        error = (run(x).float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        if error > LARGEST_ERROR[dtype]:
            raise SystemExit(f"{name} computes something else: relative error {error:.3g}")
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(runs):
        for name, run in contestants.items():
            started_at = time.perf_counter()
            run(x)
            seconds[name].append(time.perf_counter() - started_at)
    print(f"  {tokens} tokens: " + ", ".join(f"{name} {_rates(taken, tokens)}" for name, taken in seconds.items()))


def _contestants(sizes: Sizes, dtype: torch.dtype, tokens: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Ours and theirs, by name; all have the weights of the same block."""
    blocks = {
        name: _block(sizes, dtype, name) for name in PEERS if name != "batched_mm" or tokens <= MOST_BATCHED_TOKENS
    }
    sets: list[KernelSet] = [ReferenceKernels(), *([cpu.CpuKernels()] if cpu.available() else [])]
    ours = {f"orcinus ({kernels.name})": _layer(blocks["eager"], kernels, sizes.top_k) for kernels in sets}
    return {**ours, **{name: lambda x, block=block: block(x[None])[0] for name, block in blocks.items()}}


def _block(sizes: Sizes, dtype: torch.dtype, implementation: str) -> Qwen3MoeSparseMoeBlock:
    config = Qwen3MoeConfig(
        hidden_size=sizes.hidden,
        num_experts=sizes.experts,
        num_experts_per_tok=sizes.top_k,
        moe_intermediate_size=sizes.inner,
        norm_topk_prob=True,
    )
    config._experts_implementation = implementation
    block = Qwen3MoeSparseMoeBlock(config).eval()
    generator = torch.Generator().manual_seed(0)
    for weight in block.parameters():
        weight.data.normal_(0, weight.shape[-1] ** -0.5, generator=generator)
    return block.to(dtype)


def _layer(block: Qwen3MoeSparseMoeBlock, kernels: KernelSet, top_k: int) -> MoeMlp:
    pairs = zip(block.experts.gate_up_proj.detach(), block.experts.down_proj.detach(), strict=True)
    experts = (GatedMlp(kernels, kernels.pack(up, None), kernels.pack(down, None), "silu") for up, down in pairs)
    gate = kernels.pack(block.gate.weight.detach(), None)
    router, every = Router(kernels, gate, top_k, normalise_weights=True), Span.whole(len(block.experts.down_proj))
    return MoeMlp(router, tuple(experts), every, Alone())


def _rates(seconds: list[float], tokens: int) -> str:
    rates = sorted(tokens / taken / 1e3 for taken in seconds)
    return f"{statistics.median(rates):.1f} ({rates[0]:.1f}, {rates[-1]:.1f})"


if __name__ == "__main__":
    main()
