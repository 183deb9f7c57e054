"""The file of KV records: what survives, what is ignored, and who may read it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from orcinus.core.plan import SwapIn, SwapOut
from orcinus.errors import ConfigurationError
from orcinus.worker.disk import HEADER_BYTES, Disk
from orcinus.worker.kv import KVCache, KVShape
from orcinus.worker.tiers import KVTiers

BYTES = 4096


def opened(folder: Path, said: list[str], fingerprint: str = "f", num_slots: int = 8) -> Disk:
    return Disk(folder, num_slots=num_slots, block_bytes=BYTES, fingerprint=fingerprint, say=said.append)


def content(slot: int) -> bytes:
    return bytes([slot]) * BYTES


def filled(folder: Path) -> None:
    disk = opened(folder, [])
    for slot in range(4):
        disk.write(slot, slot + 1, b"key%d" % slot, b"parent", content(slot))
    disk.close()


def test_the_next_one_finds_what_was_written_in_the_order_of_writing(tmp_path: Path) -> None:
    filled(tmp_path)
    disk = opened(tmp_path, said := [])
    held = [(each.slot, each.generation, each.key, each.parent) for each in disk.on_disk.blocks]
    assert held == [(slot, slot + 1, b"key%d" % slot, b"parent") for slot in range(4)]
    assert disk.read(2, 3) == content(2)
    assert disk.read(2, 2) is None, "a stale generation"
    disk.erase(2)
    disk.close()
    assert said == ["the KV cache on disk holds 4 blocks"]
    again = opened(tmp_path, [])
    assert [each.slot for each in again.on_disk.blocks] == [0, 1, 3]
    again.close()


def test_damaged_cut_and_foreign_records_are_as_good_as_none(tmp_path: Path) -> None:
    filled(tmp_path)
    file = tmp_path / "blocks.kv"
    record = HEADER_BYTES + BYTES
    with file.open("r+b") as damaged:
        damaged.seek(4)
        damaged.write(b"\xff")
        damaged.seek(record + HEADER_BYTES + 100)
        damaged.write(b"\xff")
        damaged.truncate(3 * record + HEADER_BYTES + 10)
    disk = opened(tmp_path, said := [])
    assert [each.slot for each in disk.on_disk.blocks] == [1, 2, 3], "a header tells nothing about the rest"
    assert [disk.read(slot, slot + 1) for slot in range(4)] == [None, None, content(2), None]
    disk.close()
    assert said == ["the KV cache on disk holds 3 blocks; 1 records are damaged or of another model, and are ignored"]
    foreign = opened(tmp_path, said := [], fingerprint="g")
    assert foreign.on_disk.blocks == ()
    assert foreign.on_disk.seed != disk.on_disk.seed
    assert len(said) == 1
    foreign.close()


def test_the_folder_is_private_bounded_and_one_engines(tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    disk = opened(folder, [])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert (folder / "blocks.kv").stat().st_size == 8 * (HEADER_BYTES + BYTES)
    with pytest.raises(ConfigurationError, match="another engine uses"):
        opened(folder, [])
    disk.close()
    opened(folder, [], num_slots=2).close()
    assert (folder / "blocks.kv").stat().st_size == 2 * (HEADER_BYTES + BYTES)


def test_a_full_disk_loses_blocks_and_says_so_once(tmp_path: Path) -> None:
    disk = opened(tmp_path, said := [])
    os.dup2(full := os.open("/dev/full", os.O_RDWR), disk._file)
    os.close(full)
    for slot in range(3):
        disk.write(slot, 1, b"key", b"parent", content(slot))
    disk.close()
    assert sorted(disk.lost()) == [(0, 1), (1, 1), (2, 1)]
    assert len(said) == 1
    assert "disk" in said[0]


ENDLESS = """
import sys, itertools
from pathlib import Path
from orcinus.worker.disk import Disk
disk = Disk(Path(sys.argv[1]), num_slots=64, block_bytes=1 << 18, fingerprint="f", say=lambda line: None)
print("ready", flush=True)
for number in itertools.count():
    slot = number % 64
    disk.write(slot, number // 64 + 1, b"key%d" % number, b"", bytes([number % 251]) * (1 << 18))
"""


@pytest.mark.slow
def test_killed_amid_writing_the_file_is_of_use_and_tells_no_lies(tmp_path: Path) -> None:
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.3)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        disk = Disk(tmp_path, num_slots=64, block_bytes=1 << 18, fingerprint="f", say=lambda line: None)
        num_read = 0
        for held in disk.on_disk.blocks:
            data = disk.read(held.slot, held.generation)
            if data is not None:
                number = int(held.key[3:])
                assert data == bytes([number % 251]) * (1 << 18)
                num_read += 1
        assert num_read > 0
        disk.close()


def test_a_stale_host_slot_is_refused_and_kv_that_is_not_finite_stays_away_from_the_disk(tmp_path: Path) -> None:
    kv = KVCache(KVShape(1, 1, 32, 16, torch.float32), 3, torch.device("cpu"))
    assert kv.block(0).nbytes == BYTES
    tiers = KVTiers(kv, 2, opened(tmp_path, []))
    kv.block(0).fill_(1.0)
    kv.block(1).fill_(float("inf"))
    missed = tiers.apply([SwapOut(0, 1, 0), SwapOut(0, 2, 1), SwapIn(0, 1, 2, 7), SwapOut(2, 1, 1, b"k", b"p")])
    assert missed.stale == {7}
    assert bool((kv.block(2) == 0).all()), "nothing is copied"
    assert tiers.lost() == ((2, 1),)
    missed = tiers.apply([SwapOut(3, 1, 0, b"k", b"p"), SwapIn(3, 1, 2, 8), SwapIn(2, 1, 1, 9)])
    assert (missed.stale, missed.lost) == (set(), {9})
    assert bool((kv.block(2) == 1).all())
    tiers.close()
