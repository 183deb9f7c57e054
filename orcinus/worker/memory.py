"""The memory plan: weights, KV pool, work area. Made before a block is allocated, and printed at start."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from orcinus.errors import MemoryPlanError
from orcinus.models import ModelShape

GIB = 2**30
# Nobody asked for more: enough for 64 long chats with a small model, and it leaves a laptop usable.
DEFAULT_KV_BYTES = 4 * GIB


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where the bytes go. `num_blocks` blocks of `block_bytes` make the KV pool."""

    weight_bytes: int
    block_bytes: int
    num_blocks: int
    block_size: int
    work_bytes: int
    max_sequence_tokens: int
    num_host_blocks: int = 0
    num_disk_blocks: int = 0

    @property
    def kv_bytes(self) -> int:
        """The KV pool."""
        return self.num_blocks * self.block_bytes

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weight_bytes + self.kv_bytes + self.work_bytes

    def __str__(self) -> str:
        def row(name: str, size: int, remark: str = "") -> str:
            return f"  {name:<10}{size / GIB:9.3f} GiB  {remark}".rstrip()

        tokens = self.num_blocks * self.block_size
        pool = f"{self.num_blocks} blocks of {self.block_size} tokens = {tokens} tokens, {self.block_bytes} B a block"
        tiers = (
            ("swap space", self.num_host_blocks, "of the host's memory"),
            ("KV disk", self.num_disk_blocks, "of a file"),
        )
        return "\n".join(
            (
                row("weights", self.weight_bytes),
                row("KV pool", self.kv_bytes, pool),
                row("work area", self.work_bytes, "activations and logits of one iteration"),
                row("total", self.total_bytes),
                *(
                    row(name, count * self.block_bytes, f"{count} blocks {where}")
                    for name, count, where in tiers
                    if count
                ),
            )
        )


def work_area_bytes(shape: ModelShape, dtype: torch.dtype, max_batch_tokens: int, max_batch_size: int) -> int:
    """The largest iteration: hidden states, the widest projection and its output at once, and float32 logits thrice
    (raw, altered, sampled)."""
    activations = max_batch_tokens * (4 * shape.hidden_size + shape.widest) * dtype.itemsize
    return activations + (3 * max_batch_size * shape.vocab_size * 4 if shape.generates else 0)


def make_memory_plan(
    *,
    weight_bytes: int,
    work_bytes: int,
    block_bytes: int,
    block_size: int,
    max_sequence_tokens: int,
    may_shorten: bool,
    max_batch_size: int,
    kv_cache_bytes: int | None,
    free_bytes: int,
) -> MemoryPlan:
    """Choose the number of blocks.

    Args:
        may_shorten: nobody asked for this `max_sequence_tokens`, so a pool too small for it shortens it.
        kv_cache_bytes: what the user grants, or None: up to a full batch of longest sequences, 4 GiB, and half of
            what is free beside the weights.
        free_bytes: memory that the device has free once the weights are loaded.

    Raises:
        MemoryPlanError: one longest request doesn't fit; it names the size that would.
    """
    blocks_for_one = -(-max_sequence_tokens // block_size)
    useful = blocks_for_one * max_batch_size * block_bytes
    granted = min(useful, DEFAULT_KV_BYTES, free_bytes // 2) if kv_cache_bytes is None else kv_cache_bytes
    if granted > free_bytes:
        raise MemoryPlanError(
            f"a KV pool of {granted / GIB:.2f} GiB was asked for, but only {free_bytes / GIB:.2f} GiB are free beside "
            "the weights; lower kv_cache_gib"
        )
    num_blocks = granted // block_bytes
    if num_blocks < blocks_for_one:
        if not may_shorten or kv_cache_bytes is not None or num_blocks == 0:
            raise MemoryPlanError(
                f"the KV pool of {granted / GIB:.3f} GiB holds {num_blocks * block_size} tokens, less than one longest "
                f"request of {max_sequence_tokens}. Give kv_cache_gib={blocks_for_one * block_bytes / GIB:.3f}, or "
                f"max_model_len={num_blocks * block_size}."
            )
        max_sequence_tokens = num_blocks * block_size
    return MemoryPlan(weight_bytes, block_bytes, num_blocks, block_size, work_bytes, max_sequence_tokens)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on the device. On a CPU the container's limit counts too."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with open("/proc/meminfo", encoding="ascii") as lines:
        fields = {key: int(rest.split()[0]) * 1024 for key, rest in (line.split(":") for line in lines)}
    return min(fields["MemAvailable"], _container_headroom())


def _container_headroom() -> int:
    """What a memory cgroup leaves, or more than any machine has."""
    for limit_path, usage_path in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        if os.path.exists(limit_path) and os.path.exists(usage_path):
            limit, usage = _read(limit_path), _read(usage_path)
            if limit.isdigit():
                return max(0, int(limit) - int(usage))
    return 2**62


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read().strip()
