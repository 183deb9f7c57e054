"""The kernel set in plain torch: the oracle of the others, and the fallback wherever torch runs.

Libraries don't keep promise 2 by themselves, so two rules hold throughout. Products run in tiles of rows whose sizes
were seen to give each row the same bits (checked at start by `check.py`). Elementwise maths uses only torch's exp,
tanh and erf, besides the exact operations: silu, gelu and sigmoid round differently in the vectorised body and the
scalar tail of a tensor, so a value's bits would depend on its offset.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from orcinus.kernels import Activation, AttentionBatch, AttentionSpec, LayerCall, PackedLinear
from orcinus.kernels.quantized import QuantizedWeight

# Keys summed at a time in attention; tiles begin at multiples of this position.
KEY_TILE = 128
# With AMX, oneDNN changes its blocking beyond 32 rows.
ROW_TILE = 32
# oneDNN may sum a single row in another order.
MIN_ROWS = 2
# Most rows of a product in attention: query tokens times the heads that share a KV head.
ATTENTION_ROWS = 64
# Below these, MKL's float32 product gives other bits.
MIN_ATTENTION_ROWS = 16
# Most elements of K gathered at a time: on a CPU few, to stay near the cache and in memory already mapped.
GATHERED_ON_CPU, GATHERED_ELSEWHERE = 2**20, 2**26


class ReferenceKernels:
    """Implements `KernelSet` for float32 and bfloat16 on any device.

    Args:
        row_tile: rows of one product of `linear`. Wider than the library keeps its bits breaks promise 2.
    """

    name = "reference"

    def __init__(self, row_tile: int = ROW_TILE) -> None:
        self._row_tile = row_tile

    def pack(self, weight: Tensor, bias: Tensor | None) -> PackedLinear:
        """Prepare `weight` [out, in]: blocked for oneDNN on a CPU that has it, else as it is."""
        out_features, in_features = weight.shape
        if _onednn_takes(weight):
            # In bfloat16 bit-equal to the plain product and 1.4 to 1.7 times faster at few rows. In float32 the plain
            # one is MKL's, which cuts long sums differently for one thread and for two; this one doesn't.
            weight = torch.ops.mkldnn._reorder_linear_weight(weight, self._row_tile)
        return PackedLinear(out_features, in_features, weight, bias)

    def pack_codes(self, weight: QuantizedWeight, bias: Tensor | None) -> PackedLinear:
        """Prepare a quantised weight as the floats that it stands for; it takes their memory."""
        return replace(self.pack(weight.dequantised(), None if bias is None else bias.float()), bits=weight.bits)

    def linear(self, x: Tensor, packed: PackedLinear) -> Tensor:
        """[tokens, in] → [tokens, out], tile by tile."""
        x = x.contiguous()
        rows = x.shape[0]
        if rows <= self._row_tile:
            return self._tile(x, packed)
        out = x.new_empty(rows, packed.out_features)
        # Tiles start at multiples of the tile, so the alignment of their first byte doesn't vary either.
        for start in range(0, rows, self._row_tile):
            out[start : start + self._row_tile] = self._tile(x[start : start + self._row_tile], packed)
        return out

    def linear_float32(self, x: Tensor, packed: PackedLinear) -> Tensor:
        """[tokens, in] → float32 [tokens, out]; the library rounds to x's dtype before."""
        return self.linear(x, packed).float()

    def _tile(self, x: Tensor, packed: PackedLinear) -> Tensor:
        """One product of at most `row_tile` rows, padded up to where the library's bits agree."""
        rows = x.shape[0]
        # Nothing is known of other libraries' blocking, so there every product gets the same number of rows.
        least = MIN_ROWS if packed.data.is_mkldnn else self._row_tile
        if rows < least:
            x = F.pad(x, (0, 0, 0, least - rows))
        if packed.data.is_mkldnn:
            product: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed.data, packed.bias, "none", [], "")
        else:
            product = F.linear(x, packed.data, packed.bias)
        return product[:rows]

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """RMS norm over the last axis, computed in float32."""
        x32 = x.float()
        scale = x32.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        return (x32 * scale).mul_(weight).to(x.dtype)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """Layer norm over the last axis, computed in float32."""
        bias = None if bias is None else bias.float()
        return F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias, eps).to(x.dtype)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y, of one shape and dtype."""
        return x + y

    def gated(self, x: Tensor, activation: Activation) -> Tensor:
        """[tokens, 2 · inner] → act(first half) · second half."""
        gate, up = x.chunk(2, dim=-1)
        return _activate(gate.float(), activation).mul_(up).to(x.dtype)

    def activate(self, x: Tensor, activation: Activation) -> Tensor:
        """Elementwise activation, computed in float32."""
        return _activate(x.float(), activation).to(x.dtype)

    def place(
        self, q: Tensor, k: Tensor, v: Tensor, batch: AttentionBatch, cos_sin: Tensor | None, kv: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Turn q and k by the rotary embedding, if there is one, store k and v at the batch's slots; returns q."""
        if cos_sin is not None:
            q, k = _rotated(q, batch.positions, cos_sin), _rotated(k, batch.positions, cos_sin)
        keys, values = kv
        block_size = keys.shape[2]
        blocks, offsets = batch.slots // block_size, batch.slots % block_size
        keys[blocks, :, offsets] = k
        values[blocks, :, offsets] = v
        return q

    def taped(self, layers: Sequence[LayerCall]) -> tuple[LayerCall, ...]:
        """The same: there is no shorter way."""
        return tuple(layers)

    def attention(self, q: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch, spec: AttentionSpec) -> Tensor:
        """Attention of q [tokens, heads, head_dim] over each row's own sequence → [tokens, heads · head_dim].

        An online softmax over tiles of keys that begin at fixed positions. A tile that a row doesn't see changes
        nothing in that row, to the bit, so it doesn't matter who else makes the loop longer.
        """
        kv_heads, block_size, head_dim = keys.shape[1:]
        key_tile = block_size * max(1, KEY_TILE // block_size)
        tiles = _QueryTiles.of(batch, q.shape[0], block_size, key_tile, spec)
        # Places without a row write to one row too many.
        out = q.new_empty(q.shape[0] + 1, spec.num_heads * head_dim)
        most = GATHERED_ON_CPU if q.device.type == "cpu" else GATHERED_ELSEWHERE
        for group in tiles.groups(max(1, most // (kv_heads * key_tile * head_dim))):
            softmax = _OnlineSoftmax(q, group)
            for start, active in zip(range(0, key_tile * len(group.active), key_tile), group.active, strict=True):
                blocks = group.blocks[:active, start // key_tile]
                softmax.add(_gather(keys, blocks), _gather(values, blocks), group.visible(start, key_tile, active))
            softmax.finish(out)
        return out[:-1]


def _onednn_takes(weight: Tensor) -> bool:
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if weight.device.type != "cpu" or not available:
        return False
    return weight.dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _rotated(x: Tensor, positions: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotary embedding (halves, not pairs) of x [tokens, heads, head_dim], computed in float32."""
    half = cos_sin.shape[-1]
    cos, sin = cos_sin[positions].unsqueeze(2).unbind(1)  # each [tokens, 1, half]
    first, second = x[..., :half].float(), x[..., half : 2 * half].float()
    out = torch.empty_like(x)
    out[..., :half] = first * cos - second * sin
    out[..., half : 2 * half] = second * cos + first * sin
    out[..., 2 * half :] = x[..., 2 * half :]
    return out


def _activate(x: Tensor, activation: Activation) -> Tensor:
    """A new tensor of act(x), x in float32, from operations whose bits don't depend on a value's offset."""
    if activation == "silu":
        return x / x.neg().exp_().add_(1)
    if activation == "gelu":
        return (x * math.sqrt(0.5)).erf_().add_(1).mul_(0.5).mul_(x)
    if activation == "gelu_tanh":
        inner = (x * x).mul_(x).mul_(0.044715).add_(x).mul_(math.sqrt(2 / math.pi))
        return inner.tanh_().add_(1).mul_(0.5).mul_(x)
    return x.relu()


@dataclass(frozen=True, slots=True)
class _QueryTiles:
    """New tokens cut into tiles of up to `size` rows of one sequence, those with most keys first.

    Args:
        rows: int64 [tiles, size], rows of q; a place without one holds the number of tokens.
        positions: int64 [tiles, size], position of each row in its sequence.
        context: int64 [tiles], keys of the tile's sequence.
        blocks: int64 [tiles, key tiles, blocks in a key tile].
        active: for each key tile, how many tiles (the first ones) must look at it.
    """

    spec: AttentionSpec
    rows: Tensor
    positions: Tensor
    context: Tensor
    blocks: Tensor
    active: list[int]

    @classmethod
    def of(cls, batch: AttentionBatch, tokens: int, block_size: int, key_tile: int, spec: AttentionSpec) -> _QueryTiles:
        """Cut the batch. Never synchronises: elsewhere than on a CPU, the counts are bounds from shapes."""
        on_cpu, sequences = batch.slots.device.type == "cpu", batch.context_lengths.shape[0]
        size = 1 if tokens == sequences else max(1, ATTENTION_ROWS * spec.num_kv_heads // spec.num_heads)
        rows, owner = _cut(batch.query_starts.long(), size, None if on_cpu else tokens // size + sequences)
        context, ends = batch.context_lengths.long()[owner], batch.query_starts[1:].long()[owner, None]
        positions = context[:, None] - ends + rows
        rows = rows.where(rows < ends, tokens)
        in_tile = key_tile // block_size
        table = F.pad(batch.block_tables, (0, -batch.block_tables.shape[1] % in_tile))[owner]
        blocks = table.view(len(owner), -1, in_tile)
        if not on_cpu:
            return cls(spec, rows, positions, context, blocks, [len(owner)] * blocks.shape[1])
        keys_seen = torch.minimum(context, positions[:, -1] + 1) if spec.causal else context
        key_tiles, order = keys_seen.add(key_tile - 1).div_(key_tile, rounding_mode="floor").sort(descending=True)
        active = (key_tiles > torch.arange(int(key_tiles[0]))[:, None]).sum(1).tolist()
        return cls(spec, rows[order], positions[order], context[order], blocks[order], active)

    def groups(self, size: int) -> Iterator[_QueryTiles]:
        """The same in groups of up to `size` tiles."""
        for start in range(0, len(self.rows), size):
            part = slice(start, start + size)
            active = [min(count - start, size) for count in self.active if count > start]
            yield _QueryTiles(
                self.spec, self.rows[part], self.positions[part], self.context[part], self.blocks[part], active
            )

    def visible(self, start: int, key_tile: int, active: int) -> tuple[Tensor, Tensor | None]:
        """Which of the keys from `start` on each row sees, bool [tiles, size, keys], and which exist [tiles, keys].

        None stands for all exist, where that is known without waiting for a device.
        """
        keys = torch.arange(start, start + key_tile, device=self.rows.device)
        exists = keys < self.context[:active, None]
        positions, seen = self.positions[:active, :, None], exists[:, None, :]
        if self.spec.causal:
            seen = seen & (keys <= positions)
        if self.spec.window is not None:
            seen = seen & (keys > positions - self.spec.window)
        return seen, None if exists.device.type == "cpu" and bool(exists.all()) else exists


def _cut(starts: Tensor, size: int, bound: int | None) -> tuple[Tensor, Tensor]:
    """Tiles of `size` rows: their rows [tiles, size], past the sequence's end too, and whose they are [tiles].

    With a `bound` on the number of tiles, the surplus goes to the last sequence, all rows past its end.
    """
    counts = (starts.diff() + (size - 1)) // size
    ends = counts.cumsum(0)
    tile = torch.arange(int(ends[-1]) if bound is None else bound, device=starts.device)
    owner = torch.searchsorted(ends, tile, right=True).clamp_(max=len(counts) - 1)
    first = starts[owner] + (tile - (ends - counts)[owner]) * size
    return first[:, None] + torch.arange(size, device=starts.device), owner


def _gather(cache: Tensor, blocks: Tensor) -> Tensor:
    """Blocks [tiles, n] of a KV tensor → float32 [tiles, kv_heads, n · block_size, head_dim]."""
    kv_heads, head_dim = cache.shape[1], cache.shape[3]
    heads = torch.arange(kv_heads, device=cache.device)[:, None]
    pieces = blocks[:, None, :] * kv_heads + heads  # [tiles, kv_heads, n]
    # Taken head by head it comes in the right order: a transposing copy with a cast is ten times slower.
    taken = cache.flatten(0, 1).index_select(0, pieces.flatten())
    return taken.float().view(len(blocks), kv_heads, -1, head_dim)


class _OnlineSoftmax:
    """Running maximum, sum and weighted values of each row, float32 [tiles, kv_heads, rows, ·]."""

    def __init__(self, q: Tensor, tiles: _QueryTiles) -> None:
        self._tiles, self._spec = tiles, (spec := tiles.spec)
        self._group = spec.num_heads // spec.num_kv_heads
        num_tiles, size = tiles.rows.shape
        self._size, self._rows = size, size * self._group
        query = q[tiles.rows.clamp(max=q.shape[0] - 1)].float().mul_(spec.scale)
        # [tiles, size, kv_heads, group, head_dim] → [tiles, kv_heads, size · group, head_dim], padded as in `linear`.
        query = query.view(num_tiles, size, spec.num_kv_heads, self._group, spec.head_dim).transpose(1, 2).flatten(2, 3)
        self._padding = (0, 0, 0, max(0, MIN_ATTENTION_ROWS - self._rows))
        self._query = F.pad(query, self._padding)
        # Finite, so that a row which has seen no key yet stays as it is: exp(lowest - lowest) is 1.
        self._maximum = query.new_full((*query.shape[:3], 1), torch.finfo(torch.float32).min)
        self._total, self._sum = torch.zeros_like(self._maximum), query.new_zeros(query.shape)

    def add(self, keys: Tensor, values: Tensor, visible: tuple[Tensor, Tensor | None]) -> None:
        """One tile of keys and values [tiles, kv_heads, keys, head_dim], for the first tiles only."""
        active, (seen, exists) = keys.shape[0], visible
        scores = _product(self._query[:active], keys.transpose(2, 3))[:, :, : self._rows]
        if self._spec.soft_cap is not None:
            scores = scores.div(self._spec.soft_cap).tanh_().mul_(self._spec.soft_cap)
        # Chosen, never multiplied away: a slot that no sequence owns may hold anything, NaN included.
        scores = scores.view(active, -1, self._size, self._group, keys.shape[2])
        scores = scores.masked_fill(~seen[:, None, :, None], -math.inf).flatten(2, 3)
        if exists is not None:
            values = values.masked_fill_(~exists[:, None, :, None], 0)
        before, total, weighted = self._maximum[:active], self._total[:active], self._sum[:active]
        maximum = torch.maximum(before, scores.amax(-1, keepdim=True))
        weights = scores.sub_(maximum).exp_()
        keep = (before - maximum).exp_()
        total.mul_(keep).add_(weights.sum(-1, keepdim=True))
        weighted.mul_(keep).add_(_product(F.pad(weights, self._padding), values)[:, :, : self._rows])
        before.copy_(maximum)

    def finish(self, out: Tensor) -> None:
        """Write the rows to their places in `out` [tokens + 1, heads · head_dim]."""
        rows = self._tiles.rows
        result = (self._sum / self._total).view(len(rows), -1, self._size, self._group, self._spec.head_dim)
        out[rows] = result.transpose(1, 2).flatten(2).to(out.dtype)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Batched matrix product over the two leading axes."""
    return torch.bmm(left.flatten(0, 1), right.flatten(0, 1)).view(*left.shape[:3], right.shape[3])
