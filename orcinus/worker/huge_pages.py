"""Memory of zeros on huge pages: attention reads KV blocks in any order, and small pages miss the address cache."""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import torch
from torch import Tensor


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """As `torch.zeros`, in main memory; on small pages where huge ones are refused. Unwritten ones take no room."""
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes == 0:
        return torch.zeros(shape, dtype=dtype)
    memory = mmap.mmap(-1, num_bytes)
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None:
        # A Linux built without them says that it doesn't know the advice.
        with suppress(OSError):
            memory.madvise(advice)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
