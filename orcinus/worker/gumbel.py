"""Gumbel noise from a counter-based generator, and the draw argmax(log p + g) (SYSTEMS.md, section 11).

The noise of a token is a pure function of (seed, answer index, position, token id): integer hashes, then two logarithms
in float64 rounded once to float32. So a draw is the same in any batch and on any device, and a draft model can be given
the target's noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orcinus.worker.scores import Scores

# Words: lowbias32 (Wellons, "Prospecting for hash functions"). Keys: SplitMix64 (Steele et al., OOPSLA '14).
_MULTIPLIER_1, _MULTIPLIER_2 = 0x7FEB352D, 0x846CA68B
_GOLDEN = 0x9E3779B97F4A7C15
_MASK_64 = 2**64 - 1
_HIGH_BITS, _LOW_BITS = 31, 21
# Torch runs an elementwise operation on fewer entries than this in the calling thread. A long chain of such operations
# is cut so: it stays in the cache, and doesn't pay for a barrier among threads at each link (on cores shared with
# other processes, a barrier can cost a time slice).
_SERIAL = 32768


def row_keys(seeds: Sequence[int], indices: Sequence[int], positions: Sequence[int]) -> NDArray[np.int32]:
    """Key of each row's noise, int32 [rows, 4]. Seeds count modulo 2**64."""
    state = _mix64(np.array([seed & _MASK_64 for seed in seeds], dtype=np.uint64))
    state = _mix64(state + np.array(indices, dtype=np.uint64))
    state = _mix64(state + np.array(positions, dtype=np.uint64))
    return np.stack([_mix64(state), _mix64(state + np.uint64(_GOLDEN))], axis=1).view(np.int32)


def _mix64(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One step of SplitMix64 from each state."""
    z = z + np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _token_hashes(width: int) -> NDArray[np.int32]:
    """lowbias32 of each token id: what a row's key is mixed into."""
    h = np.arange(width, dtype=np.uint32)
    h = (h ^ (h >> np.uint32(16))) * np.uint32(_MULTIPLIER_1)
    h = (h ^ (h >> np.uint32(15))) * np.uint32(_MULTIPLIER_2)
    return (h ^ (h >> np.uint32(16))).view(np.int32)


def _words(hashes: Tensor, key: Tensor, second_key: Tensor) -> Tensor:
    """31 random bits for each token hash: lowbias32 with a key before each round.

    Its last shift is left out: it stirs high bits into low ones, which are only the last digits here. Int32 products
    wrap on every device; `>>` copies the sign, hence the masks.
    """
    h = hashes ^ key
    h.bitwise_xor_((h >> 16).bitwise_and_(0xFFFF)).mul_(_MULTIPLIER_1).add_(second_key)
    h.bitwise_xor_((h >> 15).bitwise_and_(0x1FFFF)).mul_(_MULTIPLIER_2 - 2**32)
    return (h >> 1).bitwise_and_(0x7FFFFFFF)


@dataclass(frozen=True, slots=True)
class Contestants:
    """Entries that may win their row's draw: row of the batch, token id, log p up to a constant of the row."""

    row: Tensor
    token: Tensor
    score: Tensor


class GumbelNoise:
    """The noise of token ids 0 .. width - 1 on one device."""

    def __init__(self, width: int, device: torch.device) -> None:
        self._hashes = torch.from_numpy(_token_hashes(width)).to(device)

    def at(self, keys: Tensor, tokens: Tensor) -> Tensor:
        """g of each pair of a row key (int32 [n, 4]) and a token id (int64 [n]), float32 [n]."""
        hashes = self._hashes[tokens]
        high = _words(hashes, keys[:, 0], keys[:, 1]).to(torch.float64)
        low = (_words(hashes, keys[:, 2], keys[:, 3]) >> (_HIGH_BITS - _LOW_BITS)).to(torch.float64)
        # 1 - u: 52 bits and a half, so it is exact in float64, and never 0 or 1.
        complement = (high * 2**_LOW_BITS + low + 0.5) * 2.0 ** -(_HIGH_BITS + _LOW_BITS)
        g: Tensor = (1 - complement).log_().neg_().log_().neg_()
        return g.to(torch.float32)

    def contestants(self, scaled: Tensor, rows: Tensor, keys: Tensor, tokens: Tensor | None = None) -> Contestants:
        """The few entries of `scaled` [r, n] that can win their draw; a superset, of about two entries a row.

        Args:
            scaled: log p up to a constant of the row, -inf where a token is out; n is a multiple of `RUN`.
            rows: int64 [r], which rows of the batch these are.
            keys: int32 [batch, 4].
            tokens: int64 [r, n], the ids of the entries; the columns themselves if missing.

        argmax(log p + g) is argmax(p / e) with e = -log(u), and e >= 1 - u. So p / (1 - u), which needs no logarithm,
        bounds a token's chance from above: only those above what the likeliest of them really has are looked at again.
        """
        share = torch.softmax(scaled, dim=1)
        race = Scores(self._race(share, keys.index_select(0, rows), tokens))
        entries = race.at_least(torch.arange(len(rows), device=rows.device), _sure_floor(race, share))
        columns = entries.column
        token = columns if tokens is None else tokens[entries.row, columns]
        return Contestants(rows[entries.row], token, scaled[entries.row, columns])

    def _race(self, share: Tensor, key: Tensor, tokens: Tensor | None) -> Tensor:
        """share / (1 - u), with 1 - u in units of 2**-31 and rounded down, [r, n]."""
        hashes = self._hashes.expand(share.shape) if tokens is None else self._hashes[tokens]
        race = torch.empty_like(share)
        for rows, columns in _pieces(share):
            complement = _words(hashes[rows, columns], key[rows, 0, None], key[rows, 1, None]).to(torch.float32)
            # The little more keeps 0 / 0 away, and is lost in any other number.
            torch.div(share[rows, columns], complement.add_(2.0**-30), out=race[rows, columns])
        return race

    def draw(self, contestants: Sequence[Contestants], keys: Tensor) -> Tensor:
        """The token that wins each row of the batch, int64; of equals, the lowest id. Without contestants it is 0."""
        row, token, score = (
            torch.cat([getattr(part, name) for part in contestants]) for name in ("row", "token", "score")
        )
        total = score.to(torch.float64) + self.at(keys[row], token)
        best = total.new_full((len(keys),), -torch.inf).scatter_reduce_(0, row, total, "amax")
        won = total == best[row]
        return token.new_zeros(len(keys)).scatter_reduce_(0, row[won], token[won], "amin", include_self=False)


def _pieces(x: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of rows and columns that cover `x` in fewer than `_SERIAL` entries each; all of it on another device."""
    num_rows, width = x.shape
    columns = min(width, _SERIAL - 1) if x.device.type == "cpu" else width
    rows = max(1, (_SERIAL - 1) // columns) if x.device.type == "cpu" else num_rows
    for row in range(0, num_rows, max(1, rows)):
        for column in range(0, width, columns):
            yield slice(row, row + rows), slice(column, column + columns)


def _sure_floor(race: Scores, share: Tensor) -> Tensor:
    """A value of `race` that each row's winner reaches: p / e of its best entry, from below, with room for rounding."""
    bound, column = race.best()
    p = share.gather(1, column[:, None]).squeeze(1)
    complement = (p / bound + 1) * 2.0**-_HIGH_BITS
    # Near 1 the logarithm loses its digits; there e is at most 53 log 2.
    e = torch.where(complement < 0.99, -torch.log1p(-complement), 37.0)
    return p / e * (2.0**-_HIGH_BITS * 0.999)
