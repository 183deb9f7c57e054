"""The KV memory of one device: allocated once, cut into blocks, never resized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from orcinus.core.plan import BlockCopy
from orcinus.worker.huge_pages import zeros


@dataclass(frozen=True, slots=True)
class KVShape:
    """Bytes follow from it: 2 · layers · kv_heads · head_dim · block_size · bytes an element, a block."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers, keys and values."""
        elements = 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.block_size
        return elements * self.dtype.itemsize


class KVCache:
    """[layers, 2, blocks, kv_heads, block_size, head_dim]; `layers` are the (keys, values) views of each layer."""

    def __init__(self, shape: KVShape, num_blocks: int, device: torch.device) -> None:
        sizes = (shape.num_layers, 2, num_blocks, shape.num_kv_heads, shape.block_size, shape.head_dim)
        on_cpu = device.type == "cpu"
        self._data = zeros(sizes, shape.dtype) if on_cpu else torch.zeros(sizes, dtype=shape.dtype, device=device)
        self.dtype = shape.dtype
        self.layers: list[tuple[Tensor, Tensor]] = [(layer[0], layer[1]) for layer in self._data]

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """Carry out the copies in their order: a later one may read what an earlier one wrote."""
        for copy in copies:
            self._data[:, :, copy.target] = self._data[:, :, copy.source]

    def block(self, block: int) -> Tensor:
        """All layers of one block, [layers, 2, kv_heads, block_size, head_dim]: a view to read or to fill."""
        return self._data[:, :, block]

    def blocks_on_host(self, count: int) -> Tensor:
        """Memory of the host for so many blocks, [count, layers, 2, kv_heads, block_size, head_dim]."""
        layers, two, _, heads, size, width = self._data.shape
        is_pinned = self._data.is_cuda and count > 0
        return torch.empty(count, layers, two, heads, size, width, dtype=self.dtype, pin_memory=is_pinned)
