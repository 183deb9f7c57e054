"""From token ids to the first hidden states."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from orcinus.kernels import KernelSet, PackedLinear
from orcinus.layers.norm import Norm
from orcinus.parallel import Span, TensorGroup


@dataclass(frozen=True, slots=True)
class SomeWords:
    """Which rows of the vocabulary this rank holds, and who holds the others."""

    group: TensorGroup
    rows: Span

    def look_up(self, tokens: Tensor, words: Tensor) -> Tensor:
        """As if the table were here in one piece: all ranks but one add nothing."""
        local = tokens - self.rows.start
        here = (local >= 0) & (local < len(self.rows))
        found = F.embedding(local.where(here, 0), words).masked_fill(~here[:, None], 0)
        return self.group.all_reduce(found.float()).to(words.dtype)


@dataclass(frozen=True, slots=True)
class Embedding:
    """Looks up words, and adds what a family knows of positions and segments. None where it knows nothing.

    Args:
        words: [vocab_size, width], or those rows of it that `some` names.
        scale: words are multiplied by it.
        projection: from the words' width to the model's.
        positions: [max_positions, hidden].
        segments: [2 or more, hidden].
        norm: over the sum.
    """

    kernels: KernelSet
    words: Tensor
    scale: float | None = None
    projection: PackedLinear | None = None
    positions: Tensor | None = None
    segments: Tensor | None = None
    norm: Norm | None = None
    some: SomeWords | None = None

    def __call__(self, tokens: Tensor, positions: Tensor, segments: Tensor | None) -> Tensor:
        """int64 [tokens] each → [tokens, hidden]; without segments all are 0."""
        x = F.embedding(tokens, self.words) if self.some is None else self.some.look_up(tokens, self.words)
        if self.scale is not None:
            x = x * self.scale
        if self.projection is not None:
            x = self.kernels.linear(x, self.projection)
        if self.segments is not None:
            x = x + (self.segments[0] if segments is None else F.embedding(segments, self.segments))
        if self.positions is not None:
            x = x + F.embedding(positions, self.positions)
        return x if self.norm is None else self.norm(x)
