"""Workers that hold a model together: who holds which part, and what they say to each other about tensors.

A *stage* holds some of the layers; the workers of a stage, its *tensor ranks*, hold a slice of every one of them
(Orca, OSDI '22, §4; SYSTEMS.md, section 1).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from orcinus.errors import SystemFault

# A collective that takes longer has lost somebody.
TIMEOUT_SECONDS = 10.0


class PeerLost(SystemFault):
    """A worker waits for another one that has gone or stands still."""


class LinkLost(PeerLost):
    """The network to it is cut: not even its host answers."""

    by_others = True


_CUT = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN})


def is_cut(error: OSError) -> bool:
    """It is the network's word about a connection, not the other side's."""
    return error.errno in _CUT


def missed(words: str, error: OSError) -> PeerLost:
    """What `error` on a connection to another worker means."""
    return (LinkLost if is_cut(error) else PeerLost)(f"{words}: {error}")


@dataclass(frozen=True, slots=True)
class Place:
    """A worker's place among the workers of its model. Alone, it holds all of it."""

    tensor_rank: int = 0
    tensor_size: int = 1
    stage: int = 0
    num_stages: int = 1

    @property
    def index(self) -> int:
        """Its number: the ranks of stage 0, then those of stage 1, and so on."""
        return self.stage * self.tensor_size + self.tensor_rank

    @property
    def is_first(self) -> bool:
        """Of the first stage, which embeds."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Of the last stage, which holds the heads."""
        return self.stage == self.num_stages - 1

    @property
    def answers(self) -> bool:
        """The one worker that samples, and reports."""
        return self.is_last and self.tensor_rank == 0

    def __str__(self) -> str:
        return f"worker {self.index} (stage {self.stage}, rank {self.tensor_rank})"


def places(tensor_size: int, num_stages: int) -> list[Place]:
    """All of them, by index."""
    return [Place(rank, tensor_size, stage, num_stages) for stage in range(num_stages) for rank in range(tensor_size)]


@dataclass(frozen=True, slots=True)
class Span:
    """Positions `start` to `stop` of an axis of `size`."""

    start: int
    stop: int
    size: int

    @classmethod
    def whole(cls, size: int) -> Span:
        """All of it."""
        return cls(0, size, size)

    @classmethod
    def share(cls, size: int, part: int, num_parts: int) -> Span:
        """One of `num_parts` neighbouring parts, as equal as can be; earlier ones are the larger."""
        return cls(-(-size * part // num_parts), -(-size * (part + 1) // num_parts), size)

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def is_whole(self) -> bool:
        """Nothing is left out."""
        return len(self) == self.size

    def times(self, factor: int) -> Span:
        """The same part of an axis on which each position is `factor` wide."""
        return Span(self.start * factor, self.stop * factor, self.size * factor)


class TensorGroup(Protocol):
    """The ranks of one stage. Every call is made by all of them, in the same order, with tensors of the same rows."""

    rank: int
    size: int

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over ranks, float32, at every rank the same bits: added in the order of ranks, element by element.

        Raises:
            PeerLost: somebody isn't there.
        """
        ...

    def gather(self, x: Tensor, columns: Span) -> Tensor | None:
        """The ranks' columns side by side, float32 [rows, columns.size], at rank 0; None elsewhere.

        Args:
            columns: which of the whole this rank's are.
        """
        ...


class Alone:
    """A group of one."""

    rank = 0
    size = 1

    def all_reduce(self, x: Tensor) -> Tensor:
        """The same."""
        return x

    def gather(self, x: Tensor, columns: Span) -> Tensor | None:
        """The same."""
        return x
