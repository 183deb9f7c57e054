"""Which tokens of a row may be drawn: top-k, min-p and top-p, exact without sorting the vocabulary.

Order and meaning are vLLM's: min-p against the likeliest token, top-k keeps what equals the k-th, top-p keeps the
smallest set of the likeliest (of equals, the lower id first) whose share of what min-p and top-k left reaches p.
Masses are integers in units of 2**-32 of the likeliest token's, so that their sums have no order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from orcinus.worker.scores import LOWEST, Entries, Scores, tiles

# Tokens looked at first in a row without a top-k; most nuclei of a language model are smaller.
_FIRST_LOOK = 128
# A top-k up to this is settled at the first look.
_MAX_COUNTED = 1024
# Tokens below exp(-23) of the likeliest have mass 0.
_BUCKETS_PER_NAT, _BUCKETS = 32, 23 * 32
_MASS_UNIT = 2.0**32


@dataclass(frozen=True, slots=True)
class Limits:
    """How each row of a batch is truncated, one entry a row.

    Args:
        temperature: float32, > 0.
        top_k: int64, >= 1; the row's width if there is no top-k.
        top_p: float64, 1 if there is none.
        log_min_p: float32, -inf if there is none.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    log_min_p: Tensor

    def of(self, rows: Tensor) -> Limits:
        """The limits of these rows."""
        return Limits(self.temperature[rows], self.top_k[rows], self.top_p[rows], self.log_min_p[rows])


@dataclass(frozen=True, slots=True)
class Shortlist:
    """The tokens left of some rows.

    Args:
        rows: int64 [r], rows of the batch.
        scaled: float32 [r, n], (logit - best) / temperature, -inf where a token is out; n is a multiple of `RUN`.
        tokens: int64 [r, n], the ids; None if they are 0 .. n - 1.
    """

    rows: Tensor
    scaled: Tensor
    tokens: Tensor | None


class Truncation:
    """Truncates rows of one batch.

    Args:
        scores: penalised logits, before temperature.
        best: each row's largest logit, [batch].
        limits: of each row of the batch.
    """

    def __init__(self, scores: Scores, best: Tensor, limits: Limits) -> None:
        self._scores = scores
        self._best = best
        self._limits = limits
        self._width = scores.x.shape[1]

    def whole(self, rows: Tensor) -> Iterator[Shortlist]:
        """All tokens of `rows` (int64), a tile at a time."""
        for tile in tiles(rows, self._width):
            scaled = self._scores.x.index_select(0, tile).sub_(self._best[tile, None])
            yield Shortlist(tile, scaled.div_(self._limits.temperature[tile, None]), None)

    def shortlists(self, rows: Tensor) -> Iterator[Shortlist]:
        """What truncation leaves of `rows` (int64): one list for nearly all, and more for those it is too short for."""
        if not len(rows):
            return
        shortlist, complete = self._first_look(rows)
        if bool(complete.all()):
            yield shortlist
            return
        assert shortlist.tokens is not None
        yield Shortlist(rows[complete], shortlist.scaled[complete], shortlist.tokens[complete])
        for part in self.whole(rows[~complete]):
            yield Shortlist(part.rows, self._second_look(part), None)

    def _first_look(self, rows: Tensor) -> tuple[Shortlist, Tensor]:
        """Truncate `rows` among their likeliest tokens, and say for which rows that settles it."""
        limits = self._limits.of(rows)
        counted = limits.top_k <= _MAX_COUNTED
        rank_floor = self._scores.rank_floor(rows, torch.where(counted, limits.top_k, _FIRST_LOOK))
        min_p_floor = self._min_p_floor(rows, limits)
        entries = self._scores.at_least(rows, torch.maximum(rank_floor, min_p_floor))
        columns, logits = entries.matrix(len(rows))
        logits, order = logits.sort(dim=1, descending=True, stable=True)
        scaled = (logits - self._best[rows, None]) / limits.temperature[:, None]
        kth = logits.gather(1, limits.top_k.clamp(max=logits.shape[1])[:, None] - 1)
        kept = (logits >= kth) & (scaled >= limits.log_min_p[:, None])
        mass = torch.where(kept, _mass(scaled), 0)
        until = mass.cumsum(dim=1)
        unrestricted = (limits.top_k >= self._width) & torch.isneginf(limits.log_min_p)
        wanted = _wanted(limits.top_p, torch.where(unrestricted, self._whole_mass(rows, unrestricted), until[:, -1]))
        kept &= until - mass < wanted
        # Nothing more is looked for in a row that isn't finite: it fails elsewhere.
        complete = counted | (min_p_floor >= rank_floor) | ~torch.isfinite(self._best[rows])
        complete |= unrestricted & (until[:, -1] >= wanted.squeeze(1))
        return Shortlist(rows, torch.where(kept, scaled, -torch.inf), columns.gather(1, order)), complete

    def _min_p_floor(self, rows: Tensor, limits: Limits) -> Tensor:
        """The logit where min-p ends, or a little less: the exact cut is made on what is above."""
        best, distance = self._best[rows], limits.log_min_p * limits.temperature
        slack = 1e-5 * (best.abs() - distance)
        return (best + distance - slack).clamp(min=LOWEST)

    def _whole_mass(self, rows: Tensor, asked: Tensor) -> Tensor:
        """Mass of the whole vocabulary in those of `rows` that are `asked`, 0 in the others; float64 [rows]."""
        mass = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        shares = [torch.softmax(part.scaled, dim=1).amax(dim=1) for part in self.whole(rows[asked])]
        if shares:
            # The likeliest token's own mass is one unit.
            mass[asked] = _MASS_UNIT / torch.cat(shares).to(torch.float64)
        return mass

    def _second_look(self, part: Shortlist) -> Tensor:
        """`part.scaled`, whole rows, truncated."""
        limits = self._limits.of(part.rows)
        floor, has_top_k = limits.log_min_p, limits.top_k < self._width
        if bool(has_top_k.any()):
            k = torch.where(has_top_k, limits.top_k, 1)
            kth = part.scaled.topk(int(k.max()), dim=1).values.gather(1, k[:, None] - 1).squeeze(1)
            floor = torch.where(has_top_k, torch.maximum(kth, floor), floor)
        return _nucleus(_from(part.scaled, floor), limits.top_p)


