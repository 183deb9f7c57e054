"""Runs a decoder by hand: ragged work over block tables in a shuffled, poisoned KV pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from orcinus.kernels import AttentionBatch
from orcinus.models.decoder import Decoder

BLOCK_SIZE = 16


@dataclass
class Pool:
    """A KV pool in which every slot that nobody wrote holds NaN; blocks are handed out in a shuffled order."""

    decoder: Decoder
    num_blocks: int = 64
    seed: int = 0
    tables: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = self.decoder.config
        shape = (self.num_blocks, config.num_kv_heads, BLOCK_SIZE, config.head_dim)
        dtype = self.decoder.body.embedding.words.dtype
        self.kv = [
            (torch.full(shape, torch.nan, dtype=dtype), torch.full(shape, torch.nan, dtype=dtype))
            for _ in range(config.num_layers)
        ]
        order = torch.randperm(self.num_blocks, generator=torch.Generator().manual_seed(self.seed))
        self._free = order.tolist()

    def add(self, num_tokens: int) -> int:
        """Room for a sequence of up to `num_tokens`; its number."""
        self.tables.append([self._free.pop() for _ in range(-(-num_tokens // BLOCK_SIZE))])
        return len(self.tables) - 1

    def run(self, work: Sequence[tuple[int, int, Sequence[int]]], rows: Sequence[int] | None = None) -> Tensor:
        """One iteration of (sequence, start, tokens); the logits of all rows, or of some."""
        hidden = self.hidden(work)
        with torch.inference_mode():
            return self.decoder.logits(hidden[torch.tensor(rows or range(len(hidden)))])

    def hidden(
        self, work: Sequence[tuple[int, int, Sequence[int]]], segments: Sequence[Sequence[int]] | None = None
    ) -> Tensor:
        """Likewise what the heads take. `segments` are those of each piece of work."""
        tokens = [token for _, _, piece in work for token in piece]
        marks = None if segments is None else torch.tensor([mark for piece in segments for mark in piece])
        with torch.inference_mode():
            return self.decoder.forward(torch.tensor(tokens), self._batch(work), self.kv, marks)

    def _batch(self, work: Sequence[tuple[int, int, Sequence[int]]]) -> AttentionBatch:
        starts, tables, slots, positions = [0], [], [], []
        width = max(len(self.tables[sequence]) for sequence, _, _ in work)
        for sequence, start, piece in work:
            table = self.tables[sequence]
            starts.append(starts[-1] + len(piece))
            tables.append(table + [0] * (width - len(table)))
            places = range(start, start + len(piece))
            positions += places
            slots += [table[place // BLOCK_SIZE] * BLOCK_SIZE + place % BLOCK_SIZE for place in places]
        return AttentionBatch(
            query_starts=torch.tensor(starts, dtype=torch.int32),
            context_lengths=torch.tensor([start + len(piece) for _, start, piece in work], dtype=torch.int32),
            block_tables=torch.tensor(tables, dtype=torch.int32),
            slots=torch.tensor(slots),
            positions=torch.tensor(positions),
        )


def teacher_forced(
    decoder: Decoder, sequences: Sequence[list[int]], iterations: Sequence[Sequence[tuple[int, int, int]]], **pool: int
) -> list[Tensor]:
    """Logits of all positions of each sequence, by iterations of (sequence, start, end)."""
    kv = Pool(decoder, **pool)
    numbers = [kv.add(len(tokens)) for tokens in sequences]
    parts: list[list[Tensor]] = [[] for _ in sequences]
    for iteration in iterations:
        logits = kv.run([(numbers[index], start, sequences[index][start:end]) for index, start, end in iteration])
        pieces = logits.split([end - start for _, start, end in iteration])
        for (index, _, _), piece in zip(iteration, pieces, strict=True):
            parts[index].append(piece)
    return [torch.cat(pieces) for pieces in parts]


def states(
    decoder: Decoder, sequences: Sequence[list[int]], segments: Sequence[Sequence[int]] | None = None
) -> list[Tensor]:
    """The model's output for each sequence, all of them whole in one iteration."""
    kv = Pool(decoder)
    hidden = kv.hidden([(kv.add(len(tokens)), 0, tokens) for tokens in sequences], segments)
    with torch.inference_mode():
        return list(decoder.states(hidden).split([len(tokens) for tokens in sequences]))
