"""From stage to stage: hidden states go forward, sampled tokens go back to where they are embedded.

Between neighbours of one host lies a ring of shared memory. A header on a socket says what lies in it, and a byte in
return that it has been read. A stage that is ahead goes on until the ring is full.
"""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Sequence

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orcinus.parallel import PeerLost
from orcinus.parallel.shared import receive, with_timeout

# A decode batch fits into one slot, a prompt takes several.
SLOT_BYTES = 2**20
NUM_SLOTS = 64
LINK_BYTES = SLOT_BYTES * NUM_SLOTS
_MAX_HEADER_BYTES = 4096
# Ranks of a stage keep step, but a stage waits for all the work of the one before, and a long prompt on a slow machine
# is no fault. Whoever has died or stands still is noticed sooner, by the parent.
STAGE_SECONDS = 120.0
_READ = b"."


class Header(msgspec.Struct, frozen=True, array_like=True):
    """What lies in a slot: rows from `first` on, of `rows` that iteration (epoch, iteration) hands over.

    `times`: seconds that each stage so far has worked on it.
    """

    epoch: int
    iteration: int
    first: int
    rows: int
    times: tuple[float, ...]


class Handover(msgspec.Struct, frozen=True, array_like=True):
    """Tokens that one iteration sampled: packed uint32 triples (sequence, position, token)."""

    epoch: int
    tokens: bytes


class _Ring:
    """The slots of one link; `memory` is closed here."""

    def __init__(self, memory: int) -> None:
        mapped = mmap.mmap(memory, LINK_BYTES)
        os.close(memory)
        self._slots = torch.frombuffer(mapped, dtype=torch.uint8).view(NUM_SLOTS, SLOT_BYTES)
        self._next = 0

    def rows(self, count: int, width: int, dtype: torch.dtype) -> Tensor:
        """The next slot as [count, width]."""
        slot = self._slots[self._next]
        self._next = (self._next + 1) % NUM_SLOTS
        return slot[: count * width * dtype.itemsize].view(dtype).view(count, width)


class Outlet:
    """The end of a link at which states leave."""

    def __init__(self, memory: int, end: socket.socket) -> None:
        self._ring = _Ring(memory)
        self._end = with_timeout(end, STAGE_SECONDS)
        self._free = NUM_SLOTS
        self._encode = msgspec.msgpack.Encoder().encode

    def send(self, epoch: int, iteration: int, x: Tensor, times: tuple[float, ...]) -> None:
        """Hand over [tokens, hidden]; waits only for room.

        Raises:
            PeerLost: the next stage isn't there, or stands still.
        """
        rows, width = x.shape
        step = SLOT_BYTES // (width * x.dtype.itemsize)
        for first in range(0, rows, step):
            self._make_room()
            part = x[first : first + step]
            self._ring.rows(len(part), width, x.dtype).copy_(part)
            try:
                self._end.send(self._encode(Header(epoch, iteration, first, rows, times)))
            except OSError as error:
                raise PeerLost(f"the next stage is gone: {error.strerror}") from error

    def _make_room(self) -> None:
        if self._free == 0:
            read = receive(self._end, NUM_SLOTS)
            if not read:
                raise PeerLost("the next stage is gone")
            self._free += len(read)
        self._free -= 1


class Inlet:
    """The end at which they come in."""

    def __init__(self, memory: int, end: socket.socket) -> None:
        self._ring = _Ring(memory)
        self._end = with_timeout(end, STAGE_SECONDS)
        self._decode = msgspec.msgpack.Decoder(Header).decode

    def receive(
        self, epoch: int, iteration: int, rows: int, width: int, dtype: torch.dtype
    ) -> tuple[Tensor, tuple[float, ...]]:
        """The states of one iteration, [rows, width], and the times of the stages before.

        Raises:
            PeerLost: the stage before isn't there, or stands still.
        """
        x = torch.empty(rows, width, dtype=dtype)
        step = SLOT_BYTES // (width * dtype.itemsize)
        times: tuple[float, ...] = ()
        for first in range(0, rows, step):
            frame = receive(self._end, _MAX_HEADER_BYTES)
            if not frame:
                raise PeerLost("the stage before is gone")
            header = self._decode(frame)
            expected = (epoch, iteration, first, rows)
            assert (header.epoch, header.iteration, header.first, header.rows) == expected, f"{header} for {expected}"
            part = x[first : first + step]
            part.copy_(self._ring.rows(len(part), width, dtype))
            self._end.send(_READ)
            times = header.times
        return x, times


class TokenSender:
    """Tells the workers of the first stage what was sampled."""

    def __init__(self, ends: Sequence[socket.socket]) -> None:
        self._ends = [with_timeout(end, STAGE_SECONDS) for end in ends]
        self._encode = msgspec.msgpack.Encoder().encode

    def send(self, epoch: int, tokens: Sequence[tuple[int, int, int]]) -> None:
        """(sequence, position, token) of all samples of an iteration.

        Raises:
            PeerLost: somebody isn't there, or stands still.
        """
        if not self._ends:
            return
        frame = self._encode(Handover(epoch, np.array(tokens, dtype=np.uint32).tobytes()))
        for end in self._ends:
            try:
                end.send(frame)
            except OSError as error:
                raise PeerLost(f"a worker of the first stage is gone: {error.strerror}") from error


class TokenReceiver:
    """The other end."""

    def __init__(self, end: socket.socket) -> None:
        self._end = with_timeout(end, STAGE_SECONDS)
        self._decode = msgspec.msgpack.Decoder(Handover).decode

    def take(self) -> tuple[int, NDArray[np.uint32]] | None:
        """The epoch and tokens [samples, 3] of the next iteration, if they have come."""
        try:
            return self._read(self._end.recv(_MAX_TOKENS_BYTES, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return None

    def wait(self) -> tuple[int, NDArray[np.uint32]]:
        """Likewise, but they must come.

        Raises:
            PeerLost: they don't.
        """
        return self._read(receive(self._end, _MAX_TOKENS_BYTES))

    def _read(self, frame: bytes) -> tuple[int, NDArray[np.uint32]]:
        if not frame:
            raise PeerLost("the worker that samples is gone")
        handover = self._decode(frame)
        return handover.epoch, np.frombuffer(handover.tokens, dtype=np.uint32).reshape(-1, 3)


# 4,096 sequences, the most that an iteration may have, and some.
_MAX_TOKENS_BYTES = 12 * 4096 + 64
