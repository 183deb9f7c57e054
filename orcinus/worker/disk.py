"""KV on disk: a file of equal records, written beside the work, found again by the next engine.

The disk is only a cache. A record that is torn, damaged or of another model is as good as none, so nothing needs to be
in any order on the medium: each record bears checksums of its own, and whoever reads it tries them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import secrets
import threading
from collections import deque
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import msgspec

from orcinus.core.kv.tiers import HeldBlock, OnDisk
from orcinus.errors import ConfigurationError

MAGIC = b"orcinus-kv-1"
HEADER_BYTES = 512
_CHECKSUM_BYTES = 16
_SECRET_BYTES = 32
# What may wait to be written; what comes on top is left out.
QUEUE_BYTES = 256 * 2**20
_LEAVE_SECONDS = 10.0

Say = Callable[[str], None]


class Header(msgspec.Struct, frozen=True, array_like=True):
    """Before each block's bytes. `number` counts records in the order in which they were written."""

    magic: bytes
    fingerprint: bytes
    generation: int
    key: bytes
    parent: bytes
    number: int
    checksum: bytes


class _Record(NamedTuple):
    """One on its way to the disk; without `data`, the slot is to be erased."""

    slot: int
    generation: int
    key: bytes
    parent: bytes
    data: bytes | None


class Disk:
    """`num_slots` records of `block_bytes` each in `folder`, which one engine uses at a time.

    Args:
        fingerprint: what the bits depend on; records of another one are ignored.

    Raises:
        ConfigurationError: the folder can't be used, or another engine uses it.
    """

    def __init__(self, folder: Path, *, num_slots: int, block_bytes: int, fingerprint: str, say: Say) -> None:
        self._num_slots = num_slots
        self._block_bytes = block_bytes
        self._fingerprint = _checksum(fingerprint.encode())
        self._say = say
        self._failed = False
        self._file, secret = _open(folder)
        os.ftruncate(self._file, num_slots * self._record_bytes)
        self._next_number = 0
        held = self._scan()
        self.on_disk = OnDisk(blake2b(self._fingerprint, key=secret, digest_size=32).digest(), tuple(held))
        self._lost: deque[tuple[int, int]] = deque()
        self._queue: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        # By slot the newest that isn't written yet: whoever wants it has it from here.
        self._pending: dict[int, _Record] = {}
        self._lock = threading.Lock()
        self._writer = threading.Thread(target=self._write_all, name="kv-disk", daemon=True)
        self._writer.start()

    # ---- for the worker

    def write(self, slot: int, generation: int, key: bytes, parent: bytes, data: bytes) -> None:
        """Have `data` written, unless too much waits already."""
        with self._lock:
            is_full = len(self._pending) * self._block_bytes >= QUEUE_BYTES
        if is_full:
            # What the slot held before is another's, under a name and a generation of its own.
            self.note_lost(slot, generation)
        else:
            self._enqueue(_Record(slot, generation, key, parent, data))

    def erase(self, slot: int) -> None:
        """What `slot` holds must not be found again."""
        self._enqueue(_Record(slot, 0, b"", b"", None))

    def read(self, slot: int, generation: int) -> bytearray | None:
        """What `slot` was filled with in `generation`, if it holds that, undamaged."""
        with self._lock:
            pending = self._pending.get(slot)
        if pending is not None:
            ours = pending.data is not None and pending.generation == generation
            return bytearray(pending.data or b"") if ours else None
        try:
            record = os.pread(self._file, self._record_bytes, slot * self._record_bytes)
        except OSError as error:
            self._complain(error)
            return None
        header, data = self._header(record[:HEADER_BYTES]), record[HEADER_BYTES:]
        if header is None or header.generation != generation or header.checksum != _checksum(data):
            return None
        return bytearray(data)

    def note_lost(self, slot: int, generation: int) -> None:
        """To be told with the next result."""
        self._lost.append((slot, generation))

    def lost(self) -> list[tuple[int, int]]:
        """What was noted since somebody asked."""
        return [self._lost.popleft() for _ in range(len(self._lost))]

    def close(self) -> None:
        """Write what waits, as far as that takes no time, and let the folder go."""
        self._queue.put(None)
        self._writer.join(_LEAVE_SECONDS)
        if not self._writer.is_alive():
            os.close(self._file)

    # ---- beside the work

    def _enqueue(self, record: _Record) -> None:
        with self._lock:
            self._pending[record.slot] = record
        self._queue.put(record.slot)

    def _write_all(self) -> None:
        while (slot := self._queue.get()) is not None:
            with self._lock:
                record = self._pending.get(slot)
            if record is None:
                continue
            try:
                self._write_one(record)
            except OSError as error:
                self._complain(error)
                self.note_lost(record.slot, record.generation)
            with self._lock:
                if self._pending.get(record.slot) is record:
                    del self._pending[record.slot]

    def _write_one(self, record: _Record) -> None:
        at = record.slot * self._record_bytes
        if record.data is None:
            os.pwrite(self._file, bytes(HEADER_BYTES), at)
            return
        header = Header(
            MAGIC,
            self._fingerprint,
            record.generation,
            record.key,
            record.parent,
            self._next_number,
            _checksum(record.data),
        )
        self._next_number += 1
        packed = _sealed(msgspec.msgpack.encode(header))
        if os.pwritev(self._file, [packed, record.data], at) != self._record_bytes:
            raise OSError("the disk took a part of a record")

    def _complain(self, error: OSError) -> None:
        """Once: a full disk stays full."""
        if not self._failed:
            self._failed = True
            self._say(f"warning: the KV cache on disk does without what the disk refuses: {error.strerror or error}")

    # ---- at the start

    def _scan(self) -> list[HeldBlock]:
        """What an earlier engine has left that can be used, in the order in which it was written."""
        found: list[tuple[int, HeldBlock]] = []
        num_ignored = 0
        for slot in range(self._num_slots):
            packed = os.pread(self._file, HEADER_BYTES, slot * self._record_bytes)
            header = self._header(packed)
            if header is not None:
                found.append((header.number, HeldBlock(slot, header.generation, header.key, header.parent)))
            elif any(packed):
                num_ignored += 1
        found.sort(key=lambda each: each[0])
        self._next_number = found[-1][0] + 1 if found else 0
        if found or num_ignored:
            ignored = f"; {num_ignored} records are damaged or of another model, and are ignored" if num_ignored else ""
            self._say(f"the KV cache on disk holds {len(found)} blocks{ignored}")
        return [block for _, block in found]

    def _header(self, packed: bytes) -> Header | None:
        """None if it is damaged, of another model, or there is none."""
        sealed = _unsealed(packed)
        if sealed is None:
            return None
        try:
            header = msgspec.msgpack.decode(sealed, type=Header)
        except msgspec.MsgspecError:
            return None
        is_ours = header.magic == MAGIC and header.fingerprint == self._fingerprint
        return header if is_ours else None

    @property
    def _record_bytes(self) -> int:
        return HEADER_BYTES + self._block_bytes


