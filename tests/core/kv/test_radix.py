"""The radix tree against the obvious model: a table of token tuples. Every operation is followed by every check."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orcinus.core.kv.radix import Namespace, RadixTree
from orcinus.core.request import pack_tokens, unpack_tokens

HERE, THERE = Namespace("", "", "", ""), Namespace("a", "", "", "")
NUM_BLOCKS = 64

Prefix = tuple[Namespace, tuple[int, ...]]


class Forest:
    """The tree, and beside it each cached prefix, token by token, with the block that ends it."""

    def __init__(self, block_size: int) -> None:
        self.size = block_size
        self.tree = RadixTree(NUM_BLOCKS, block_size)
        self.model: dict[Prefix, int] = {}
        self.unused = list(range(NUM_BLOCKS))

    def prefixes(self, namespace: Namespace, tokens: list[int]) -> list[Prefix]:
        return [(namespace, tuple(tokens[:end])) for end in range(self.size, len(tokens) + 1, self.size)]

    def find(self, namespace: Namespace, tokens: list[int]) -> list[int]:
        """What the model says that is cached of `tokens`, and the tree must say too."""
        expected = []
        for prefix in self.prefixes(namespace, tokens):
            if prefix not in self.model:
                break
            expected.append(self.model[prefix])
        assert self.tree.find(namespace, pack_tokens(tokens)) == expected
        return expected

    def insert(self, namespace: Namespace, tokens: list[int], known: int) -> None:
        """The full blocks of `tokens`; the first `known` of those that are cached are the caller's own way there."""
        cached = self.find(namespace, tokens)
        known = min(known, len(cached))
        prefixes = self.prefixes(namespace, tokens)[known:]
        fresh = [self.unused.pop() for _ in prefixes] if len(prefixes) <= len(self.unused) else []
        if not fresh:
            return
        whole = (len(tokens) - len(tokens) % self.size) * 4
        given = pack_tokens(tokens)[known * self.size * 4 : whole]
        kept = self.tree.extend(namespace, cached[known - 1] if known else None, given, fresh)
        assert kept == cached[known:] + fresh[len(cached) - known :]
        self.unused += fresh[: len(cached) - known]
        self.model.update(zip(prefixes, kept, strict=True))

    def ends(self) -> list[Prefix]:
        """Prefixes that no longer one begins with."""
        return [a for a in self.model if not any(self.is_below(b, a) for b in self.model if b != a)]

    def is_below(self, longer: Prefix, shorter: Prefix) -> bool:
        return longer[0] == shorter[0] and longer[1][: len(shorter[1])] == shorter[1]

    def evict(self, prefix: Prefix) -> None:
        block = self.model.pop(prefix)
        self.tree.remove_last(block)
        self.unused.append(block)

    def cut(self, prefix: Prefix) -> None:
        doomed = [other for other in self.model if self.is_below(other, prefix)]
        expected = sorted(self.model[other] for other in doomed)
        assert sorted(self.tree.remove_below(self.model[prefix])) == expected
        for other in doomed:
            self.unused.append(self.model.pop(other))

    def check(self) -> None:
        self.tree.check()
        assert self.tree.num_blocks == len(self.model)
        listed: dict[Prefix, int] = {}
        for namespace, packed, blocks in self.tree.paths():
            listed.update(zip(self.prefixes(namespace, list(unpack_tokens(packed))), blocks, strict=True))
        assert listed == self.model
        for (_, tokens), block in self.model.items():
            assert self.tree.depth(block) == len(tokens) // self.size - 1
        assert all(self.tree.depth(block) == -1 for block in self.unused)


# Few tokens and short lines: most lines share a beginning, many part in the middle of a run.
TOKENS = st.lists(st.integers(0, 1), max_size=14)
NAMESPACES = st.sampled_from([HERE, THERE])


class RadixMachine(RuleBasedStateMachine):
    @initialize(block_size=st.integers(1, 3))
    def start(self, block_size):
        self.forest = Forest(block_size)

    @rule(namespace=NAMESPACES, tokens=TOKENS, known=st.integers(0, 6))
    def insert(self, namespace, tokens, known):
        self.forest.insert(namespace, tokens, known)

    @rule(namespace=NAMESPACES, tokens=TOKENS)
    def find(self, namespace, tokens):
        self.forest.find(namespace, tokens)

    @precondition(lambda self: self.forest.model)
    @rule(data=st.data())
    def evict(self, data):
        self.forest.evict(data.draw(st.sampled_from(self.forest.ends())))

    @precondition(lambda self: self.forest.model)
    @rule(data=st.data())
    def cut(self, data):
        self.forest.cut(data.draw(st.sampled_from(list(self.forest.model))))

    @rule()
    def clear(self):
        assert sorted(self.forest.tree.clear()) == sorted(self.forest.model.values())
        self.forest.unused += self.forest.model.values()
        self.forest.model.clear()

    @invariant()
    def holds_what_the_model_holds(self):
        if hasattr(self, "forest"):
            self.forest.check()


