"""The engine's sign of life: a few bytes in a file that both sides map. Written without waiting, readable after death.

Health means progress, not an open port: the supervisor looks whether the count goes on. What else lies here survives a
crash of the engine: who was running, so that one request that kills engines can be told from its neighbours.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from pathlib import Path

import msgspec

# Beats, seconds of the slowest recent iteration, bytes of the list of running requests.
_HEADER = struct.Struct("<QdI")
_SIZE = 64 * 1024


class Beat:
    """The engine's side."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _SIZE)
        self._count = 0
        self._slowest = 0.0

    def beat(self) -> None:
        """Something went on."""
        self._count += 1
        struct.pack_into("<Q", self._memory, 0, self._count)

    def slow_down(self, seconds: float) -> None:
        """An iteration took so long; the slowest counts."""
        if seconds > self._slowest:
            self._slowest = seconds
            struct.pack_into("<d", self._memory, 8, seconds)

    def running(self, request_ids: Sequence[str]) -> None:
        """Whose work the next plans hold. Ids that find no room are left out."""
        encoded = msgspec.msgpack.encode(request_ids)
        kept = len(request_ids)
        while len(encoded) > _SIZE - _HEADER.size:
            kept //= 2
            encoded = msgspec.msgpack.encode(request_ids[:kept])
        # Never a length that covers bytes not yet written.
        struct.pack_into("<I", self._memory, 16, 0)
        self._memory[_HEADER.size : _HEADER.size + len(encoded)] = encoded
        struct.pack_into("<I", self._memory, 16, len(encoded))


class Pulse:
    """The supervisor's side of one engine's beat."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(_SIZE))
        path.chmod(0o600)
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _SIZE)

    @property
    def count(self) -> int:
        """Beats so far."""
        return self._header()[0]

    @property
    def slowest(self) -> float:
        """Seconds of the slowest iteration so far."""
        return self._header()[1]

    def running(self) -> list[str]:
        """Whose work the engine's last plans held."""
        size = self._header()[2]
        if size == 0:
            return []
        return msgspec.msgpack.decode(self._memory[_HEADER.size : _HEADER.size + size], type=list[str])

    def _header(self) -> tuple[int, float, int]:
        count, slowest, size = _HEADER.unpack_from(self._memory)
        return count, slowest, size
