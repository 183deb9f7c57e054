"""Collectives of workers on one host: tensors lie in shared memory, sockets say when.

A call costs each rank a copy, a byte to each other one, and the sum. The sockets wake a rank that waits, and tell it
when another one has died, which a flag in memory could not.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from orcinus.parallel import TIMEOUT_SECONDS, PeerLost, Span

# Bytes that a rank can put up at a time; larger tensors go in pieces. Memory is taken only when it is first used.
REGION_BYTES = 16 * 2**20
# How long to look for a peer's word before sleeping: a wake-up takes longer than most waits. Only where each worker has
# a core to itself; elsewhere it would keep the one it waits for from running. Whoever looked in vain sleeps at once for
# some calls: then the machine is busy with something else.
SPIN_SECONDS = 50e-6
_CALLS_WITHOUT_SPIN = 32
_WORD = b"."


def make_memory(size: int) -> int:
    """A descriptor of fresh shared memory without a name: it goes with the last process that holds it."""
    descriptor = os.memfd_create("orcinus", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, size)
    return descriptor


def with_timeout(end: socket.socket, seconds: float) -> socket.socket:
    """Blocking, but no call takes longer than that."""
    packed = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        end.setsockopt(socket.SOL_SOCKET, option, packed)
    return end


def group_bytes(size: int) -> int:
    """Shared memory that a group of `size` ranks needs: two regions each."""
    return 2 * size * REGION_BYTES


class SharedGroup:
    """Implements `TensorGroup`.

    Args:
        memory: descriptor of `group_bytes`, the same for all ranks; closed here.
        peers: a socket to each other rank, by rank.
        spin_seconds: how long to look before sleeping.
    """

    def __init__(self, rank: int, memory: int, peers: Sequence[socket.socket], spin_seconds: float = 0.0) -> None:
        self.rank = rank
        self._spin_seconds = spin_seconds
        self._calls_without_spin = 0
        self.size = len(peers) + 1
        self._peers = [with_timeout(peer, TIMEOUT_SECONDS) for peer in peers]
        mapped = mmap.mmap(memory, group_bytes(self.size))
        os.close(memory)
        regions = torch.frombuffer(mapped, dtype=torch.float32).view(2, self.size, -1)
        # A rank may write again only when all have read what it wrote. Two sets in turn make sure of that: whoever has
        # the others' words for one call knows that they are done with the call before.
        self._sets = [list(half) for half in regions]
        self._turn = 0
        self._capacity = regions.shape[-1]

    def all_reduce(self, x: Tensor) -> Tensor:
        """See `TensorGroup`."""
        flat = x.reshape(-1)
        if len(flat) <= self._capacity:
            return self._sum(flat).view(x.shape)
        out = torch.empty_like(flat)
        for piece in _pieces(len(flat), self._capacity):
            out[piece] = self._sum(flat[piece])
        return out.view(x.shape)

    def gather(self, x: Tensor, columns: Span) -> Tensor | None:
        """See `TensorGroup`."""
        out = x.new_empty(len(x), columns.size) if self.rank == 0 else None
        shares = [Span.share(columns.size, rank, self.size) for rank in range(self.size)]
        assert columns == shares[self.rank], "ranks hold equal shares"
        for rows in _pieces(len(x), self._capacity // max(map(len, shares))):
            part = x[rows]
            parts = self._exchange(part.reshape(-1))
            if out is not None:
                for share, theirs in zip(shares, parts, strict=True):
                    size = len(part) * len(share)
                    out[rows, share.start : share.stop] = theirs[:size].view(len(part), len(share))
        return out

    def _sum(self, flat: Tensor) -> Tensor:
        first, second, *others = (region[: len(flat)] for region in self._exchange(flat))
        total = first + second
        for part in others:
            total += part
        return total

    def _exchange(self, flat: Tensor) -> list[Tensor]:
        """All ranks' regions, once everybody has filled his."""
        regions = self._sets[self._turn]
        self._turn ^= 1
        regions[self.rank][: len(flat)] = flat
        for peer in self._peers:
            _say(peer)
        for peer in self._peers:
            self._hear(peer)
        return regions

    def _hear(self, peer: socket.socket) -> None:
        """Wait for a peer's word."""
        if not (self._spin_seconds and self._has_come(peer)) and not receive(peer, 1):
            raise PeerLost("another rank of this stage is gone")

    def _has_come(self, peer: socket.socket) -> bool:
        """Look for a word until it is time to sleep."""
        if self._calls_without_spin:
            self._calls_without_spin -= 1
            return False
        deadline = time.perf_counter() + self._spin_seconds
        while time.perf_counter() < deadline:
            try:
                return bool(peer.recv(1, socket.MSG_DONTWAIT))
            except BlockingIOError:
                continue
            except OSError as error:
                raise PeerLost(f"another rank of this stage is gone: {error.strerror}") from error
        self._calls_without_spin = _CALLS_WITHOUT_SPIN
        return False


def _pieces(length: int, most: int) -> Iterator[slice]:
    return (slice(start, min(start + most, length)) for start in range(0, length, most))


def _say(peer: socket.socket) -> None:
    try:
        peer.send(_WORD)
    except OSError as error:
        raise PeerLost(f"another rank of this stage is gone: {error.strerror}") from error


def receive(end: socket.socket, size: int) -> bytes:
    """What comes next, at most `size` bytes; nothing at the end of file.

    Raises:
        PeerLost: nothing came for too long.
    """
    try:
        return end.recv(size)
    except BlockingIOError as error:
        raise PeerLost("another worker has said nothing for too long") from error
    except OSError as error:
        raise PeerLost(f"another worker is gone: {error.strerror}") from error
