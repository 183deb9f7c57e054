"""The pool of KV blocks: who owns which, and how often. Bookkeeping only; the memory itself is the worker's."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence

from orcinus.core.kv.radix import RadixTree


class BlockPool:
    """`num_blocks` blocks, each free, owned (reference count > 0), in limbo, or cached.

    *Limbo*: nobody owns the block any more, but a plan in flight may still read or write it. A *pin* a plan keeps it
    from being handed out; the last unpin frees it (DESIGN.md §3, IterationPlan). vLLM, SOSP '23, §4.2 and §4.4.

    *Cached*: nobody uses the block, but the radix tree holds it. It is handed out when no free one is left, the least
    recently used first. Whoever uses a block of the tree uses those above it too, and what falls idle together is
    queued from the end of the path: so the head of the queue always ends a path, and all cached blocks can be had.

    *Awaited*: somebody was preempted and will come back for the block. `spill` is told of each such block before it is
    taken.
    """

    def __init__(
        self, num_blocks: int, tree: RadixTree | None = None, spill: Callable[[int], None] = lambda _: None
    ) -> None:
        assert num_blocks > 0
        self.num_blocks = num_blocks
        self.num_evicted = 0
        # A stack: the block freed last is the one whose lines are still in the processor's cache.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._references = [0] * num_blocks
        self._pins = [0] * num_blocks
        self._is_awaited = [False] * num_blocks
        self._num_limbo = 0
        self._tree = RadixTree(num_blocks, 1) if tree is None else tree
        self._spill = spill
        # In order of last use. Taking the first of a plain dict again and again would scan what was taken before.
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now: free or cached."""
        return len(self._free) + len(self._cached)

    @property
    def num_unused(self) -> int:
        """Blocks that hold nothing anybody could find."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks that nobody uses and the tree holds."""
        return len(self._cached)

    @property
    def num_limbo(self) -> int:
        """Blocks that become free or cached once the plans in flight are collected."""
        return self._num_limbo

    def cached(self) -> Iterator[int]:
        """The cached ones, in the order in which they will be taken."""
        return iter(self._cached)

    def references(self, block: int) -> int:
        """Owners of `block`."""
        return self._references[block]

    def is_writable(self, block: int) -> bool:
        """One owner, and nobody else can find it."""
        return self._references[block] == 1 and self._tree.depth(block) < 0

    def count_cached(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` nobody uses."""
        return sum(map(self._cached.__contains__, blocks))

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks, each with one owner. The caller has checked `num_free`."""
        assert 0 <= count <= self.num_free, f"asked for {count} blocks, {self.num_free} are free"
        if count == 0:
            return []
        while count > len(self._free):
            self._evict()
        taken = self._free[-count:]
        del self._free[-count:]
        for block in taken:
            self._references[block] = 1
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """One more owner for each of `blocks`, which are owned or held by the tree."""
        for block in blocks:
            if self._references[block] == 0:
                self._revive(block)
            self._references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One owner less for each of `blocks`; the last one frees it, or leaves it in limbo while it is pinned."""
        idle = []
        for block in blocks:
            assert self._references[block] > 0, f"block {block} is released twice"
            self._references[block] -= 1
            if self._references[block] == 0:
                if self._pins[block]:
                    self._num_limbo += 1
                else:
                    idle.append(block)
        self._retire(idle)

    def pin(self, blocks: Iterable[int]) -> None:
        """A plan in flight uses `blocks`: they can't be handed out again before it is collected."""
        for block in blocks:
            self._pins[block] += 1

    def unpin(self, blocks: Iterable[int]) -> None:
        """The plan is collected or fenced."""
        idle = []
        for block in blocks:
            assert self._pins[block] > 0, f"block {block} is unpinned twice"
            self._pins[block] -= 1
            if self._pins[block] == 0 and self._references[block] == 0:
                self._num_limbo -= 1
                idle.append(block)
        self._retire(idle)

    def expect(self, blocks: Iterable[int], *, back: bool) -> None:
        """Whoever leaves `blocks` will be `back`, or is."""
        for block in blocks:
            self._is_awaited[block] = back

    def forget(self, blocks: Iterable[int]) -> None:
        """The tree holds `blocks` no longer: those that nobody uses are free."""
        for block in blocks:
            self._is_awaited[block] = False
            if block in self._cached:
                del self._cached[block]
                self._free.append(block)

    def check(self, tables: Iterable[Iterable[int]]) -> None:
        """Conservation: free + cached + limbo + owned = total, and each count is the number of tables naming the block.

        And what eviction rests on: a block of the tree that is in use lies below none that isn't.
        """
        named = Counter(block for table in tables for block in table)
        owned = sum(1 for count in self._references if count)
        states = len(self._free) + len(self._cached) + self._num_limbo + owned
        assert states == self.num_blocks, "blocks were lost or invented"
        assert len(set(self._free)) == len(self._free), "a block is free twice"
        idle = [*self._free, *self._cached]
        assert all(self._references[block] == 0 and self._pins[block] == 0 for block in idle), "a free block is used"
        assert all(self._tree.depth(block) < 0 for block in self._free), "the tree holds a free block"
        assert all(self._tree.depth(block) >= 0 for block in self._cached), "a cached block isn't in the tree"
        assert not any(self._is_awaited[block] for block in self._free), "somebody waits for a free block"
        assert all(count == named[block] for block, count in enumerate(self._references)), "a reference count is wrong"
        self._check_paths()

    def _check_paths(self) -> None:
        self._tree.check()
        queue = {block: place for place, block in enumerate(self._cached)}
        for _, _, blocks in self._tree.paths():
            # Blocks in use come first, then the cached ones, last in the queue first.
            places = [queue.get(block, self.num_blocks) for block in blocks]
            assert places == sorted(places, reverse=True), "a block would be evicted before those below it"

    def _revive(self, block: int) -> None:
        assert self._tree.depth(block) >= 0, f"block {block} is shared after its release"
        if self._pins[block]:
            self._num_limbo -= 1
        else:
            del self._cached[block]

    def _retire(self, idle: Sequence[int]) -> None:
        """Nobody uses `idle` any more."""
        depth = self._tree.depth
        cached = [block for block in idle if depth(block) >= 0]
        if not cached:
            self._free += idle
            return
        self._free += [block for block in idle if depth(block) < 0]
        # Pins come in no particular order.
        for block in sorted(cached, key=depth, reverse=True):
            self._cached[block] = None

    def _evict(self) -> None:
        block, _ = self._cached.popitem(last=False)
        if self._is_awaited[block]:
            self._spill(block)
            self._is_awaited[block] = False
        self._tree.remove_last(block)
        self._free.append(block)
        self.num_evicted += 1
