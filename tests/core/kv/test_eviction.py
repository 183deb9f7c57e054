"""Which cached block goes first, against the obvious rule: of the ends that nobody uses, the one idle for longest."""

from __future__ import annotations

import random

import pytest

from orcinus.core.kv.pool import BlockPool
from orcinus.core.kv.radix import Namespace, RadixTree
from orcinus.core.request import pack_tokens

HERE = Namespace("", "", "", "")
Line = tuple[int, ...]


class Cache:
    """Pool and tree as sequences use them, block size 1; beside them, of each cached prefix, users and idle since."""

    def __init__(self, num_blocks: int) -> None:
        self.tree = RadixTree(num_blocks, 1)
        self.pool = BlockPool(num_blocks, self.tree)
        self.blocks: dict[Line, int] = {}
        self.users: dict[Line, int] = {}
        self.idle_since: dict[Line, tuple[int, int]] = {}
        self.running: list[tuple[Line, list[int]]] = []
        self.clock = 0

    def begin(self, line: Line) -> None:
        """Take what is there, compute the rest; evictions as the rule has them."""
        found = self.tree.find(HERE, pack_tokens(line))
        missing = len(line) - len(found)
        if missing > self.pool.num_free - self.pool.count_cached(found):
            return
        self._use(line[: len(found)])
        self.pool.share(found)
        doomed = [self._evict_by_rule() for _ in range(missing - (self.pool.num_free - self.pool.num_cached))]
        fresh = self.pool.allocate(missing)
        assert all(self.tree.depth(block) < 0 for block in doomed)
        if missing:
            self.tree.extend(HERE, found[-1] if found else None, pack_tokens(line[len(found) :]), fresh)
        for end, block in enumerate(fresh, len(found) + 1):
            self.blocks[line[:end]], self.users[line[:end]] = block, 1
        self.running.append((line, found + fresh))

    def end(self, at: int) -> None:
        line, blocks = self.running.pop(at)
        self.clock += 1
        for end in range(1, len(line) + 1):
            self.users[line[:end]] -= 1
            if self.users[line[:end]] == 0:
                self.idle_since[line[:end]] = (self.clock, -end)
        self.pool.release(blocks)

    def check(self) -> None:
        self.pool.check(blocks for _, blocks in self.running)
        assert self.tree.num_blocks == len(self.blocks), "another number of blocks was evicted"
        for line, block in self.blocks.items():
            assert self.tree.find(HERE, pack_tokens(line))[-1:] == [block], "another block was evicted"

    def _use(self, line: Line) -> None:
        for end in range(1, len(line) + 1):
            self.users[line[:end]] += 1
            self.idle_since.pop(line[:end], None)

    def _evict_by_rule(self) -> int:
        above = {line[:-1] for line in self.blocks}
        victim = min((line for line in self.idle_since if line not in above), key=self.idle_since.__getitem__)
        del self.users[victim], self.idle_since[victim]
        return self.blocks.pop(victim)


@pytest.mark.parametrize("seed", range(30))
def test_the_least_recently_used_end_of_a_path_is_evicted(seed):
    rng = random.Random(seed)
    cache = Cache(rng.choice([1, 4, 12, 30]))
    for _ in range(150):
        if cache.running and rng.random() < 0.45:
            cache.end(rng.randrange(len(cache.running)))
        else:
            cache.begin(tuple(rng.choice([0, 0, 1]) for _ in range(rng.randint(1, 8))))
        cache.check()
    assert cache.pool.num_evicted > 0


def test_what_was_pinned_out_of_order_is_queued_from_the_end_of_its_path():
    """A plan pins the source of a copy before the tables of sequences that ended under it."""
    cache = Cache(4)
    cache.begin((1, 2, 3))
    line, blocks = cache.running[0]
    cache.pool.pin([blocks[2], blocks[0], blocks[1]])
    cache.pool.release(blocks)
    assert (cache.pool.num_limbo, cache.pool.num_free) == (3, 1)
    cache.pool.unpin([blocks[2], blocks[0], blocks[1]])
    cache.pool.check([])
    cache.pool.allocate(3)
    assert cache.tree.find(HERE, pack_tokens(line)) == blocks[:1]


def test_a_block_in_limbo_can_be_found_and_used_again():
    cache = Cache(3)
    cache.begin((1, 2))
    _, blocks = cache.running[0]
    cache.pool.pin(blocks)
    cache.pool.release(blocks)
    cache.pool.share(blocks)
    assert (cache.pool.num_limbo, cache.pool.num_free) == (0, 1)
    cache.pool.unpin(blocks)
    cache.pool.check([blocks])
    cache.pool.release(blocks)
    assert (cache.pool.num_cached, cache.pool.num_free) == (2, 3)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda cache: cache.pool._cached.move_to_end(cache.blocks[1, 2]), "evicted before those below"),
        (lambda cache: cache.pool._cached.pop(cache.blocks[1, 2]), "blocks were lost"),
        (lambda cache: cache.tree._unlist([cache.blocks[1, 2]]), "a cached block isn't in the tree"),
        (lambda cache: cache.tree._depths.__setitem__(cache.pool._free[0], 0), "the tree holds a free block"),
    ],
)
def test_the_check_finds_each_kind_of_damage(break_it, message):
    cache = Cache(4)
    cache.begin((1, 2))
    cache.end(0)
    cache.check()
    break_it(cache)
    with pytest.raises(AssertionError, match=message):
        cache.pool.check([])
