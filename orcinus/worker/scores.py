"""Finding few entries in wide rows without reading the rows again: the maximum of each run of columns says where.

Everything here compares and counts, so a row's answer can't depend on the rows beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

RUN = 64
LOWEST = torch.finfo(torch.float32).min
# Rows are gone through in tiles of about this many entries, so that what is made of them stays small.
TILE = 2**19


def padded_width(columns: int) -> int:
    """The multiple of `RUN` that holds this many columns."""
    return -(-columns // RUN) * RUN


def padded(x: Tensor) -> Tensor:
    """`x` [rows, columns], contiguous, with columns of -inf up to a multiple of `RUN`; `x` itself where that holds."""
    missing = padded_width(x.shape[1]) - x.shape[1]
    return F.pad(x, (0, missing), value=-torch.inf) if missing else x.contiguous()


def tiles(rows: Tensor, width: int) -> tuple[Tensor, ...]:
    """`rows` in pieces of at most `TILE` entries, or one row."""
    return torch.split(rows, max(1, TILE // width)) if len(rows) else ()


@dataclass(frozen=True, slots=True)
class Entries:
    """Ragged entries of some rows, ordered by row, then column. `row` counts within the rows that were asked."""

    row: Tensor
    column: Tensor
    value: Tensor

    def matrix(self, num_rows: int) -> tuple[Tensor, Tensor]:
        """Columns int64 and values float32, both [num_rows, n], n a multiple of `RUN`; -inf fills the ends."""
        counts = torch.bincount(self.row, minlength=num_rows)
        longest = int(counts.max()) if num_rows else 0
        width = max(RUN, padded_width(longest))
        starts = counts.cumsum(0) - counts
        place = self.row * width + torch.arange(len(self.row), device=self.row.device) - starts[self.row]
        columns = self.column.new_zeros(num_rows * width).scatter_(0, place, self.column)
        values = self.value.new_full((num_rows * width,), -torch.inf).scatter_(0, place, self.value)
        return columns.view(num_rows, width), values.view(num_rows, width)


class Scores:
    """Float32 scores [rows, width] beside the maximum of each run of `RUN` columns.

    A NaN is the maximum of its run; it is found by `best` and by nothing else.
    """

    def __init__(self, x: Tensor) -> None:
        assert x.is_contiguous(), "runs are read as rows of a view"
        assert x.shape[1] % RUN == 0, "see `padded`"
        self.x = x
        self.num_runs = x.shape[1] // RUN
        self._tops = x.view(len(x), self.num_runs, RUN).amax(dim=2)

    def best(self) -> tuple[Tensor, Tensor]:
        """Value and column of each row's maximum; of equals, the lowest column. NaN if the row holds one."""
        values, run = self._tops.max(dim=1)
        first = torch.arange(len(run), device=run.device) * self.num_runs
        return values, run * RUN + self._runs(first + run).argmax(dim=1)

    def rank_floor(self, rows: Tensor, rank: Tensor) -> Tensor:
        """A value that at least `rank` (int64 [rows], >= 1) entries reach, close to the rank-th largest."""
        reachable = rank.clamp(max=self.num_runs)
        tops = self._tops.index_select(0, rows).topk(int(reachable.max()), dim=1).values
        floor = tops.gather(1, (reachable - 1)[:, None]).squeeze(1)
        return torch.where(rank > self.num_runs, LOWEST, floor).clamp(min=LOWEST)

    def at_least(self, rows: Tensor, floor: Tensor) -> Entries:
        """All entries of `rows` that reach their row's `floor` (> -inf)."""
        row, run = self._runs_reaching(rows, floor)
        runs = self._runs(rows[row] * self.num_runs + run)
        hit, lane = (runs >= floor[row, None]).nonzero(as_tuple=True)
        return Entries(row[hit], run[hit] * RUN + lane, runs[hit, lane])

    def count_at_least(self, rows: Tensor, floor: Tensor) -> Tensor:
        """How many entries of each of `rows` reach `floor`, int64 [rows]."""
        row, run = self._runs_reaching(rows, floor)
        hits = (self._runs(rows[row] * self.num_runs + run) >= floor[row, None]).sum(dim=1)
        return torch.zeros_like(rows).index_add_(0, row, hits)

    def _runs_reaching(self, rows: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
        row, run = (self._tops.index_select(0, rows) >= floor[:, None]).nonzero(as_tuple=True)
        return row, run

    def _runs(self, numbers: Tensor) -> Tensor:
        """The runs of these numbers, counted through the whole matrix, [numbers, RUN]."""
        return self.x.view(-1, RUN).index_select(0, numbers)
