"""Collectives and links of workers on several hosts: the same calls as on one host, with the tensors in the stream.

The connections are those of `handshake`, so all of it is encrypted; each belongs to one thread.

Ranks are joined each with each, and add up themselves, in the order of ranks: the sums have the bits that shared memory
gives. Numbers go as they lie in memory, little-endian.
"""

from __future__ import annotations

import select
import ssl
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orcinus.parallel import TIMEOUT_SECONDS, LinkLost, PeerLost, Span, missed
from orcinus.parallel.silence import is_unanswered
from orcinus.parallel.stages import STAGE_SECONDS, Handover, Header, TokenReceiver

# Which call of the group a tensor belongs to, and its bytes: ranks that don't keep step are found out.
_CALL = struct.Struct("<QQ")
_LENGTH = struct.Struct("<I")
_MAX_HEADER_BYTES = 4096
_CHUNK = 64 * 1024
_LOOK_MS = 200
_NOTHING_YET = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


@dataclass(slots=True)
class _Transfer:
    """What still has to go to a peer and to come from it."""

    peer: ssl.SSLSocket
    outgoing: memoryview
    incoming: memoryview

    @property
    def events(self) -> int:
        return (select.POLLOUT if self.outgoing else 0) | (select.POLLIN if self.incoming else 0)

    def go_on(self) -> None:
        """As far as it goes without waiting."""
        try:
            self._send()
            self._receive()
        except _NOTHING_YET:
            return
        except OSError as error:
            raise missed("another rank of this stage is gone", error) from error

    def _send(self) -> None:
        try:
            while self.outgoing:
                self.outgoing = self.outgoing[self.peer.send(self.outgoing) :]
        except _NOTHING_YET:
            # Both sides may have more to say than fits between them, so look what has come.
            return

    def _receive(self) -> None:
        while self.incoming:
            size = self.peer.recv_into(self.incoming)
            if not size:
                raise PeerLost("another rank of this stage is gone")
            self.incoming = self.incoming[size:]


class NetworkGroup:
    """Implements `TensorGroup`.

    Args:
        peers: a connection to each other rank, by rank.
    """

    def __init__(self, rank: int, peers: Sequence[ssl.SSLSocket]) -> None:
        self.rank = rank
        self.size = len(peers) + 1
        self._peers = list(peers)
        for peer in self._peers:
            peer.setblocking(False)
        self._calls = 0

    def all_reduce(self, x: Tensor) -> Tensor:
        """See `TensorGroup`."""
        flat = x.reshape(-1).float()
        first, second, *others = self._exchange(flat, [len(flat)] * self.size, range(self.size))
        total = first + second
        for part in others:
            total += part
        return total.view(x.shape)

    def gather(self, x: Tensor, columns: Span) -> Tensor | None:
        """See `TensorGroup`."""
        shares = [Span.share(columns.size, rank, self.size) for rank in range(self.size)]
        assert columns == shares[self.rank], "ranks hold equal shares"
        parts = self._exchange(x.reshape(-1).float(), [len(x) * len(share) for share in shares], [0])
        if self.rank != 0:
            return None
        return torch.cat([part.view(len(x), len(share)) for part, share in zip(parts, shares, strict=True)], dim=1)

    def _exchange(self, flat: Tensor, sizes: Sequence[int], readers: Sequence[int]) -> list[Tensor]:
        """All ranks' numbers, by rank, for those who read; the others only hand over theirs."""
        self._calls += 1
        buffers = [bytearray(_CALL.size + 4 * size) for size in sizes]
        mine = buffers[self.rank]
        _CALL.pack_into(mine, 0, self._calls, 4 * len(flat))
        _numbers(mine).copy_(flat)
        reads = self.rank in readers
        nothing = memoryview(b"")
        transfers = [
            _Transfer(
                peer,
                memoryview(mine) if rank in readers else nothing,
                memoryview(buffers[rank]) if reads else nothing,
            )
            for rank, peer in zip(self._others(), self._peers, strict=True)
        ]
        _complete(transfers)
        if not reads:
            return []
        for rank, buffer in enumerate(buffers):
            found = _CALL.unpack_from(buffer)
            assert found == (self._calls, 4 * sizes[rank]), f"rank {rank} is at {found}, this one at {self._calls}"
        return [_numbers(buffer) for buffer in buffers]

    def _others(self) -> list[int]:
        return [rank for rank in range(self.size) if rank != self.rank]


def _numbers(buffer: bytearray) -> Tensor:
    """What follows the head of a message."""
    if len(buffer) == _CALL.size:
        return torch.empty(0)
    return torch.frombuffer(buffer, dtype=torch.float32, offset=_CALL.size)


def _complete(transfers: Sequence[_Transfer]) -> None:
    """All of them, both ways at once.

    Raises:
        PeerLost: somebody is gone or cut off, or it takes too long.
    """
    deadline = time.monotonic() + TIMEOUT_SECONDS
    for transfer in transfers:
        transfer.go_on()
    while waiting := [transfer for transfer in transfers if transfer.events]:
        poller = select.poll()
        for transfer in waiting:
            poller.register(transfer.peer, transfer.events)
        if not poller.poll(_LOOK_MS):
            if any(is_unanswered(transfer.peer) for transfer in waiting):
                raise LinkLost("another rank's host doesn't answer")
            if time.monotonic() > deadline:
                raise PeerLost("another worker has said nothing for too long")
        for transfer in waiting:
            transfer.go_on()


