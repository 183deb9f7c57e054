"""Layers on tape answer as the layers themselves, bit for bit, and what can't be on tape isn't."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from orcinus.errors import PlanError
from orcinus.kernels import AttentionBatch, AttentionSpec, KernelSet, LayerCall
from orcinus.kernels.cpu import CpuKernels
from orcinus.kernels.cpu.library import supported
from orcinus.kernels.cpu.recording import MAX_ROWS
from orcinus.kernels.quantized import Scheme, quantize
from orcinus.layers.attention import Attention
from orcinus.layers.mlp import GatedMlp, PlainMlp
from orcinus.layers.norm import LayerNorm, RmsNorm
from orcinus.layers.residual import ParallelLayer, PreNormLayer

pytestmark = pytest.mark.skipif(not supported(), reason="no native CPU kernels for this processor")

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, BLOCKS, BLOCK = 96, 4, 2, 32, 160, 40, 16
SPEC = AttentionSpec(HEADS, KV_HEADS, HEAD_DIM, HEAD_DIM**-0.5)


def normal(*shape: int) -> Tensor:
    return 0.1 * torch.randn(*shape)


def attention(kernels: KernelSet, dtype: torch.dtype) -> Attention:
    qkv = kernels.pack(normal((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN).to(dtype), normal(HEADS * 64))
    output = kernels.pack_codes(quantize(normal(HIDDEN, HEADS * HEAD_DIM), Scheme(8, None)), None)
    angles = torch.arange(512.0)[:, None] / 10.0 ** torch.arange(HEAD_DIM // 2)
    return Attention(kernels, SPEC, qkv, output, None, None, torch.stack((angles.cos(), angles.sin()), 1))


def pre_norm(kernels: KernelSet, dtype: torch.dtype) -> LayerCall:
    """As in a llama."""
    inwards, down = (kernels.pack(normal(*s).to(dtype), None) for s in ((2 * INNER, HIDDEN), (HIDDEN, INNER)))
    norms = (RmsNorm(kernels, (1 + normal(HIDDEN)).to(dtype), 1e-5) for _ in range(2))
    return PreNormLayer(attention(kernels, dtype), GatedMlp(kernels, inwards, down, "silu"), *norms)


def parallel(kernels: KernelSet, dtype: torch.dtype) -> LayerCall:
    """As in a GPT-NeoX."""
    up, down = (kernels.pack(normal(*s).to(dtype), normal(s[0])) for s in ((INNER, HIDDEN), (HIDDEN, INNER)))
    norms = (LayerNorm(kernels, (1 + normal(HIDDEN)).to(dtype), normal(HIDDEN).to(dtype), 1e-5) for _ in range(2))
    return ParallelLayer(attention(kernels, dtype), PlainMlp(kernels, up, down, "gelu"), *norms)


def some_layers(kernels: KernelSet, dtype: torch.dtype) -> list[LayerCall]:
    torch.manual_seed(3)
    return [make(kernels, dtype) for make in (pre_norm, parallel, pre_norm)]


def memory(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    return [tuple(torch.zeros(2, BLOCKS, KV_HEADS, BLOCK, HEAD_DIM, dtype=dtype)) for _ in range(3)]  # type: ignore[misc]


def batch_of(counts: Sequence[int], starts: Sequence[int]) -> AttentionBatch:
    """Sequence i goes on by counts[i] tokens from starts[i]; its blocks are every len(counts)-th."""
    tables = torch.arange(BLOCKS)[: BLOCKS // len(counts) * len(counts)].view(-1, len(counts)).T
    positions = [start + i for count, start in zip(counts, starts, strict=True) for i in range(count)]
    owners = [owner for owner, count in enumerate(counts) for _ in range(count)]
    slots = [int(tables[o, p // BLOCK]) * BLOCK + p % BLOCK for o, p in zip(owners, positions, strict=True)]
    contexts = [count + start for count, start in zip(counts, starts, strict=True)]
    return AttentionBatch(
        query_starts=torch.tensor([0, *counts]).cumsum(0).to(torch.int32),
        context_lengths=torch.tensor(contexts, dtype=torch.int32),
        block_tables=tables.to(torch.int32).contiguous(),
        slots=torch.tensor(slots),
        positions=torch.tensor(positions),
    )


# Prefill, company, alone, more than a tape holds, as many as it does; each more than once.
RUNS = [
    ([5], [0]), ([1], [5]), ([1], [6]), ([9, 4, 1], [0, 0, 7]), ([1, 1, 1], [9, 4, 8]), ([1, 1, 1], [10, 5, 9]),
    ([MAX_ROWS + 1], [0]), ([MAX_ROWS], [129]), ([1], [257]), ([1, 1], [258, 3]),
]  # fmt: skip


def through(layers: Sequence[LayerCall], x: Tensor, batch: AttentionBatch, kv: list[tuple[Tensor, Tensor]]) -> Tensor:
    for layer, layer_kv in zip(layers, kv, strict=True):
        x = layer(x, batch, layer_kv)
    return x.clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tape_changes_no_bit(dtype: torch.dtype) -> None:
    kernels = CpuKernels()
    layers = some_layers(kernels, dtype)
    taped, kv, kv_of_tapes = kernels.taped(layers), memory(dtype), memory(dtype)
    for counts, starts in RUNS:
        x, batch = torch.randn(sum(counts), HIDDEN).to(dtype), batch_of(counts, starts)
        with torch.inference_mode():
            expected = through(layers, x, batch, kv)
            assert torch.equal(through(taped, x, batch, kv_of_tapes), expected)
        for one, other in zip(kv, kv_of_tapes, strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])


def test_tapes_are_played() -> None:
    """Or else all else here would say nothing of them: once recorded, a layer isn't asked any more."""
    kernels = CpuKernels()
    asked = []
    layers = some_layers(kernels, torch.bfloat16)
    watched = [lambda *run, layer=layer: asked.append(layer) or layer(*run) for layer in layers]
    taped, kv = kernels.taped(watched), memory(torch.bfloat16)
    for counts, starts in [([4], [0]), ([1], [4]), ([1], [5]), ([2, 2], [6, 0]), ([1], [8])]:
        through(taped, torch.randn(sum(counts), HIDDEN).bfloat16(), batch_of(counts, starts), kv)
    assert len(asked) == 2 * len(layers)


