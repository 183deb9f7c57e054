"""Quantities over time in bounded memory, and the window of iterations that a report shows in full."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from orcinus.core.journal import Part
from orcinus.core.plan import NewSequence, Work

_MOST_POINTS = 1024
WINDOW = 96
# A longer queue than ever before moves the window; by how much, so that it doesn't move at each arrival.
_WORSE = 1.25


class Point(msgspec.Struct, array_like=True):
    """The state as a plan was issued: the highest of each quantity since the last point."""

    at: float
    waiting: int
    running: int
    blocks: int
    tokens: int


class Series:
    """At most 1,024 points; when they are full, each two become one, and the next ones cover twice as much."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self._stride = 1
        self._left = 0

    def add(self, at: float, waiting: int, running: int, blocks: int, tokens: int) -> None:
        """One iteration."""
        if self._left:
            self._left -= 1
            _raise_to(self.points[-1], waiting, running, blocks, tokens)
            return
        if len(self.points) == _MOST_POINTS:
            self._halve()
        self.points.append(Point(at, waiting, running, blocks, tokens))
        self._left = self._stride - 1

    def _halve(self) -> None:
        kept = self.points[::2]
        for point, other in zip(kept, self.points[1::2], strict=True):
            _raise_to(point, other.waiting, other.running, other.blocks, other.tokens)
        self.points = kept
        self._stride *= 2


def _raise_to(point: Point, waiting: int, running: int, blocks: int, tokens: int) -> None:
    if waiting > point.waiting:
        point.waiting = waiting
    if running > point.running:
        point.running = running
    if blocks > point.blocks:
        point.blocks = blocks
    if tokens > point.tokens:
        point.tokens = tokens


class Bar(msgspec.Struct, array_like=True, frozen=True):
    """One iteration of the window: who ran how many tokens from which position."""

    iteration: int
    began_at: float
    done_at: float
    work: tuple[tuple[int, int, int], ...]


class Glimpse(NamedTuple):
    """One iteration that may become a bar: its work, each part `further` along than it says."""

    iteration: int
    began_at: float
    done_at: float
    work: Sequence[Work | Part]
    further: int = 0

    def parts(self) -> Iterator[Part]:
        """Sequence, position and tokens, before they are moved."""
        return ((p.seq_id, p.start, p.num_tokens) if isinstance(p, Work) else p for p in self.work)


@dataclass
class Window:
    """The latest iterations; kept as they were when the queue was longest, or from an instant that the user chose."""

    chosen_at: float | None = None
    kept: list[Bar] = field(default_factory=list)
    _latest: deque[Glimpse] = field(default_factory=lambda: deque(maxlen=WINDOW))
    # By sequence: its job's number, and the iteration that stated it (last).
    _stated: dict[int, tuple[int, int]] = field(default_factory=dict)
    _leaving: deque[tuple[int, int]] = field(default_factory=deque)
    _longest: float = 0.0

    def note(self, ran: Glimpse, new: Iterable[NewSequence], finished: Iterable[int], waiting: int) -> None:
        """One iteration is over, whose plan told of `new` and `finished` sequences, and so many jobs wait."""
        if self.chosen_at is not None and self.kept:
            return
        self._follow(ran.iteration, new, finished)
        if self.chosen_at is not None and ran.began_at < self.chosen_at:
            return
        self._latest.append(ran)
        is_full = len(self._latest) == WINDOW
        if is_full and (self.chosen_at is not None or waiting > self._longest):
            self._longest = waiting * _WORSE
            self.kept = self._bars()

    def bars(self) -> list[Bar]:
        """The window, in order."""
        return self.kept or self._bars()

    def _follow(self, iteration: int, new: Iterable[NewSequence], finished: Iterable[int]) -> None:
        """Remember whose sequence each one is, until no iteration of the window can name it."""
        for each in new:
            assert each.params.seed is not None
            self._stated[each.seq_id] = (each.params.seed, iteration)
        self._leaving.extend([(iteration, seq_id) for seq_id in finished])
        while self._leaving and self._leaving[0][0] < iteration - WINDOW:
            left_at, seq_id = self._leaving.popleft()
            # Preempted ones leave, too, and are stated again under the same number.
            if seq_id in self._stated and self._stated[seq_id][1] < left_at:
                del self._stated[seq_id]

    def _bars(self) -> list[Bar]:
        return [
            Bar(
                ran.iteration,
                ran.began_at,
                ran.done_at,
                tuple((self._stated[seq_id][0], start + ran.further, tokens) for seq_id, start, tokens in ran.parts()),
            )
            for ran in self._latest
        ]