class NetworkOutlet:
    """The end of a link at which states leave. A stage is ahead by what fits into the buffers of the connection."""

    def __init__(self, end: ssl.SSLSocket) -> None:
        self._end = end
        self._end.settimeout(STAGE_SECONDS)
        self._encode = msgspec.msgpack.Encoder().encode

    def send(self, epoch: int, iteration: int, x: Tensor, times: tuple[float, ...]) -> None:
        """See `Outlet`."""
        header = self._encode(Header(epoch, iteration, 0, len(x), times))
        try:
            # The head alone would be a packet of its own, and a copy costs less than the encryption.
            self._end.sendall(b"".join((_LENGTH.pack(len(header)), header, _bytes_of(x.contiguous()))))
        except OSError as error:
            raise missed("the next stage is gone", error) from error


class NetworkInlet:
    """The end at which they come in."""

    def __init__(self, end: ssl.SSLSocket) -> None:
        self._end = end
        self._end.settimeout(STAGE_SECONDS)
        self._decode = msgspec.msgpack.Decoder(Header).decode

    def receive(
        self, epoch: int, iteration: int, rows: int, width: int, dtype: torch.dtype
    ) -> tuple[Tensor, tuple[float, ...]]:
        """See `Inlet`."""
        length: int = _LENGTH.unpack(self._read(bytearray(_LENGTH.size)))[0]
        assert length <= _MAX_HEADER_BYTES, f"a header of {length} bytes"
        header = self._decode(self._read(bytearray(length)))
        expected = (epoch, iteration, 0, rows)
        assert (header.epoch, header.iteration, header.first, header.rows) == expected, f"{header} for {expected}"
        x = torch.empty(rows, width, dtype=dtype)
        self._fill(_bytes_of(x))
        return x, header.times

    def _read(self, buffer: bytearray) -> bytearray:
        self._fill(memoryview(buffer))
        return buffer

    def _fill(self, view: memoryview) -> None:
        try:
            while view:
                size = self._end.recv_into(view)
                if not size:
                    raise PeerLost("the stage before is gone")
                view = view[size:]
        except OSError as error:
            raise missed("the stage before is gone or silent", error) from error


def _bytes_of(x: Tensor) -> memoryview:
    """Its memory, row after row."""
    return x.view(-1).view(torch.uint8).numpy().data


class NetworkTokenSender:
    """Tells the workers of the first stage what was sampled."""

    def __init__(self, ends: Sequence[ssl.SSLSocket]) -> None:
        self._ends = list(ends)
        for end in self._ends:
            end.settimeout(STAGE_SECONDS)
        self._encode = msgspec.msgpack.Encoder().encode

    def send(self, epoch: int, tokens: Sequence[tuple[int, int, int]]) -> None:
        """See `TokenSender`."""
        frame = self._encode(Handover(epoch, np.array(tokens, dtype=np.uint32).tobytes()))
        for end in self._ends:
            try:
                end.sendall(_LENGTH.pack(len(frame)) + frame)
            except OSError as error:
                raise missed("a worker of the first stage is gone", error) from error


class NetworkTokenReceiver(TokenReceiver):
    """The other end."""

    def __init__(self, end: ssl.SSLSocket) -> None:
        super().__init__(end)
        end.setblocking(False)
        self._unread = bytearray()

    def take(self) -> tuple[int, NDArray[np.uint32]] | None:
        """See `TokenReceiver`."""
        while not self._has_message:
            if not self._read_some():
                return None
        return self._next()

    def wait(self) -> tuple[int, NDArray[np.uint32]]:
        """See `TokenReceiver`."""
        poller = select.poll()
        poller.register(self._end, select.POLLIN)
        while not self._has_message:
            # Look first: what has been decrypted already doesn't show on the connection.
            if not self._read_some() and not poller.poll(STAGE_SECONDS * 1000):
                raise PeerLost("another worker has said nothing for too long")
        return self._next()

    def _read_some(self) -> bool:
        """Whether there was something."""
        try:
            read = self._end.recv(_CHUNK)
        except _NOTHING_YET:
            return False
        except OSError as error:
            raise missed("the worker that samples is gone", error) from error
        if not read:
            raise PeerLost("the worker that samples is gone")
        self._unread += read
        return True

    @property
    def _has_message(self) -> bool:
        return len(self._unread) >= _LENGTH.size and len(self._unread) >= self._stop

    @property
    def _stop(self) -> int:
        """Where the first message ends."""
        length: int = _LENGTH.unpack_from(self._unread)[0]
        return _LENGTH.size + length

    def _next(self) -> tuple[int, NDArray[np.uint32]]:
        stop = self._stop
        frame = bytes(self._unread[_LENGTH.size : stop])
        del self._unread[:stop]
        return self._read(frame)
