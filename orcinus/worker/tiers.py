"""The worker's KV beside the device's: slots in the host's memory and on disk, filled and read as plans say."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from orcinus.core.plan import Erase, Swap, SwapIn, SwapOut
from orcinus.worker.disk import Disk
from orcinus.worker.kv import KVCache


@dataclass(frozen=True, slots=True)
class Missed:
    """Sequences of a plan whose KV did not come back.

    Args:
        stale: the host's slot held something else.
        lost: the disk's slot can't be read.
    """

    stale: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)


class HostMemory:
    """`num_slots` blocks of the host's memory, each with the generation it was filled in."""

    def __init__(self, kv: KVCache, num_slots: int) -> None:
        self._data = kv.blocks_on_host(num_slots)
        self._generations = [0] * num_slots

    def __len__(self) -> int:
        return len(self._generations)

    def put(self, slot: int, generation: int, block: Tensor) -> None:
        """Fill `slot`."""
        self._data[slot].copy_(block)
        self._generations[slot] = generation

    def get(self, slot: int, generation: int) -> Tensor | None:
        """What `slot` was filled with in `generation`; None if it was filled anew since, or never."""
        return self._data[slot] if self._generations[slot] == generation else None


class KVTiers:
    """Carries swaps out. `disk` has the slots behind the host's."""

    def __init__(self, kv: KVCache, num_host_blocks: int, disk: Disk | None) -> None:
        self._kv = kv
        self._host = HostMemory(kv, num_host_blocks)
        self._disk = disk
        self._copier = ThreadPoolExecutor(1, "orcinus-kv-ahead")
        self._beside: Future[None] | None = None
        self._stale: list[tuple[int, int]] = []

    def apply(self, swaps: Sequence[Swap]) -> Missed:
        """All of them, in their order: a later one may use the block or the slot that an earlier one has read."""
        missed = Missed()
        for swap in swaps:
            match swap:
                case SwapOut():
                    self._out(swap)
                case SwapIn():
                    self._in(swap, missed)
                case Erase():
                    self._on_disk.erase(swap.slot - len(self._host))
        return missed

    def begin_ahead(self, swaps: Sequence[Swap]) -> None:
        """Those that no work of the plan waits for, beside it."""
        if swaps:
            self._beside = self._copier.submit(self._copy_ahead, swaps)

    def end_ahead(self) -> None:
        """They are done."""
        if self._beside is not None:
            beside, self._beside = self._beside, None
            beside.result()

    def _copy_ahead(self, swaps: Sequence[Swap]) -> None:
        with torch.inference_mode():
            stale = self.apply(swaps).stale
        # Nobody reads it yet, so nobody has to fail.
        brought = (swap for swap in swaps if isinstance(swap, SwapIn) and swap.slot < len(self._host))
        self._stale += [(swap.slot, swap.generation) for swap in brought if swap.seq_id in stale]

    def lost(self) -> tuple[tuple[int, int], ...]:
        """What turned out not to be there since somebody asked, as (slot, generation)."""
        stale, self._stale = self._stale, []
        on_disk = [] if self._disk is None else self._disk.lost()
        return (*stale, *((slot + len(self._host), generation) for slot, generation in on_disk))

    def close(self) -> None:
        """Wait for what is still being written."""
        self._copier.shutdown()
        if self._disk is not None:
            self._disk.close()

    def _out(self, swap: SwapOut) -> None:
        block = self._kv.block(swap.block)
        if swap.slot < len(self._host):
            self._host.put(swap.slot, swap.generation, block)
            return
        slot = swap.slot - len(self._host)
        if bool(torch.isfinite(block).all()):
            data = block.cpu().contiguous().view(torch.uint8).numpy().tobytes()
            self._on_disk.write(slot, swap.generation, swap.key, swap.parent, data)
        else:
            # Its request will fail, and nobody else should inherit that.
            self._on_disk.erase(slot)
            self._on_disk.note_lost(slot, swap.generation)

    def _in(self, swap: SwapIn, missed: Missed) -> None:
        if swap.slot < len(self._host):
            block = self._host.get(swap.slot, swap.generation)
            if block is None:
                missed.stale.add(swap.seq_id)
            else:
                self._kv.block(swap.block).copy_(block)
            return
        slot = swap.slot - len(self._host)
        data = self._on_disk.read(slot, swap.generation)
        target = self._kv.block(swap.block)
        if data is None or len(data) != target.nbytes:
            self._on_disk.note_lost(slot, swap.generation)
            missed.lost.add(swap.seq_id)
        else:
            target.copy_(torch.frombuffer(data, dtype=target.dtype).view(target.shape))

    @property
    def _on_disk(self) -> Disk:
        assert self._disk is not None, "the plan names a slot that no tier has"
        return self._disk
