"""Array maths behind one interface, chosen once at start. Knows packed tokens, block tables and lengths only.

Every kernel keeps promise 2: the bits of a row depend on that row, its position and its sequence's KV, never on how
many other rows came along, nor on how a prompt was cut into chunks, nor on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from orcinus.kernels.quantized import QuantizedWeight

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """What is the same for each call of one layer. `window` counts the keys seen, the query's own included."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    causal: bool = True
    window: int | None = None
    soft_cap: float | None = None


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Which rows belong to which sequence, and where its KV lies. One for all layers of an iteration.

    Args:
        query_starts: int32 [sequences + 1], rows query_starts[i] .. query_starts[i+1] are sequence i's new tokens.
        context_lengths: int32 [sequences], tokens with KV once this iteration's are written; the new tokens are the
            last ones of the context.
        block_tables: int32 [sequences, blocks], padded with 0.
        slots: int64 [tokens], block * block_size + offset at which a row's K and V are written.
        positions: int64 [tokens].
    """

    query_starts: Tensor
    context_lengths: Tensor
    block_tables: Tensor
    slots: Tensor
    positions: Tensor


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A weight in the form a kernel set likes. `data` belongs to that kernel set alone; it has `nbytes`.

    Args:
        bits: of a weight of integers, None for floats.
    """

    out_features: int
    in_features: int
    data: Any
    bias: Tensor | None
    bits: int | None = None


# A layer: x [tokens, hidden], the batch, its keys and values → [tokens, hidden].
LayerCall = Callable[[Tensor, AttentionBatch, tuple[Tensor, Tensor]], Tensor]


class KernelSet(Protocol):
    """The seam. KV tensors are [blocks, kv_heads, block_size, head_dim], block_size a multiple of 16."""

    name: str

    def pack(self, weight: Tensor, bias: Tensor | None) -> PackedLinear:
        """Prepare `weight` [out, in]; the plain copy can be dropped afterwards."""
        ...

    def pack_codes(self, weight: QuantizedWeight, bias: Tensor | None) -> PackedLinear:
        """Prepare a weight of integers; `linear` may round its rows to 8 bits as well, each by itself."""
        ...

    def linear(self, x: Tensor, packed: PackedLinear) -> Tensor:
        """[tokens, in] → [tokens, out], in x's dtype."""
        ...

    def linear_float32(self, x: Tensor, packed: PackedLinear) -> Tensor:
        """[tokens, in] → float32 [tokens, out]: for the vocabulary, where rounding would make ties."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """RMS norm over the last axis, computed in float32, in x's dtype. Any leading shape."""
        ...

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """Layer norm over the last axis."""
        ...

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y, of one shape and dtype."""
        ...

    def gated(self, x: Tensor, activation: Activation) -> Tensor:
        """[tokens, 2 · inner] → act(first half) · second half, [tokens, inner]."""
        ...

    def activate(self, x: Tensor, activation: Activation) -> Tensor:
        """Elementwise activation."""
        ...

    def place(
        self, q: Tensor, k: Tensor, v: Tensor, batch: AttentionBatch, cos_sin: Tensor | None, kv: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Turn q and k by the rotary embedding (halves, not pairs), store k and v at the batch's slots; returns q.

        q may be turned where it lies. Only `attention` of the same kernels knows how a block's bytes are laid out.

        Args:
            q: [tokens, heads, head_dim]; k and v have the KV heads.
            cos_sin: float32 [positions, 2, rotary_dim / 2]; dimensions past rotary_dim stay as they are. None: all do.
            kv: one layer's keys and values.
        """
        ...

    def attention(self, q: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch, spec: AttentionSpec) -> Tensor:
        """Attention of q [tokens, heads, head_dim] over each row's own sequence → [tokens, heads · head_dim].

        Sums over keys go in an order fixed by absolute position.
        """
        ...

    def taped(self, layers: Sequence[LayerCall]) -> tuple[LayerCall, ...]:
        """The same layers, run one after the other with as few steps in Python as these kernels know how."""
        ...
