"""KV for tests: what a test says in the plain order, as the kernels under test lay it out."""

from __future__ import annotations

import torch
from torch import Tensor

from orcinus.kernels import AttentionBatch, KernelSet


def written_at(slots: Tensor, positions: Tensor | None = None) -> AttentionBatch:
    """Tokens with nothing but a place."""
    none = torch.empty(0, dtype=torch.int32)
    return AttentionBatch(none, none, none, slots, torch.zeros_like(slots) if positions is None else positions)


def laid(kernels: KernelSet, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Every slot of plain [blocks, kv_heads, block_size, head_dim] keys and values, as `kernels` stores it."""
    k, v = (x.transpose(1, 2).flatten(0, 1) for x in (keys, values))  # [slots, kv_heads, head_dim]
    kv = torch.zeros_like(keys), torch.zeros_like(values)
    kernels.place(torch.zeros_like(k), k, v, written_at(torch.arange(len(k))), None, kv)
    return kv
