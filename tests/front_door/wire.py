"""Bytes to a server and back, without an HTTP client's opinion of them."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

# One answer follows another's last byte; no body of ours says this.
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


@dataclass(frozen=True, slots=True)
class Heard:
    """What came back, and whether the server then closed the connection."""

    data: bytes
    closed: bool

    @property
    def statuses(self) -> list[int]:
        """Of all answers, in order."""
        return [int(status) for status in _STATUS_LINE.findall(self.data)]


@dataclass(frozen=True, slots=True)
class Wire:
    """Connections to one address."""

    address: tuple[str, int]

    @contextmanager
    def connection(self, patience: float = 10) -> Iterator[socket.socket]:
        """One of them."""
        with socket.create_connection(self.address, timeout=patience) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield connection

    def say(self, *pieces: bytes, half_close: bool = False, patience: float = 10) -> Heard:
        """Send the pieces, one write each, and read until the server closes or is silent for `patience` seconds."""
        with self.connection(patience) as connection:
            send(connection, pieces)
            if half_close:
                with suppress(OSError):
                    # It may be closed already.
                    connection.shutdown(socket.SHUT_WR)
            return listen(connection)


def send(connection: socket.socket, pieces: Sequence[bytes]) -> None:
    """All of it, unless the server doesn't want to hear more."""
    with suppress(BrokenPipeError, ConnectionResetError):
        for piece in pieces:
            connection.sendall(piece)


def listen(connection: socket.socket) -> Heard:
    """Until the end, or until nothing comes any more."""
    data = bytearray()
    while True:
        try:
            chunk = connection.recv(65536)
        except TimeoutError:
            return Heard(bytes(data), closed=False)
        except ConnectionResetError:
            return Heard(bytes(data), closed=True)
        if not chunk:
            return Heard(bytes(data), closed=True)
        data += chunk


def reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN, as a crashed client does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def message(start: bytes, *fields: bytes, body: bytes = b"") -> bytes:
    """A request: its first line, its header fields, its body."""
    return b"\r\n".join((start, *fields, b"", b"")) + body
