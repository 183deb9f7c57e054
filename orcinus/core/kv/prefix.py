"""What sequences find in the radix tree and what they leave there (SGLang, NeurIPS '24; SYSTEMS.md §3).

A sequence whose blocks are in the tree reads the tree's: where it computed what the tree had already, its block is
replaced by the tree's. So a block in use never lies below one that isn't, and the pool can evict from the ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from orcinus.core.draft import Entry
from orcinus.core.kv.pool import BlockPool
from orcinus.core.kv.radix import Namespace, RadixTree
from orcinus.core.kv.tiers import Found, Tiers
from orcinus.core.request import Request
from orcinus.core.sequence import Sequence


class PrefixCache:
    """The radix tree between the sequences and the pool. Without `is_enabled` nothing is found and nothing is kept."""

    def __init__(self, pool: BlockPool, tree: RadixTree, tiers: Tiers, block_size: int, *, is_enabled: bool) -> None:
        self._pool = pool
        self._tree = tree
        self._tiers = tiers
        self._block_size = block_size
        self.is_enabled = is_enabled

    @property
    def version(self) -> int:
        """Another number once anybody may find something else."""
        return self._tree.version

    def find(self, sequence: Sequence) -> list[int]:
        """Blocks that hold the KV of the tokens that `sequence` begins with; not of its last, for it must yield logits.

        Changes nothing, so a policy may ask. About 20 µs for 4,000 tokens.
        """
        if not self._may_find(sequence.request):
            return []
        full = (sequence.num_tokens - 1) // self._block_size
        return self._tree.find(Namespace.of(sequence.request), sequence.tokens[: full * self._block_size].tobytes())

    def find_elsewhere(self, sequence: Sequence) -> list[Found]:
        """The blocks that come next for `sequence`, which isn't in flight and computes from where the tree ends, and
        that host or disk have."""
        first = sequence.num_shared_blocks
        if not self._tiers.is_enabled or sequence.num_scheduled != first * self._block_size:
            return []
        if not self._may_find(sequence.request) or not self.is_keeper(sequence):
            return []
        return self._find_behind(sequence, sequence.table.blocks[:first])

    def find_ahead(self, sequence: Sequence) -> tuple[list[int], list[Found]]:
        """What `sequence`, which has no KV, would find if it began now: in the tree, and behind that elsewhere."""
        path = self.find(sequence)
        return path, self._find_behind(sequence, path) if self._may_find(sequence.request) else []

    def _find_behind(self, sequence: Sequence, path: list[int]) -> list[Found]:
        first, full = len(path), (sequence.num_tokens - 1) // self._block_size
        if first >= full:
            return []
        tokens = sequence.tokens[first * self._block_size : full * self._block_size].tobytes()
        return self._tiers.find(Namespace.of(sequence.request), path[-1] if path else None, tokens)

    def take(self, sequence: Sequence, blocks: list[int]) -> None:
        """`sequence`, which has computed nothing, begins behind `blocks`, just found."""
        sequence.table.take(blocks, self._pool)
        self._pool.expect(blocks, back=False)
        sequence.num_shared_blocks = len(blocks)
        sequence.num_computed = sequence.num_scheduled = len(blocks) * self._block_size

    def leave(self, sequence: Sequence) -> None:
        """`sequence` gives its blocks back soon, and will come for what others can find of them."""
        self._pool.expect(filter(self.holds, sequence.table.blocks), back=True)

    def fork(self, leader: Sequence, branch: Sequence, num_tokens: int) -> None:
        """`branch` begins with the first `num_tokens` of `leader`, in the same blocks, the last one perhaps in part."""
        branch.table = leader.table.fork(num_tokens, self._block_size, self._pool)
        branch.num_computed = branch.num_scheduled = num_tokens
        branch.num_shared_blocks = min(leader.num_shared_blocks, num_tokens // self._block_size)
        branch.num_found_blocks = min(leader.num_found_blocks, branch.num_shared_blocks)

    def keep(self, sequence: Sequence, pins: list[int] | None) -> None:
        """Share the blocks of `sequence` that are full by now.

        Args:
            pins: of the newest plan in flight that reads its blocks, if one does.
        """
        first, full = sequence.num_shared_blocks, sequence.num_computed // self._block_size
        if full <= first or not self.is_keeper(sequence):
            return
        blocks, tokens = sequence.table.blocks, sequence.tokens[first * self._block_size : full * self._block_size]
        above = blocks[first - 1] if first else None
        kept = self._tree.extend(Namespace.of(sequence.request), above, tokens.tobytes(), blocks[first:full])
        self._tiers.store(kept)
        for entry, block in enumerate(kept, first):
            own = blocks[entry]
            if own != block:
                if pins is not None:
                    self._pool.pin([own])
                    pins.append(own)
                sequence.table.replace(entry, block, self._pool)
        sequence.num_shared_blocks = full

    def adopt(self, sequence: Sequence, path: list[int], blocks: list[int]) -> None:
        """`blocks` hold what follows in the tokens of `sequence` behind `path`, of the tree."""
        first = len(path)
        tokens = sequence.tokens[first * self._block_size : (first + len(blocks)) * self._block_size]
        self._tree.extend(Namespace.of(sequence.request), path[-1] if path else None, tokens.tobytes(), blocks)

    def is_keeper(self, sequence: Sequence) -> bool:
        """What it computes will be shared. Not what follows on a failed request's KV, and not an encoder's."""
        if not self.is_enabled or sequence.request.pooling is not None:
            return False
        shared = sequence.num_shared_blocks
        return shared == 0 or self.holds(sequence.table.blocks[shared - 1])

    def is_underway(self, sequence: Sequence, num_found: int, entries: Iterable[Entry]) -> bool:
        """One of `entries`, in flight, computes the first block that `sequence` lacks: soon it can be shared.

        The beginning that requests have in common is computed once, however many come at a time.
        """
        start = num_found * self._block_size
        end = start + self._block_size
        if end >= sequence.num_tokens or not self._may_find(sequence.request):
            return False
        wanted = sequence.tokens[start:end]
        return any(
            entry.sequence.num_computed < end <= entry.end
            and entry.sequence.tokens[start:end] == wanted
            and self._leads_to(entry, sequence, start)
            for entry in entries
        )

    def drop(self, sequence: Sequence, *, found_too: bool) -> None:
        """A request has failed: what `sequence` computed leaves the tree, and what it had found, if that is in doubt.

        Others that use those blocks go on, but what they build on them isn't shared.
        """
        first = 0 if found_too else sequence.num_found_blocks
        if first < sequence.num_shared_blocks:
            doubtful = sequence.table.blocks[first]
            if self.holds(doubtful):
                self._tiers.forget(doubtful)
            self._pool.forget(self._tree.remove_below(doubtful))

    def holds(self, block: int) -> bool:
        """It can be found."""
        return self._tree.depth(block) >= 0

    def paths(self) -> Iterator[tuple[Namespace, bytes, list[int]]]:
        """See `RadixTree.paths`."""
        return self._tree.paths()

    def clear(self) -> None:
        """The KV is lost. No sequence owns a block any more."""
        self._pool.forget(self._tree.clear())

    def _may_find(self, request: Request) -> bool:
        """Whoever wants something of each of its tokens computes them all."""
        return self.is_enabled and request.pooling is None and request.params.prompt_logprobs is None

    def _leads_to(self, entry: Entry, sequence: Sequence, start: int) -> bool:
        """The KV of `entry` will count, will be shared, and lies behind the same `start` tokens."""
        other = entry.sequence
        return (
            entry.is_current
            and self.is_keeper(other)
            and Namespace.of(other.request) == Namespace.of(sequence.request)
            and other.tokens[:start] == sequence.tokens[:start]
        )
