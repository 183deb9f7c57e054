"""Host and disk as core keeps account of them, against a model that remembers what was written where."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcinus.core.config import SchedulerConfig
from orcinus.core.kv.keys import BlockKeys
from orcinus.core.kv.pool import BlockPool
from orcinus.core.kv.radix import Namespace, RadixTree
from orcinus.core.kv.tiers import HeldBlock, OnDisk, Tiers
from orcinus.core.plan import Erase, SwapIn, SwapOut
from orcinus.core.request import pack_tokens
from orcinus.errors import ConfigurationError

SIZE, NUM_BLOCKS = 2, 6
ALICE, BOB = Namespace("alice", "", "w", ""), Namespace("bob", "", "w", "")

PATHS = st.tuples(st.sampled_from([ALICE, BOB]), st.lists(st.integers(0, 2), min_size=1, max_size=4))
STEPS = st.lists(st.tuples(st.sampled_from(["use", "use", "use", "forget", "lose", "restart"]), PATHS), max_size=40)


@dataclass
class Content:
    """The KV of the last of `tokens`; in doubt, once somebody said so of what it was built on."""

    namespace: Namespace
    tokens: bytes
    is_doubtful: bool = False

    def follows(self, namespace: Namespace, tokens: bytes) -> bool:
        return self.namespace == namespace and self.tokens.startswith(tokens)


class Model:
    """A device, and slots that hold what was last copied to them; `contents` is by device block."""

    def __init__(self, num_host: int, num_disk: int) -> None:
        config = SchedulerConfig(
            num_blocks=NUM_BLOCKS,
            block_size=SIZE,
            enable_prefix_caching=True,
            num_host_blocks=num_host,
            num_disk_blocks=num_disk,
            host_block_seconds=0.0,
            disk_block_seconds=0.0,
        )
        self._sizes = config.tiers
        self._first_disk_slot = num_host
        self.slots: dict[int, tuple[int, Content]] = {}
        self.generations: dict[int, int] = {}
        self.names: dict[int, tuple[bytes, bytes]] = {}
        self.start(OnDisk())

    def start(self, on_disk: OnDisk) -> None:
        self.tree = RadixTree(NUM_BLOCKS, SIZE)
        self.keys = BlockKeys(self.tree, b"seed")
        self.tiers = Tiers(self._sizes, self.keys, on_disk)
        self.pool = BlockPool(NUM_BLOCKS, self.tree, self.tiers.spill)
        self.contents: dict[int, Content] = {}

    def restart(self) -> None:
        self.slots = {at: held for at, held in self.slots.items() if at >= self._first_disk_slot}
        # The slots that were erased or lost begin anew.
        self.generations = {at: generation for at, (generation, _) in self.slots.items()}
        first = self._first_disk_slot
        held = (HeldBlock(at - first, generation, *self.names[at]) for at, (generation, _) in self.slots.items())
        self.start(OnDisk(b"seed", tuple(held)))

    def carry_out(self) -> None:
        for swap in self.tiers.take():
            match swap:
                case SwapOut():
                    assert swap.generation > self.generations.get(swap.slot, 0), "a generation comes twice"
                    self.generations[swap.slot] = swap.generation
                    self.slots[swap.slot] = (swap.generation, self.contents[swap.block])
                    self.names[swap.slot] = (swap.key, swap.parent)
                case SwapIn():
                    generation, content = self.slots[swap.slot]
                    assert generation == swap.generation, "a stale slot is read"
                    self.contents[swap.block] = content
                case Erase():
                    self.slots.pop(swap.slot, None)

    def use(self, namespace: Namespace, path: list[int]) -> None:
        """Compute a path of blocks, but for what is somewhere; check what comes back; keep all of it."""
        tokens = pack_tokens([token for block in path for token in (block, block)])
        found = self.tree.find(namespace, tokens)
        width = 4 * SIZE
        rest = tokens[len(found) * width :]
        elsewhere = self.tiers.find(namespace, found[-1] if found else None, rest)
        self.pool.share(found)
        self.tiers.lock(elsewhere)
        own = self.pool.allocate(len(path) - len(found))
        self.tiers.restore(elsewhere, own[: len(elsewhere)], seq_id=0)
        self.carry_out()
        for entry, block in enumerate(own, len(found)):
            right = Content(namespace, tokens[: (entry + 1) * width])
            if entry < len(found) + len(elsewhere):
                assert self.contents[block] == right, "another's KV came back, or some that was in doubt"
            else:
                self.contents[block] = right
        if own:
            self.tiers.store(self.tree.extend(namespace, found[-1] if found else None, rest, own))
        self.carry_out()
        self.pool.expect(found + own, back=True)
        self.pool.release(found + own)
        self.check([])

    def forget(self, namespace: Namespace, path: list[int]) -> None:
        found = self.tree.find(namespace, pack_tokens([token for block in path for token in (block, block)]))
        if found:
            self.tiers.forget(found[0])
            self.pool.forget(self.tree.remove_below(found[0]))
            self.carry_out()
            for content in (*self.contents.values(), *(content for _, content in self.slots.values())):
                content.is_doubtful |= content.follows(namespace, pack_tokens([path[0]] * SIZE))
            assert self.tiers.find(namespace, None, pack_tokens([path[0]] * SIZE)) == []

    def lose(self, which: int) -> None:
        disk = [at for at in self.slots if at >= self._first_disk_slot]
        if disk:
            slot = disk[which % len(disk)]
            generation, _ = self.slots[slot]
            before = self.tiers.num_lost
            self.tiers.lose([(slot, generation - 1), (slot, generation + 1)])
            assert self.tiers.num_lost == before, "another generation was lost, not this one"
            del self.slots[slot]
            self.tiers.lose([(slot, generation)])

    def check(self, tables: list[list[int]]) -> None:
        self.pool.check(tables)
        self.tiers.check()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 4), st.integers(0, 4), STEPS)
def test_what_comes_back_is_what_went_away(num_host: int, num_disk: int, steps: list[tuple[str, tuple]]) -> None:
    model = Model(num_host, num_disk)
    for step, (namespace, path) in steps:
        match step:
            case "use":
                model.use(namespace, path)
            case "forget":
                model.forget(namespace, path)
            case "lose":
                model.lose(len(path) + path[0])
            case "restart":
                model.restart()
        model.check([])


def test_the_host_keeps_what_the_device_gives_up_and_gives_it_back() -> None:
    model = Model(4, 0)
    model.use(ALICE, [0, 1, 2])
    model.use(ALICE, [1, 1, 1, 1])
    model.use(ALICE, [2, 2])
    assert model.tiers.num_spilled > 0
    before = model.tiers.num_restored
    model.use(ALICE, [0, 1, 2])
    assert model.tiers.num_restored > before


def test_a_name_depends_on_owner_tokens_and_seed() -> None:
    tree = RadixTree(4, SIZE)
    keys, others = BlockKeys(tree, b"seed"), BlockKeys(tree, b"another")
    tokens = pack_tokens([1, 2])
    names = {keys.after(keys.root(owner), tokens) for owner in (ALICE, BOB)}
    assert len(names | {others.after(others.root(ALICE), tokens), keys.root(Namespace("", "alice", "w", ""))}) == 4


def test_a_plan_that_was_abandoned_left_nothing_that_is_trusted() -> None:
    model = Model(4, 4)
    model.use(ALICE, [0, 1])
    own = model.pool.allocate(NUM_BLOCKS)
    swaps = model.tiers.take()
    assert any(isinstance(swap, SwapOut) for swap in swaps)
    model.tiers.abandon([swaps], kv_lost=False)
    model.pool.release(own)
    model.tiers.check()
    assert len(model.tiers.host) == 0


def test_tiers_need_the_prefix_cache() -> None:
    with pytest.raises(ConfigurationError, match="enable_prefix_caching"):
        SchedulerConfig(num_blocks=1, num_host_blocks=1)


def test_what_was_built_on_doubtful_kv_is_doubtful_too() -> None:
    """Also where the device gave it up long ago: the beginning, computed anew, must not lead to it."""
    model = Model(0, 8)
    model.use(ALICE, [0, 1, 2])
    model.forget(ALICE, [0])
    model.use(ALICE, [0])
    model.use(ALICE, [0, 1, 2])
    assert model.tiers.num_restored == 0
