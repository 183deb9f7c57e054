"""One vector of each prompt that asks for one: its states made one, or a classifier's scores of that."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from orcinus.core.request import Pooling
from orcinus.models import Model


def pool(model: Model, hidden: Tensor, wanted: Sequence[tuple[Pooling, range]]) -> list[Tensor]:
    """The vectors, float32 [hidden_size] or [labels] each.

    Args:
        hidden: [tokens, hidden_size], what `Model.forward` gave.
        wanted: how, and the rows of the sequence. `mean` and `cls` have all its rows, since it runs whole.

    A vector's bits depend on its own rows alone: norms and products keep rows apart, and a mean adds up rows of its
    own tensor, in an order that their number decides.
    """
    states = torch.stack([_pooled(model, hidden[rows.start : rows.stop], pooling) for pooling, rows in wanted])
    classified = [i for i, (pooling, _) in enumerate(wanted) if pooling.classify]
    if not classified:
        return list(states)
    scores = dict(zip(classified, model.class_scores(states[classified].to(hidden.dtype)), strict=True))
    return [scores.get(i, state) for i, state in enumerate(states)]


def _pooled(model: Model, rows: Tensor, pooling: Pooling) -> Tensor:
    """Float32 [hidden_size]."""
    if pooling.type == "mean":
        return model.states(rows).float().mean(dim=0)
    return model.states(rows[:1] if pooling.type == "cls" else rows[-1:])[0].float()
