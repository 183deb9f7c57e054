"""KV memory on huge pages, and on small ones where there are no others."""

import mmap
import re
from pathlib import Path

import pytest
import torch

from orcinus.worker.huge_pages import zeros

SHAPE = (2, 3, 1 << 20)


def flags_of(address: int) -> list[str]:
    """What Linux says of the mapping that holds an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="ascii").splitlines():
        if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(span[1], 16) <= address < int(span[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError("no such mapping")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_zeros_of_the_shape_and_can_be_written(dtype: torch.dtype) -> None:
    memory = zeros(SHAPE, dtype)
    assert torch.equal(memory, torch.zeros(SHAPE, dtype=dtype))
    memory[1, 2, -1] = 7
    assert memory.sum().item() == 7


def test_nothing_is_a_shape_too() -> None:
    assert zeros((2, 0, 16), torch.float32).shape == (2, 0, 16)


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no huge pages on this system")
def test_linux_is_asked_for_huge_pages() -> None:
    assert "hg" in flags_of(zeros(SHAPE, torch.bfloat16).data_ptr())


def test_where_the_advice_is_refused_memory_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 1 << 20, raising=False)
    with pytest.raises(OSError, match="Invalid"):
        mmap.mmap(-1, mmap.PAGESIZE).madvise(1 << 20)
    assert zeros(SHAPE, torch.float32).count_nonzero() == 0


def test_where_the_advice_is_unknown_memory_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert zeros(SHAPE, torch.float32).count_nonzero() == 0
