"""Whole messages of any size over a stream: a length, then as many bytes."""

from __future__ import annotations

import socket
import ssl
import struct

_LENGTH = struct.Struct("<I")
_CHUNK = 64 * 1024
_NOTHING_YET = (BlockingIOError, ssl.SSLWantReadError)


class Frames:
    """One end of a stream socket. Belongs to one thread a direction, with TLS to one thread."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self._unread = bytearray()

    def send(self, frame: bytes) -> None:
        """Hand over one message; waits while the other side reads nothing.

        Raises:
            OSError: nobody is there, or nobody has read for too long.
        """
        self.socket.sendall(_LENGTH.pack(len(frame)) + frame)

    @property
    def has_message(self) -> bool:
        """One has been read already, with others."""
        return 0 < self._end() <= len(self._unread)

    def receive(self) -> bytes | None:
        """The next message; waits for it. None at the end of file.

        Raises:
            OSError: the socket has a timeout, and nothing came.
        """
        while not self.has_message:
            read = self.socket.recv(_CHUNK)
            if not read:
                return None
            self._unread += read
        end = self._end()
        frame = bytes(self._unread[_LENGTH.size : end])
        del self._unread[:end]
        return frame

    @property
    def is_at_end(self) -> bool:
        """The other side has hung up, and all that it said has been received. Doesn't wait."""
        if self.has_message:
            return False
        self.socket.setblocking(False)
        try:
            read = self.socket.recv(_CHUNK)
        except _NOTHING_YET:
            return False
        except OSError:
            return True
        finally:
            self.socket.setblocking(True)
        self._unread += read
        return not read

    def _end(self) -> int:
        """Where the first message ends, 0 if not even its length is here."""
        if len(self._unread) < _LENGTH.size:
            return 0
        length: int = _LENGTH.unpack_from(self._unread)[0]
        return _LENGTH.size + length