@pytest.mark.parametrize("rows", [1, 3])
def test_what_torch_computes_is_not_on_tape(rows: int) -> None:
    kernels = CpuKernels()
    inner = pre_norm(kernels, torch.float32)
    layers = [lambda x, batch, kv: inner(x, batch, kv) * 2, lambda x, batch, kv: inner(x, batch, kv).add_(1)]
    (taped, adding), (kv, other) = kernels.taped(layers), memory(torch.float32)[:2]
    for start in (0, rows, 2 * rows):
        x, batch = torch.randn(rows, HIDDEN), batch_of([rows], [start])
        assert torch.equal(taped(x, batch, kv), 2 * inner(x, batch, other))
        assert torch.equal(adding(x, batch, kv), 1 + inner(x, batch, other))


def test_a_tape_says_what_is_wrong() -> None:
    kernels = CpuKernels()
    (taped,), kv = kernels.taped([pre_norm(kernels, torch.float32)]), memory(torch.float32)[0]
    for start in (0, 1):
        taped(torch.randn(1, HIDDEN), batch_of([1], [start]), kv)
    outside = batch_of([1], [2])
    outside.slots[0] = BLOCKS * BLOCK
    with pytest.raises(PlanError, match="a slot outside"):
        taped(torch.randn(1, HIDDEN), outside, kv)


def test_other_keys_and_values_are_written() -> None:
    """A tape holds where the KV lies; a layer that is given another one runs by itself."""
    kernels = CpuKernels()
    layer = pre_norm(kernels, torch.float32)
    (taped,), first, second, third = kernels.taped([layer]), *memory(torch.float32)
    x, batch = torch.randn(2, HIDDEN), batch_of([2], [0])
    for kv in (first, second):
        taped(x, batch, kv)
    layer(x, batch, third)
    assert torch.equal(second[0], third[0])
    assert torch.equal(second[1], third[1])
