"""Our attention inside somebody else's modules: what they call, and the tiles of rows that they run in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from orcinus.errors import CheckpointError
from orcinus.kernels import AttentionBatch, AttentionSpec, KernelSet
from orcinus.models import ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Rows of every call of the modules. Also what keeps elementwise loops free of scalar tails: 32 rows of any width are a
# multiple of the vector length.
TILE = 32
_BLOCK_SIZE = 16
# What may reach attention besides its operands without changing what it computes.
_HARMLESS = frozenset({"position_ids"})


@dataclass(slots=True)
class Tile:
    """The rows that run at the moment: their batch, and the KV of all layers."""

    batch: AttentionBatch
    num_rows: int
    kv: Sequence[tuple[Tensor, Tensor]]


@dataclass(slots=True)
class Plug:
    """What our attention function finds at every module of one model.

    Args:
        tile: None while the model is not run by us.
        states: given instead of running the body, when only the head is wanted.
        seen: windows of the layers that have called, in order, for the check at load.
    """

    kernels: KernelSet
    tile: Tile | None = None
    states: Tensor | None = None
    seen: dict[int, int | None] = field(default_factory=dict)
    key_shapes: set[tuple[int, int]] = field(default_factory=set)
    objections: list[str] = field(default_factory=list)


def plug_in(model: PreTrainedModel, kernels: KernelSet) -> Plug:
    """Hang the plug on every module, and let the body be passed over when only the head is wanted."""
    from transformers.modeling_outputs import MoeModelOutputWithPast

    plug = Plug(kernels)
    for module in model.modules():
        module.orcinus_plug = plug  # type: ignore[assignment]
    body = model.base_model
    if body is model:
        raise CheckpointError(f"{type(model).__name__} has no body apart from its head, so its states can't be had.")
    run_body = body.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if plug.states is not None:
            # The one with the most fields: heads read what their own bodies give.
            return MoeModelOutputWithPast(last_hidden_state=plug.states)
        return run_body(*args, **kwargs)

    body.forward = forward
    return plug


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function that `transformers` calls: query [1, heads, TILE, head_dim] → [1, TILE, heads, head_dim].

    Rows past the tile's own are padding: their K and V go nowhere and their result is 0.
    """
    plug = cast(Plug, module.orcinus_plug)
    layer: int = module.layer_idx  # type: ignore[assignment]
    _note(plug, layer, key, value, attention_mask, sliding_window, options)
    out = query.new_zeros(query.shape[2], query.shape[1] * query.shape[3])
    tile = plug.tile
    if tile is not None and not plug.objections:
        q, k, v = (x[0].transpose(0, 1)[: tile.num_rows].contiguous() for x in (query, key, value))
        keys, values = tile.kv[layer]
        plug.kernels.write_kv(k, v, keys, values, tile.batch.slots)
        spec = AttentionSpec(
            num_heads=q.shape[1],
            num_kv_heads=k.shape[1],
            head_dim=q.shape[2],
            scale=q.shape[2] ** -0.5 if scaling is None else scaling,
            window=sliding_window,
            soft_cap=softcap,
        )
        out[: tile.num_rows] = plug.kernels.attention(q, keys, values, tile.batch, spec)
    return out.view(1, query.shape[2], query.shape[1], query.shape[3]), None


def _note(
    plug: Plug,
    layer: int,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    window: int | None,
    options: dict[str, Any],
) -> None:
    """For the check at load: who called, and whatever our attention would leave out."""
    plug.seen[layer] = window
    plug.key_shapes.add((key.shape[1], key.shape[3]))
    if mask is not None:
        plug.objections.append("it gives attention a mask of its own")
    if value.shape != key.shape:
        plug.objections.append(f"its values are shaped {list(value.shape)}, its keys {list(key.shape)}")
    for name, given in options.items():
        if isinstance(given, Tensor) and name not in _HARMLESS:
            plug.objections.append(f"its attention takes {name}")


def run_tile(model: PreTrainedModel, plug: Plug, tokens: Tensor, tile: tuple[int, Tile]) -> Tensor:
    """States of one tile's rows; `tile` comes with its first row."""
    start, plug.tile = tile
    num_rows, positions = plug.tile.num_rows, plug.tile.batch.positions
    ids = padded(tokens[start : start + num_rows])
    with torch.inference_mode():
        try:
            out = model.base_model(input_ids=ids[None], position_ids=padded(positions)[None], use_cache=False)
        finally:
            plug.tile = None
    states: Tensor = out.last_hidden_state
    return states[0, :num_rows]


def padded(rows: Tensor) -> Tensor:
    """[TILE, ...]: zeros after the rows."""
    padding = rows.new_zeros(TILE - len(rows), *rows.shape[1:])
    return torch.cat((rows, padding))


def tiles(batch: AttentionBatch, kv: Sequence[tuple[Tensor, Tensor]]) -> Iterator[tuple[int, Tile]]:
    """Cut an iteration into tiles, in order: what a tile writes, later ones read."""
    starts, positions = batch.query_starts.tolist(), batch.positions.tolist()
    for start in range(0, starts[-1], TILE):
        end = min(start + TILE, starts[-1])
        inside = [i for i in range(len(starts) - 1) if starts[i] < end and starts[i + 1] > start]
        ends = [min(starts[i + 1], end) for i in inside]
        device = batch.slots.device
        part = AttentionBatch(
            query_starts=torch.tensor([0, *(each - start for each in ends)], dtype=torch.int32, device=device),
            context_lengths=torch.tensor([positions[each - 1] + 1 for each in ends], dtype=torch.int32, device=device),
            block_tables=batch.block_tables[inside],
            slots=batch.slots[start:end],
            positions=batch.positions[start:end],
        )
        yield start, Tile(part, end - start, kv)


def fresh_kv(
    model: PreTrainedModel, shape: ModelShape, num_sequences: int
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """KV of a few blocks a sequence, and their block tables, for the checks at load."""
    parameter = next(model.parameters())
    blocks = -(-(3 * TILE) // _BLOCK_SIZE)
    size = (num_sequences * blocks, shape.num_kv_heads, _BLOCK_SIZE, shape.head_dim)
    kv = [(parameter.new_zeros(size), parameter.new_zeros(size)) for _ in range(shape.num_layers)]
    tables = torch.arange(num_sequences * blocks, dtype=torch.int32, device=parameter.device)
    return kv, tables.view(num_sequences, blocks)


def batch_of(work: list[tuple[Tensor, int]], tables: Tensor) -> AttentionBatch:
    """(tokens, first position) of each sequence as a batch."""
    device = tables.device
    lengths = torch.tensor([0, *(len(tokens) for tokens, _ in work)], device=device)
    positions = torch.cat([torch.arange(start, start + len(tokens), device=device) for tokens, start in work])
    owners = torch.repeat_interleave(torch.arange(len(work), device=device), lengths[1:])
    return AttentionBatch(
        query_starts=lengths.cumsum(0).to(torch.int32),
        context_lengths=torch.tensor([s + len(t) for t, s in work], dtype=torch.int32, device=device),
        block_tables=tables,
        slots=tables[owners, positions // _BLOCK_SIZE].long() * _BLOCK_SIZE + positions % _BLOCK_SIZE,
        positions=positions,
    )
