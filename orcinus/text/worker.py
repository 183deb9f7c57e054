"""A process for text that may take long: whatever a tokenizer or a template does there, it can be ended.

Each job may take so much processor time, then the kernel ends the process (ITIMER_PROF); and the process so much memory
more than it had when it was ready (RLIMIT_AS). Whoever started it makes the best of either.
"""

from __future__ import annotations

import resource
import signal
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

import msgspec

from orcinus.text.jobs import Job, Outcome, Refused, TextSide

CPU_SECONDS = 2.0
MEMORY_BYTES = 512 * 2**20
TOO_EXPENSIVE = "input_too_expensive"
_LENGTH = struct.Struct("<I")
HEAD_BYTES = _LENGTH.size
# Said once, before anything else.
READY = _LENGTH.pack(0)
_MESSAGES = msgspec.msgpack.Encoder()
_JOBS: msgspec.msgpack.Decoder[Job] = msgspec.msgpack.Decoder(Job)


def frame(message: Job | Outcome) -> bytes:
    """A message with its length in front."""
    body = _MESSAGES.encode(message)
    return _LENGTH.pack(len(body)) + body


def frame_length(head: bytes) -> int:
    """How many bytes follow the first `HEAD_BYTES`."""
    length: int = _LENGTH.unpack(head)[0]
    return length


def main(arguments: list[str]) -> int:
    """`MODEL --control FD`: one job after the other, until nobody sends any."""
    model, end = Path(arguments[0]), socket.socket(fileno=int(arguments[2]))
    side = TextSide.load(model)
    _bound_memory()
    # Who asks may die with something unread; then nobody asks any more, either.
    with suppress(ConnectionResetError), end, end.makefile("rwb") as wire:
        wire.write(READY)
        wire.flush()
        while head := wire.read(HEAD_BYTES):
            job = _JOBS.decode(wire.read(frame_length(head)))
            wire.write(_answer(side, job))
            wire.flush()
    return 0


def _answer(side: TextSide, job: Job) -> bytes:
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        return frame(side.do(job))
    except MemoryError:
        return frame(too_expensive())
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def too_expensive() -> Refused:
    """What a client is told whose text ended a process."""
    message = f"reading this text took more than {CPU_SECONDS:g} s or too much memory; shorten it"
    return Refused(message, None, TOO_EXPENSIVE)


def _bound_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