def slots_in(num_bytes: int, block_bytes: int) -> int:
    """Records that fit."""
    return num_bytes // (HEADER_BYTES + block_bytes)


def _checksum(data: bytes) -> bytes:
    return blake2b(data, digest_size=_CHECKSUM_BYTES).digest()


def _sealed(header: bytes) -> bytes:
    """Its length, the header, its checksum, and zeros."""
    packed = len(header).to_bytes(2, "little") + header
    return (packed + _checksum(packed)).ljust(HEADER_BYTES, b"\0")


def _unsealed(packed: bytes) -> bytes | None:
    end = 2 + int.from_bytes(packed[:2], "little")
    is_whole = end + _CHECKSUM_BYTES <= len(packed) and _checksum(packed[:end]) == packed[end : end + _CHECKSUM_BYTES]
    return packed[2:end] if is_whole else None


def _open(folder: Path) -> tuple[int, bytes]:
    """The file of records, which is ours alone from now on, and the folder's secret."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(folder / "blocks.kv", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, file)
            os.fchmod(file, 0o600)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            secret = _secret(folder / "secret")
            undo.pop_all()
        return file, secret
    except BlockingIOError as error:
        raise ConfigurationError(f"kv_disk_path is {folder}, which another engine uses; give each its own") from error
    except OSError as error:
        raise ConfigurationError(f"kv_disk_path is {folder}, which can't be used: {error.strerror}") from error


def _secret(path: Path) -> bytes:
    """Read it, or make one: then what the file of records holds can't be named any more, and ages."""
    if path.exists() and len(secret := path.read_bytes()) == _SECRET_BYTES:
        return secret
    secret = secrets.token_bytes(_SECRET_BYTES)
    new = path.with_name("secret.new")
    new.unlink(missing_ok=True)
    file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(file, secret)
        os.fsync(file)
    finally:
        os.close(file)
    new.rename(path)
    return secret
