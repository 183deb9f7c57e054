"""Mixture of experts: each token runs through the few feed-forward blocks that its router picks.

Routing is a token→expert table and its inverse (DeepSpeed-Inference; SYSTEMS.md, sections 5 and 13), never a mask: work
and memory grow with tokens · top_k. The router's own scores [tokens, experts] are the only tensors with both a token
and an expert axis. No token is dropped, and an expert that no token picked is not touched.

Promise 2 holds: a token's choice depends on its own scores, an expert's product on the token's row (`kernels`), and
the sum over a token's experts goes by expert id, in float32, operation by operation. Where ranks share the experts,
each adds up its own so, and their sums are added in the order of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from orcinus.kernels import KernelSet, PackedLinear
from orcinus.layers.mlp import Mlp
from orcinus.parallel import Span, TensorGroup


@dataclass(frozen=True, slots=True)
class Routing:
    """Which experts each token runs through, by expert id.

    Args:
        experts: int64 [tokens, top_k], ascending in each row.
        weights: float32 [tokens, top_k], what each expert's output counts.
    """

    experts: Tensor
    weights: Tensor


@dataclass(frozen=True, slots=True)
class Router:
    """The `top_k` largest of softmax(gate(x)); of equal ones, those with the lower id.

    Args:
        gate: [hidden] → [experts].
        normalise_weights: a token's weights are divided by their sum, else they sum to less than 1.
    """

    kernels: KernelSet
    gate: PackedLinear
    top_k: int
    normalise_weights: bool

    def __call__(self, x: Tensor) -> Routing:
        """Choose for x [tokens, hidden]."""
        scores = self.kernels.linear_float32(x, self.gate).softmax(-1)  # [tokens, experts]
        # `topk` leaves open which of equal scores it takes, so the choice could depend on the library's version.
        ranked, ids = scores.sort(dim=-1, descending=True, stable=True)
        weights = ranked[:, : self.top_k]
        if self.normalise_weights:
            # `cumsum` adds one by one. The order in `sum` is the library's choice and may differ with the rows.
            weights = weights / weights.cumsum(-1)[:, -1:]
        experts, order = ids[:, : self.top_k].sort(dim=-1)
        return Routing(experts, weights.gather(1, order))


@dataclass(frozen=True, slots=True)
class ExpertTable:
    """The inverse of the token→expert table, for some of the experts. A row is a token's copy for one of them.

    Args:
        tokens: int64 [rows], each row's token; rows are sorted by expert, then token.
        rows: int64 [tokens, top_k], where a token's copies are, by expert; the row after the last for other experts'.
        counts: rows of each expert.
    """

    tokens: Tensor
    rows: Tensor
    counts: list[int]

    @classmethod
    def of(cls, experts: Tensor, mine: Span) -> ExpertTable:
        """Invert `experts` [tokens, top_k] by one stable sort. Waits for the device once, for the counts."""
        choices = experts.flatten()
        counts: list[int] = choices.bincount(minlength=mine.size).tolist()
        before, own = sum(counts[: mine.start]), counts[mine.start : mine.stop]
        order = choices.argsort(stable=True)[before : before + sum(own)]
        rows = torch.full_like(choices, len(order))
        rows[order] = torch.arange(len(order), device=order.device)
        return cls(order // experts.shape[1], rows.view_as(experts), own)

    def segments(self) -> Iterator[tuple[int, int, int]]:
        """(place among the experts, first row, row after the last) of each expert that has rows."""
        start = 0
        for expert, count in enumerate(self.counts):
            if count:
                yield expert, start, start + count
            start += count


@dataclass(frozen=True, slots=True)
class MoeMlp:
    """Σ weight · expert(x) over the experts that the router picks for each token.

    Args:
        experts: those of this rank.
        mine: which they are.
        group: the ranks that share them.
    """

    router: Router
    experts: tuple[Mlp, ...]
    mine: Span
    group: TensorGroup

    def __call__(self, x: Tensor) -> Tensor:
        """[tokens, hidden] → [tokens, hidden]."""
        routing = self.router(x)
        table = ExpertTable.of(routing.experts, self.mine)
        mine = _combined(self._expert_rows(x, table), table.rows, routing.weights)
        return self.group.all_reduce(mine).to(x.dtype)

    @property
    def products(self) -> tuple[PackedLinear, ...]:
        """The router's, then the experts' one after the other."""
        return (self.router.gate, *(product for expert in self.experts for product in expert.products))

    def _expert_rows(self, x: Tensor, table: ExpertTable) -> Tensor:
        """Each token's copies through their experts, sorted as in the table, and zeros for those of other ranks."""
        out = x.new_empty(len(table.tokens) + 1, x.shape[1])
        out[-1] = 0
        for expert, start, end in table.segments():
            # Gathered expert by expert: a slice of all copies would begin at any alignment, which may show in the bits.
            out[start:end] = self.experts[expert](x.index_select(0, table.tokens[start:end]))
        return out


def _combined(copies: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Sum each token's copies by expert id → float32 [tokens, hidden].

    Args:
        copies: [rows, hidden].
        rows: [tokens, top_k], where a token's copies are.
        weights: float32 [tokens, top_k].
    """
    total = torch.zeros(len(rows), copies.shape[1], device=copies.device)
    for row, weight in zip(rows.unbind(1), weights.unbind(1), strict=True):
        # Product, then sum, each rounded: where one operation fuses both, the scalar tail of a tensor may not.
        total += copies.index_select(0, row).float().mul_(weight[:, None])
    return total
