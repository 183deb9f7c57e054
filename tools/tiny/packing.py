"""Documents packed into rows, so that little is computed for padding."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tiny.network import IGNORED, Batch

Document = tuple[list[int], list[bool]]  # token ids, and which of them are learnt


@dataclass(frozen=True)
class RowShape:
    """So many rows of so many tokens."""

    rows: int
    tokens: int


class RowPacker:
    """Fills the rows of one batch with documents, each put where it leaves the smallest gap."""

    def __init__(self, shape: RowShape, pad: int) -> None:
        self._shape, self._pad = shape, pad
        self._empty()

    def add(self, document: Document) -> Batch | None:
        """Take in a document of at most a row's length; the batch before it, if it fitted nowhere in that."""
        length = len(document[0])
        full = None
        if max(self._room) < length:
            full = self._packed()
            self._empty()
        best = min((room, row) for row, room in enumerate(self._room) if room >= length)[1]
        self._rows[best].append(document)
        self._room[best] -= length
        return full

    def _empty(self) -> None:
        self._rows: list[list[Document]] = [[] for _ in range(self._shape.rows)]
        self._room = [self._shape.tokens] * self._shape.rows

    def _packed(self) -> Batch:
        shape = (self._shape.rows, self._shape.tokens)
        ids, positions = torch.full(shape, self._pad), torch.zeros(shape, dtype=torch.int64)
        labels = torch.full(shape, IGNORED)
        for row, documents in enumerate(self._rows):
            start = 0
            for tokens, learnt in documents:
                end = start + len(tokens)
                ids[row, start:end] = torch.tensor(tokens)
                positions[row, start:end] = torch.arange(len(tokens))
                # The last token of a document predicts nothing, and neither does what follows an unlearnt one.
                targets = torch.where(torch.tensor(learnt), torch.tensor(tokens), IGNORED)
                labels[row, start : end - 1] = targets[1:]
                start = end
            # The padding is a document of its own, so that nothing attends across it.
            positions[row, start:] = torch.arange(self._shape.tokens - start)
        return Batch(ids, positions, labels)


def batches(documents: Iterator[Document], short: RowShape, long: RowShape, pad: int) -> Iterator[tuple[Batch, ...]]:
    """The batches of each step: one of short rows, and one of long rows whenever enough long documents came.

    A document longer than a long row is left out.
    """
    short_packer, long_packer = RowPacker(short, pad), RowPacker(long, pad)
    waiting: list[Batch] = []
    for document in documents:
        length = len(document[0])
        if length > long.tokens:
            continue
        if length > short.tokens:
            waiting += filter(None, [long_packer.add(document)])
        elif (full := short_packer.add(document)) is not None:
            yield (full, *waiting)
            waiting = []
