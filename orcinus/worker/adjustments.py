"""What changes logits before temperature: allowed and banned tokens, bias, min_tokens, and the three penalties."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orcinus.worker.sample_row import SampleRow


class Adjustments:
    """The adjustments of one composition of rows, in vLLM's order. What doesn't depend on tokens is built once.

    Args:
        rows: the batch; later batches given to `apply` have the same parameters in the same order.
        width: columns of the logits; a token id past them is ignored.
    """

    def __init__(self, rows: Sequence[SampleRow], width: int, device: torch.device) -> None:
        self._width = width
        self._device = device
        params = [row.params for row in rows]
        self._allowed_rows = self._tensor([i for i, p in enumerate(params) if p.allowed_token_ids is not None])
        self._allowed = self._places((i, p.allowed_token_ids or ()) for i, p in enumerate(params))
        self._banned = self._places((i, p.banned_token_ids or ()) for i, p in enumerate(params))
        biases = [(i, _within(p.logit_bias, width)) for i, p in enumerate(params) if p.logit_bias]
        self._biased = self._places((i, bias) for i, bias in biases)
        self._bias = self._tensor(list(chain.from_iterable(bias.values() for _, bias in biases)), torch.float32)
        self._held = [i for i, p in enumerate(params) if p.min_tokens > 0]
        self._penalised = [
            i for i, p in enumerate(params)
            if p.repetition_penalty != 1 or p.presence_penalty != 0 or p.frequency_penalty != 0
        ]  # fmt: skip
        self._penalties = self._tensor(
            [[p.repetition_penalty, p.frequency_penalty, p.presence_penalty] for p in params], torch.float32
        )
        self.any = bool(self._held or self._penalised) or any(
            p.allowed_token_ids or p.banned_token_ids or p.logit_bias for p in params
        )

    def apply(self, logits: Tensor, rows: Sequence[SampleRow], counts: TokenCounts) -> None:
        """Adjust `logits` [rows, width] in place; only the entries concerned are read or written."""
        flat = logits.view(-1)
        if len(self._allowed_rows):
            kept = flat[self._allowed]
            logits.index_fill_(0, self._allowed_rows, -torch.inf)
            flat.scatter_(0, self._allowed, kept)
        flat.index_fill_(0, self._banned, -torch.inf)
        flat.index_add_(0, self._biased, self._bias)
        early = [(i, rows[i].end_token_ids) for i in self._held if rows[i].num_generated < rows[i].params.min_tokens]
        flat.index_fill_(0, self._places(early), -torch.inf)
        if self._penalised:
            self._penalise(flat, rows, counts)

    def _penalise(self, flat: Tensor, rows: Sequence[SampleRow], counts: TokenCounts) -> None:
        """Repetition over prompt and answer, then frequency and presence over the answer.

        A token that occurs several times is computed several times, from the same values: equal writes need no order.
        """
        place, generated, lengths = self._logs(rows)
        owner = self._tensor(self._penalised).repeat_interleave(lengths)
        repetition, frequency, presence = self._penalties[owner].unbind(1)
        occurrences = counts.of(place, generated, len(flat)).to(torch.float32)
        old = flat[place]
        new = torch.where(old > 0, old / repetition, old * repetition)
        new = new - frequency * occurrences - presence * (occurrences > 0)
        flat.scatter_(0, place, new)

    def _logs(self, rows: Sequence[SampleRow]) -> tuple[Tensor, Tensor, Tensor]:
        """Places of the tokens of all penalised rows in one list, whether each was generated, and the rows' lengths."""
        logs, generated = [], []
        for i in self._penalised:
            row = rows[i]
            # The prompt counts for the repetition penalty alone.
            start = 0 if row.params.repetition_penalty != 1 else row.num_prompt_tokens
            logs.append(row.tokens[start:].astype(np.int64) + i * self._width)
            generated.append(np.arange(start, len(row.tokens)) >= row.num_prompt_tokens)
        lengths = self._tensor([len(log) for log in logs])
        return self._array(np.concatenate(logs)), self._array(np.concatenate(generated)), lengths

    def _places(self, ids_by_row: Iterable[tuple[int, Iterable[int]]]) -> Tensor:
        """(row, token ids) pairs as places in the flattened logits."""
        width = self._width
        return self._tensor([i * width + token for i, ids in ids_by_row for token in ids if token < width])

    def _tensor(
        self, values: Sequence[int] | Sequence[float] | list[list[float]], dtype: torch.dtype = torch.int64
    ) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self._device)

    def _array(self, values: NDArray[np.int64] | NDArray[np.bool_]) -> Tensor:
        return torch.from_numpy(values).to(self._device)


def _within(bias: dict[int, float], width: int) -> dict[int, float]:
    return {token: value for token, value in bias.items() if token < width}


class TokenCounts:
    """Counts of tokens per row, by one scatter-add over the batch.

    The table is as large as the logits, and all zero between calls: clearing what was touched costs as little as
    counting it, clearing the table would cost more than the penalties.
    """

    def __init__(self, device: torch.device) -> None:
        self._table = torch.zeros(0, dtype=torch.int32, device=device)

    def of(self, place: Tensor, counted: Tensor, size: int) -> Tensor:
        """For each entry of `place` (int64, < size), how many entries with the same place are `counted`."""
        if len(self._table) < size:
            self._table = torch.zeros(size, dtype=torch.int32, device=self._table.device)
        self._table.scatter_add_(0, place, counted.to(torch.int32))
        counts = self._table[place]
        self._table.index_fill_(0, place, 0)
        return counts
