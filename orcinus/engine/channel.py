"""Between the supervisor and a process that it started: whole messages, and an end of file when one of them dies."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Generic, TypeVar

import msgspec

_MAX_FRAME_BYTES = 128 * 1024

Out = TypeVar("Out")
In = TypeVar("In")


class Channel(Generic[Out, In]):
    """One end of a socket pair. `decoder` is of the union of what the other side says."""

    def __init__(self, end: socket.socket, decoder: msgspec.msgpack.Decoder[In]) -> None:
        self.socket = end
        end.setblocking(False)
        self._decoder = decoder

    @classmethod
    def inherited(cls, descriptor: int, decoder: msgspec.msgpack.Decoder[In]) -> Channel[Out, In]:
        """The end that the parent left open at this number."""
        os.set_inheritable(descriptor, False)
        return cls(socket.socket(fileno=descriptor), decoder)

    def send(self, message: Out) -> bool:
        """Hand over one message; False if nobody is there, or nobody has read for long."""
        try:
            self.socket.send(msgspec.msgpack.encode(message))
        except OSError:
            return False
        return True

    def take(self) -> In | None:
        """A message that has come, if one has.

        Raises:
            EOFError: the other side is gone.
        """
        try:
            frame = self.socket.recv(_MAX_FRAME_BYTES)
        except BlockingIOError:
            return None
        return self._decode(frame)

    async def receive(self) -> In:
        """The next message.

        Raises:
            EOFError: the other side is gone.
        """
        return self._decode(await asyncio.get_running_loop().sock_recv(self.socket, _MAX_FRAME_BYTES))

    def close(self) -> None:
        """Leave; the other side reads an end of file."""
        self.socket.close()

    def _decode(self, frame: bytes) -> In:
        if not frame:
            raise EOFError("the process at the other end of the channel is gone")
        return self._decoder.decode(frame)
