"""Block pool and block tables against a naive model: a dict of lists, and sets computed afresh each time."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orcinus.core.kv.pool import BlockPool
from orcinus.core.kv.table import BlockTable, blocks_for
from orcinus.core.plan import BlockCopy


class Allocator:
    """The real pool and tables beside their model. Each slot holds a number, so that a lost or shared write shows."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.pool = BlockPool(num_blocks)
        self.size = block_size
        self.tables: dict[int, BlockTable] = {}
        self.written: dict[int, list[int]] = {}
        self.model: dict[int, list[int]] = {}
        self.plans: list[list[int]] = []
        self.memory: dict[tuple[int, int], int] = {}
        self.made = 0

    # ---- operations

    def create(self) -> int:
        return self._insert(BlockTable(), [], [])

    def write(self, name: int, count: int) -> bool:
        """Write `count` positions more, if the pool allows it; what was there already may be copied, one block only."""
        start = len(self.written[name])
        table, end = self.tables[name], start + count
        needed = table.needed(start, end, self.size, self.pool)
        if needed > len(self.model_free()):
            return False
        before = list(table.blocks)
        free = self.model_free()
        copy = table.prepare(start, end, self.size, self.pool)
        self._follow(name, before, table.blocks, copy, free, needed)
        for at in range(start, end):
            self.made += 1
            self.memory[table.blocks[at // self.size], at % self.size] = self.made
            self.written[name].append(self.made)
        return True

    def fork(self, name: int, share: float) -> int:
        """Branch off after a part of what is written."""
        num_tokens = round(len(self.written[name]) * share)
        branch = self.tables[name].fork(num_tokens, self.size, self.pool)
        kept = self.model[name][: blocks_for(num_tokens, self.size)]
        return self._insert(branch, kept, self.written[name][:num_tokens])

    def free(self, name: int) -> None:
        self.tables.pop(name).clear(self.pool)
        del self.model[name], self.written[name]

    def pin(self, name: int) -> None:
        """A plan goes out that uses the table."""
        self.pool.pin(self.model[name])
        self.plans.append(list(self.model[name]))

    def unpin(self) -> None:
        """The oldest plan is collected."""
        self.pool.unpin(self.plans.pop(0))

    # ---- the model

    def model_free(self) -> set[int]:
        named = {block for blocks in self.model.values() for block in blocks}
        pinned = {block for plan in self.plans for block in plan}
        return set(range(self.pool.num_blocks)) - named - pinned

    def check(self) -> None:
        named = Counter(block for blocks in self.model.values() for block in blocks)
        pinned = {block for plan in self.plans for block in plan}
        assert self.pool.num_free == len(self.model_free())
        assert self.pool.num_limbo == len(pinned - named.keys())
        assert [self.pool.references(b) for b in range(self.pool.num_blocks)] == [
            named[b] for b in range(self.pool.num_blocks)
        ]
        for name, table in self.tables.items():
            assert table.blocks == self.model[name]
            slots = [(table.blocks[at // self.size], at % self.size) for at in range(len(self.written[name]))]
            assert [self.memory[slot] for slot in slots] == self.written[name], "a table reads what it didn't write"
        self.pool.check(table.blocks for table in self.tables.values())

    def empty(self) -> None:
        for name in list(self.tables):
            self.free(name)
        while self.plans:
            self.unpin()
        self.check()
        assert self.pool.num_free == self.pool.num_blocks

    def _insert(self, table: BlockTable, blocks: list[int], written: list[int]) -> int:
        self.made += 1
        self.tables[self.made] = table
        self.model[self.made] = blocks
        self.written[self.made] = written
        return self.made

    def _follow(
        self, name: int, before: list[int], after: list[int], copy: BlockCopy | None, free: set[int], needed: int
    ) -> None:
        """Replaced and new entries come from the free set; at most one is replaced, and copied from what it was."""
        replaced = [i for i, block in enumerate(before) if after[i] != block]
        taken = [after[i] for i in replaced] + after[len(before) :]
        assert len(set(taken)) == len(taken) == needed
        assert set(taken) <= free
        if copy is None:
            assert not replaced
        else:
            (entry,) = replaced
            assert copy == BlockCopy(before[entry], after[entry])
            self.plans.append([copy.source])
            for offset in range(self.size):
                if (copy.source, offset) in self.memory:
                    self.memory[copy.target, offset] = self.memory[copy.source, offset]
        self.model[name] = list(after)


class AllocatorMachine(RuleBasedStateMachine):
    @initialize(num_blocks=st.integers(1, 12), block_size=st.integers(1, 5))
    def start(self, num_blocks, block_size):
        self.allocator = Allocator(num_blocks, block_size)

    @rule()
    def create(self):
        self.allocator.create()

    @precondition(lambda self: self.allocator.tables)
    @rule(data=st.data(), count=st.integers(1, 9))
    def write(self, data, count):
        self.allocator.write(self._pick(data), count)

    @precondition(lambda self: self.allocator.tables)
    @rule(data=st.data(), share=st.floats(0, 1))
    def fork(self, data, share):
        self.allocator.fork(self._pick(data), share)

    @precondition(lambda self: self.allocator.tables)
    @rule(data=st.data())
    def free(self, data):
        self.allocator.free(self._pick(data))

    @precondition(lambda self: self.allocator.tables)
    @rule(data=st.data())
    def pin(self, data):
        self.allocator.pin(self._pick(data))

    @precondition(lambda self: self.allocator.plans)
    @rule()
    def unpin(self):
        self.allocator.unpin()

    @invariant()
    def agrees_with_the_model(self):
        if hasattr(self, "allocator"):
            self.allocator.check()

    def teardown(self):
        if hasattr(self, "allocator"):
            self.allocator.empty()

    def _pick(self, data):
        return data.draw(st.sampled_from(list(self.allocator.tables)))


AllocatorMachine.TestCase.settings = settings(derandomize=True, deadline=None, max_examples=60, stateful_step_count=40)
TestAllocatorMachine = AllocatorMachine.TestCase


def random_operation(allocator: Allocator, rng: random.Random) -> str:
    roll = rng.random()
    if not allocator.tables or roll < 0.1:
        allocator.create()
        return "create"
    name = rng.choice(list(allocator.tables))
    if roll < 0.5:
        return "write" if allocator.write(name, rng.choice([1, 1, 1, 2, 7])) else "full"
    if roll < 0.65 and len(allocator.tables) < 12:
        allocator.fork(name, rng.choice([rng.random(), 1.0]))
        return "fork"
    if roll < 0.8:
        allocator.free(name)
        return "free"
    if roll < 0.9 and len(allocator.plans) < 4:
        allocator.pin(name)
        return "pin"
    if allocator.plans:
        allocator.unpin()
    return "unpin"


@pytest.mark.slow
def test_a_hundred_thousand_random_operations_agree_with_the_naive_model():
    rng = random.Random(20)
    allocator = Allocator(num_blocks=24, block_size=3)
    seen: Counter[str] = Counter()
    for _ in range(100_000):
        seen[random_operation(allocator, rng)] += 1
        allocator.check()
    assert min(seen.values()) > 1000, f"an operation hardly occurs: {seen}"
    allocator.empty()


def test_a_write_into_a_shared_block_copies_it_and_its_last_owner_writes_in_place():
    pool, size = BlockPool(8), 4
    first = BlockTable()
    assert first.prepare(0, 6, size, pool) is None
    second = first.fork(6, size, pool)
    assert first.blocks == second.blocks
    copy = second.prepare(6, 7, size, pool)
    assert copy == BlockCopy(first.blocks[1], second.blocks[1])
    assert first.blocks[0] == second.blocks[0]
    assert first.prepare(6, 7, size, pool) is None


def test_a_released_block_stays_in_limbo_until_the_last_plan_is_collected():
    pool = BlockPool(1)
    table = BlockTable()
    table.prepare(0, 1, 16, pool)
    pool.pin([0])
    pool.pin([0])
    table.clear(pool)
    assert (pool.num_free, pool.num_limbo) == (0, 1)
    pool.unpin([0])
    assert (pool.num_free, pool.num_limbo) == (0, 1)
    pool.unpin([0])
    assert (pool.num_free, pool.num_limbo) == (1, 0)


def test_misuse_is_an_assertion_and_not_a_silent_leak():
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    with pytest.raises(AssertionError, match="1 are free"):
        pool.allocate(2)
    with pytest.raises(AssertionError, match="unpinned twice"):
        pool.unpin([block])
    pool.release([block])
    with pytest.raises(AssertionError, match="released twice"):
        pool.release([block])
    with pytest.raises(AssertionError, match="shared after its release"):
        pool.share([block])


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda pool, table: pool.share(table), "a reference count is wrong"),
        (lambda pool, table: pool.release(table), "a reference count is wrong"),
        (lambda pool, table: pool._free.pop(), "blocks were lost"),
        (lambda pool, table: pool._free.__setitem__(0, pool._free[1]), "free twice"),
        (lambda pool, table: pool._free.__setitem__(0, table[0]), "a free block is used"),
        (lambda pool, table: pool.pin([pool._free[0]]), "a free block is used"),
    ],
)
def test_the_conservation_check_finds_each_kind_of_damage(break_it, message):
    pool = BlockPool(6)
    table = pool.allocate(2)
    pool.check([table])
    break_it(pool, table)
    with pytest.raises(AssertionError, match=message):
        pool.check([table])
