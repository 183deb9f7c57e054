"""The attention half of a decoder layer: everything around the kernel that sees the KV."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from orcinus.kernels import AttentionBatch, AttentionSpec, KernelSet, PackedLinear
from orcinus.layers.norm import Norm
from orcinus.layers.partial import PartialSum, project


@dataclass(frozen=True, slots=True)
class Attention:
    """Projections, per-head norms and rotation around the kernel.

    Args:
        qkv: query, key and value projections in one product.
        query_norm: over each head of the queries (Qwen3), before rotation; likewise key_norm.
        cos_sin: rotary table as the kernel wants it; None where positions enter otherwise.
        partial: the heads are some of the layer's; see `project`.
    """

    kernels: KernelSet
    spec: AttentionSpec
    qkv: PackedLinear
    output: PackedLinear
    query_norm: Norm | None
    key_norm: Norm | None
    cos_sin: Tensor | None
    partial: PartialSum | None = None

    def __call__(self, x: Tensor, batch: AttentionBatch, kv: tuple[Tensor, Tensor]) -> Tensor:
        """[tokens, hidden] → [tokens, hidden]; the tokens' K and V are written first."""
        kernels, spec = self.kernels, self.spec
        qkv = kernels.linear(x, self.qkv).view(len(x), -1, spec.head_dim)  # [tokens, heads + 2 · kv_heads, head_dim]
        q, k, v = torch.split(qkv, [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], dim=1)
        if self.query_norm is not None:
            q = self.query_norm(q)
        if self.key_norm is not None:
            k = self.key_norm(k)
        q = kernels.place(q, k, v, batch, self.cos_sin, kv)
        return project(kernels, kernels.attention(q, *kv, batch, spec), self.output, self.partial)
