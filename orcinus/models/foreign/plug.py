"""Our attention inside somebody else's modules: what they call, and the tiles of rows that they run in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from orcinus.errors import CheckpointError
from orcinus.kernels import AttentionBatch, AttentionSpec, KernelSet
from orcinus.models import ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Rows of every call of the modules. Also what keeps elementwise loops of one or two threads free of scalar tails: 32
# rows of any width are a multiple of twice the vector length.
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


@dataclass(frozen=True, slots=True)
class Call:
    """What a layer asked of attention, noted for the check at load.

    Args:
        kv_shape: KV heads, and what a key and a value need of a row of the KV.
        objection: what our attention would leave out.
    """

    layer: int
    window: int | None
    kv_shape: tuple[int, int]
    mask: Tensor | None
    objection: str | None


@dataclass(slots=True)
class Plug:
    """What our attention function finds at every module of one model.

    Args:
        body: the modules between tokens and states; the rest is the head.
        tile: None while the model is not run by us: then calls are noted, not computed.
        states: given instead of running the body, when only the head is wanted.
        output: what the body wraps its states in, known once it has run: heads read fields of their own.
    """

    kernels: KernelSet
    body: torch.nn.Module
    tile: Tile | None = None
    states: Tensor | None = None
    calls: list[Call] = field(default_factory=list)
    output: type | None = None


def plug_in(model: PreTrainedModel, kernels: KernelSet) -> Plug:
    """Hang the plug on every module, and let the body be passed over when only the head is wanted."""
    from transformers import PreTrainedModel as WholeModel

    # Rather than `base_model`, of which some heads call a part; but some heads call themselves decoders.
    decoder: torch.nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
    body = decoder if isinstance(decoder, WholeModel) else model.base_model
    if body is model:
        raise CheckpointError(f"{type(model).__name__} has no body apart from its head, so its states can't be had.")
    plug = Plug(kernels, body)
    for module in model.modules():
        module.orcinus_plug = plug  # type: ignore[assignment]
    run_body = body.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if plug.states is not None and plug.output is not None:
            return plug.output(last_hidden_state=plug.states)
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
    """The attention function that `transformers` calls: query [1, heads, TILE, width] → [1, TILE, heads, width of v].

    Rows past the tile's own are padding: their K and V go nowhere and their result is 0. Where keys and values differ
    in width (latent attention), zeros make up the narrower one: they add nothing to a product.

    Raises:
        CheckpointError: a request made it ask for something that it didn't ask for at load.
    """
    plug = cast(Plug, module.orcinus_plug)
    layer: int = module.layer_idx  # type: ignore[assignment]
    out = query.new_zeros(query.shape[2], query.shape[1], value.shape[3])
    width = max(key.shape[3], value.shape[3])
    objection = _objection(options)
    if (tile := plug.tile) is None:
        plug.calls.append(Call(layer, sliding_window, (key.shape[1], width), attention_mask, objection))
        return out[None], None
    if attention_mask is not None or objection:
        raise CheckpointError(f"{type(module).__name__} gave its attention {objection or 'a mask'}, unlike at load.")
    q, k, v = (_rows(x, tile.num_rows, width) for x in (query, key, value))
    keys, values = tile.kv[layer]
    q = plug.kernels.place(q, k, v, tile.batch, None, (keys, values))
    spec = AttentionSpec(
        num_heads=q.shape[1],
        num_kv_heads=k.shape[1],
        head_dim=width,
        scale=query.shape[3] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        soft_cap=softcap,
    )
    result = plug.kernels.attention(q, keys, values, tile.batch, spec)
    out[: tile.num_rows] = result.view(tile.num_rows, -1, width)[..., : value.shape[3]]
    return out[None], None


def _rows(x: Tensor, num_rows: int, width: int) -> Tensor:
    """[1, heads, TILE, n] → [num_rows, heads, width]."""
    rows = x[0].transpose(0, 1)[:num_rows]
    return F.pad(rows, (0, width - x.shape[3])).contiguous()


def _objection(options: dict[str, Any]) -> str | None:
    for name, given in options.items():
        if isinstance(given, Tensor) and name not in _HARMLESS:
            return name
    return None


def run_tile(plug: Plug, tokens: Tensor, tile: tuple[int, Tile]) -> Tensor:
    """States of one tile's rows; `tile` comes with its first row."""
    start, plug.tile = tile
    num_rows, positions = plug.tile.num_rows, plug.tile.batch.positions
    ids = padded(tokens[start : start + num_rows])
    with torch.inference_mode():
        try:
            out = plug.body(input_ids=ids[None], position_ids=padded(positions)[None], use_cache=False)
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
