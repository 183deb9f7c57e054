"""Block tables: which blocks hold a sequence's KV, grown on demand, shared by fork, copied on write."""

from __future__ import annotations

from orcinus.core.kv.pool import BlockPool
from orcinus.core.plan import BlockCopy


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that hold `num_tokens` tokens."""
    return -(-num_tokens // block_size)


class BlockTable:
    """The blocks of one sequence in order of position. `dirty_from` is the first entry the workers don't know yet."""

    __slots__ = ("blocks", "dirty_from")

    def __init__(self) -> None:
        self.blocks: list[int] = []
        self.dirty_from = 0

    def needed(self, start: int, end: int, block_size: int, pool: BlockPool) -> int:
        """Free blocks that `prepare` would take for writing positions start .. end."""
        blocks, entry = self.blocks, start // block_size
        copied = entry < len(blocks) and not pool.is_writable(blocks[entry])
        return max(0, -(-end // block_size) - len(blocks)) + copied

    def prepare(self, start: int, end: int, block_size: int, pool: BlockPool) -> BlockCopy | None:
        """Make positions start .. end writable: copy the first block if others may read it, then grow.

        At most one copy: only the block that holds `start` can be both filled and shared, since a fork shares no
        block past it. The copy's source is pinned; the caller unpins it when the plan is collected.
        """
        copy = None
        if self._writes_shared(start, block_size, pool):
            entry = start // block_size
            source = self.blocks[entry]
            (target,) = pool.allocate(1)
            pool.pin([source])
            pool.release([source])
            self._set(entry, target)
            copy = BlockCopy(source, target)
        missing = blocks_for(end, block_size) - len(self.blocks)
        if missing > 0:
            self.dirty_from = min(self.dirty_from, len(self.blocks))
            self.blocks += pool.allocate(missing)
        return copy

    def fork(self, num_tokens: int, block_size: int, pool: BlockPool) -> BlockTable:
        """A table that shares the blocks of the first `num_tokens` positions, the last one perhaps in part."""
        branch = BlockTable()
        branch.blocks = self.blocks[: blocks_for(num_tokens, block_size)]
        pool.share(branch.blocks)
        return branch

    def replace(self, entry: int, block: int, pool: BlockPool) -> None:
        """Read `block`, which holds the same KV, from now on; the one it replaces is released."""
        pool.share([block])
        pool.release([self.blocks[entry]])
        self._set(entry, block)

    def take(self, blocks: list[int], pool: BlockPool) -> None:
        """Begin with `blocks`, found in the radix tree; whatever was there is released."""
        pool.share(blocks)
        self.clear(pool)
        self.blocks = list(blocks)

    def clear(self, pool: BlockPool) -> None:
        """Give every block back."""
        pool.release(self.blocks)
        self.blocks = []
        self.dirty_from = 0

    def _writes_shared(self, start: int, block_size: int, pool: BlockPool) -> bool:
        entry = start // block_size
        return entry < len(self.blocks) and not pool.is_writable(self.blocks[entry])

    def _set(self, entry: int, block: int) -> None:
        self.blocks[entry] = block
        self.dirty_from = min(self.dirty_from, entry)