RadixMachine.TestCase.settings = settings(derandomize=True, deadline=None, max_examples=120, stateful_step_count=40)
TestRadixMachine = RadixMachine.TestCase


@pytest.mark.parametrize("seed", range(20))
def test_long_random_lives_agree_with_the_model(seed):
    rng = random.Random(seed)
    forest = Forest(rng.choice([1, 2, 4]))
    for _ in range(300):
        tokens = [rng.choice([0, 0, 0, 1]) for _ in range(rng.randrange(24))]
        roll = rng.random()
        if roll < 0.55:
            forest.insert(rng.choice([HERE, THERE]), tokens, rng.randrange(4))
        elif roll < 0.7:
            forest.find(rng.choice([HERE, THERE]), tokens)
        elif roll < 0.97 and forest.model:
            forest.evict(rng.choice(forest.ends()))
        elif forest.model:
            forest.cut(rng.choice(list(forest.model)))
        forest.check()


def tree_of(*lines: list[int]) -> RadixTree:
    tree, block = RadixTree(NUM_BLOCKS, 2), 0
    for line in lines:
        tree.extend(HERE, None, pack_tokens(line), list(range(block, block + len(line) // 2)))
        block += len(line) // 2
    return tree


def test_a_prefix_of_another_namespace_is_not_found():
    tree = tree_of([1, 2, 3, 4])
    assert tree.find(HERE, pack_tokens([1, 2, 3, 4])) == [0, 1]
    for other in (THERE, Namespace("", "a", "", ""), Namespace("", "", "a", ""), Namespace("", "", "", "a")):
        assert tree.find(other, pack_tokens([1, 2, 3, 4])) == []


def test_the_parts_of_a_namespace_do_not_run_together():
    """Tenant `a` with salt `b` is nobody's tenant `ab`."""
    tree = RadixTree(NUM_BLOCKS, 2)
    tree.extend(Namespace("a", "b", "", ""), None, pack_tokens([1, 2]), [0])
    assert tree.find(Namespace("ab", "", "", ""), pack_tokens([1, 2])) == []
    assert tree.find(Namespace("", "ab", "", ""), pack_tokens([1, 2])) == []


def test_half_a_block_is_not_found():
    assert tree_of([1, 2, 3, 4]).find(HERE, pack_tokens([1, 2, 3])) == [0]
    assert tree_of([1, 2, 3, 4]).find(HERE, pack_tokens([1, 2, 3, 5])) == [0]


def test_tokens_that_differ_in_their_high_bytes_are_others():
    tree = tree_of([1, 2])
    assert tree.find(HERE, pack_tokens([1 + 2**24, 2])) == []
    assert tree.find(HERE, pack_tokens([1, 2 + 2**8])) == []


def test_a_block_is_not_evicted_before_those_below_it():
    tree = tree_of([1, 2, 3, 4])
    with pytest.raises(AssertionError, match="block 0 is evicted before those below it"):
        tree.remove_last(0)
    with pytest.raises(AssertionError, match="block 9 is evicted, and the tree doesn't hold it"):
        tree.remove_last(9)


def test_a_branch_that_came_and_went_leaves_no_seam():
    """Else a long-lived prompt would fray into nodes of one block, and finding it would slow down."""
    tree = tree_of([1, 2, 3, 4, 5, 6], [1, 2, 9, 9])
    assert len(list(tree.paths())) == 2
    tree.remove_last(4)
    tree.check()
    assert tree.find(HERE, pack_tokens([1, 2, 3, 4, 5, 6])) == [0, 1, 2]


def test_an_empty_namespace_is_forgotten():
    """Salts come from clients: what they leave behind must not grow."""
    tree = RadixTree(NUM_BLOCKS, 1)
    for number in range(1000):
        tree.extend(Namespace("", str(number), "", ""), None, pack_tokens([1]), [0])
        tree.remove_last(0)
    assert tree._roots == {}


def test_cutting_a_block_that_is_not_there_does_nothing():
    assert tree_of([1, 2]).remove_below(9) == []