def _nucleus(scaled: Tensor, top_p: Tensor) -> Tensor:
    """`scaled` [r, n] (0 for the likeliest) without what top-p takes away, n being too large to sort.

    Masses are added up by bucket of log-probability; only the bucket in which top-p is reached is sorted.
    """
    bucket = (scaled * -_BUCKETS_PER_NAT).clamp_(max=_BUCKETS - 1).to(torch.int64)
    masses = torch.zeros(len(scaled), _BUCKETS, dtype=torch.int64, device=scaled.device)
    until = masses.scatter_add_(1, bucket, _mass(scaled)).cumsum(dim=1)
    wanted = _wanted(top_p, until[:, -1])
    crossing = (until < wanted).sum(dim=1, keepdim=True)
    before = torch.where(crossing > 0, until.gather(1, (crossing - 1).clamp(min=0)), 0)
    row, column = (bucket == crossing).nonzero(as_tuple=True)
    columns, values = Entries(row, column, scaled[row, column]).matrix(len(scaled))
    values, order = values.sort(dim=1, descending=True, stable=True)
    mass = _mass(values)
    kept = before + mass.cumsum(dim=1) - mass < wanted
    floor = values.gather(1, kept.sum(dim=1, keepdim=True).clamp(min=1) - 1)
    row, place = ((values == floor) & ~kept & torch.isfinite(values)).nonzero(as_tuple=True)
    scaled[row, columns.gather(1, order)[row, place]] = -torch.inf
    return _from(scaled, floor.squeeze(1))


def _mass(scaled: Tensor) -> Tensor:
    """Probabilities in units of 2**-32 of the likeliest token's, int64: the sum of a million of them is exact."""
    return scaled.to(torch.float64).exp_().mul_(_MASS_UNIT).round_().to(torch.int64)


def _wanted(top_p: Tensor, whole: Tensor) -> Tensor:
    """The mass that top-p asks for, float64 [r, 1]: a token is kept while what comes before it is less."""
    return torch.where(top_p < 1, top_p * whole.to(torch.float64), torch.inf)[:, None]


def _from(scaled: Tensor, floor: Tensor) -> Tensor:
    """`scaled` (<= 0), with -inf below each row's `floor` (<= 0).

    Dividing by 1 or 0 does it many times faster than torch's masked fills; a 0 of `scaled` is always divided by 1.
    """
    return scaled.div_(torch.ge(scaled, floor[:, None], out=torch.empty_like(scaled)))
