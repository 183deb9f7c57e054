"""Somebody else's experts, each on a whole tile: their own code gives a row other bits with other numbers of rows."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from orcinus.models.foreign.plug import Plug


def run_experts(experts: torch.nn.Module, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """The experts function that `transformers` calls: hidden [TILE, size], chosen and weights [TILE, top k].

    Every expert that some row chose runs on all rows, through the module's own code, as if it were the only choice;
    rows that didn't choose it drop the result. A row adds up its experts in the order of their numbers. So products
    have TILE rows, always, and no weights are read more than once. What padding chose doesn't count.
    """
    tile = cast(Plug, experts.orcinus_plug).tile
    real = chosen if tile is None else chosen[: tile.num_rows]
    # What the decorator of `transformers` keeps of the class's own forward.
    own: Any = type(experts).forward.__wrapped__  # type: ignore[attr-defined]
    out = torch.zeros_like(hidden)
    for expert in sorted(set(real.flatten().tolist())):
        routed = chosen == expert
        weight = torch.where(routed, weights, 0).sum(dim=-1, keepdim=True)
        part = own(experts, hidden, torch.full_like(chosen[:, :1], expert), weight)
        out = torch.where(routed.any(dim=-1, keepdim=True), out + part, out)
    return out
