"""The pool of KV blocks: who owns which, and how often. Bookkeeping only; the memory itself is the worker's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


class BlockPool:
    """`num_blocks` blocks, each free, owned (reference count > 0), or in limbo.

    *Limbo*: nobody owns the block any more, but a plan in flight may still read or write it. A *pin* a plan keeps it
    from being handed out; the last unpin frees it (DESIGN.md §3, IterationPlan). vLLM, SOSP '23, §4.2 and §4.4.
    """

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks > 0
        self.num_blocks = num_blocks
        # A stack: the block freed last is the one whose lines are still in the processor's cache.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._references = [0] * num_blocks
        self._pins = [0] * num_blocks
        self._num_limbo = 0

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now."""
        return len(self._free)

    @property
    def num_limbo(self) -> int:
        """Blocks that become free once the plans in flight are collected."""
        return self._num_limbo

    def references(self, block: int) -> int:
        """Owners of `block`; above 1 it must not be written."""
        return self._references[block]

    def allocate(self, count: int) -> list[int]:
        """Take `count` free blocks, each with one owner. The caller has checked `num_free`."""
        assert 0 <= count <= len(self._free), f"asked for {count} blocks, {len(self._free)} are free"
        if count == 0:
            return []
        taken = self._free[-count:]
        del self._free[-count:]
        for block in taken:
            self._references[block] = 1
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """One more owner for each of `blocks`."""
        for block in blocks:
            assert self._references[block] > 0, f"block {block} is shared after its release"
            self._references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One owner less for each of `blocks`; the last one frees it, or leaves it in limbo while it is pinned."""
        for block in blocks:
            assert self._references[block] > 0, f"block {block} is released twice"
            self._references[block] -= 1
            if self._references[block] == 0:
                self._retire(block)

    def pin(self, blocks: Iterable[int]) -> None:
        """A plan in flight uses `blocks`: they can't be handed out again before it is collected."""
        for block in blocks:
            self._pins[block] += 1

    def unpin(self, blocks: Iterable[int]) -> None:
        """The plan is collected or fenced."""
        for block in blocks:
            assert self._pins[block] > 0, f"block {block} is unpinned twice"
            self._pins[block] -= 1
            if self._pins[block] == 0 and self._references[block] == 0:
                self._num_limbo -= 1
                self._free.append(block)

    def check(self, tables: Iterable[Iterable[int]]) -> None:
        """Conservation: free + limbo + owned = total, and each count is the number of tables that name the block."""
        named = Counter(block for table in tables for block in table)
        owned = sum(1 for count in self._references if count)
        assert len(self._free) + self._num_limbo + owned == self.num_blocks, "blocks were lost or invented"
        assert len(set(self._free)) == len(self._free), "a block is free twice"
        assert all(self._references[block] == 0 and self._pins[block] == 0 for block in self._free), (
            "a free block is used"
        )
        assert all(count == named[block] for block, count in enumerate(self._references)), "a reference count is wrong"

    def _retire(self, block: int) -> None:
        if self._pins[block]:
            self._num_limbo += 1
        else:
            self._free.append(block)
