"""The radix tree: which prefixes of tokens have their KV in which blocks (SGLang, NeurIPS '24; SYSTEMS.md §3).

Only full blocks are in it. A path from a root spells a prefix; an edge holds a run of blocks, and ends at a block
border. Structure alone: who owns a block and which goes first is the pool's to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from orcinus.core.request import Request

TOKEN_BYTES = 4


class Namespace(NamedTuple):
    """Whose KV, and of which weights: prefixes of different namespaces never meet (RELIABILITY.md, S16)."""

    tenant: str
    cache_salt: str
    weights_revision: str
    adapter: str

    @classmethod
    def of(cls, request: Request) -> Namespace:
        """The caller's identity first: what a client sends can narrow who shares, never widen it."""
        return cls(request.tenant, request.cache_salt, request.weights_revision, request.adapter)


class _Node:
    """A run of blocks and their tokens. `key`, the tokens of its first block, is its place among its siblings.

    `start` counts the blocks above it. A root has no run, no parent and, alone, a namespace.
    """

    __slots__ = ("blocks", "children", "key", "namespace", "parent", "start", "tokens")

    def __init__(self, tokens: bytes, blocks: list[int], start: int, width: int) -> None:
        self.key = tokens[:width]
        # It grows while its sequence does; a `bytes` would be copied each time.
        self.tokens = bytearray(tokens)
        self.blocks = blocks
        self.start = start
        self.parent: _Node | None = None
        self.children: dict[bytes, _Node] = {}
        self.namespace: Namespace | None = None

    @property
    def end(self) -> int:
        """Blocks from the root to its last block."""
        return self.start + len(self.blocks)

    def adopt(self, child: _Node) -> None:
        """`child` hangs here."""
        child.parent = self
        self.children[child.key] = child


class RadixTree:
    """Prefixes and their blocks. Tokens are packed uint32, looked up by content: a hash only says where to compare."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._width = block_size * TOKEN_BYTES
        self._roots: dict[Namespace, _Node] = {}
        self._nodes: list[_Node | None] = [None] * num_blocks
        # Blocks above it on its path; -1 if it isn't in the tree.
        self._depths = [-1] * num_blocks
        # What each block is called outside the tree, once somebody has asked (`keys.py`); gone with the block.
        self.keys = [b""] * num_blocks
        self.num_blocks = 0
        # Counts changes of what can be found.
        self.version = 0

    def depth(self, block: int) -> int:
        """Blocks above `block` on its path; -1 if the tree doesn't hold it."""
        return self._depths[block]

    def place(self, block: int) -> tuple[int | None, bytes, Namespace | None]:
        """The block above `block` (None: it is the first one), the tokens in `block`, and then whose they are."""
        node = self._nodes[block]
        assert node is not None, f"block {block} isn't in the tree"
        entry = self._depths[block] - node.start
        tokens = bytes(node.tokens[entry * self._width : (entry + 1) * self._width])
        if entry:
            return node.blocks[entry - 1], tokens, None
        assert node.parent is not None
        return (node.parent.blocks[-1] if node.parent.blocks else None), tokens, node.parent.namespace

    def find(self, namespace: Namespace, tokens: bytes) -> list[int]:
        """Blocks of the longest prefix of `tokens` that is held. Changes nothing; O(len(tokens)) in bytes compared."""
        found: list[int] = []
        node, at, width = self._roots.get(namespace), 0, self._width
        while node is not None:
            child = node.children.get(tokens[at : at + width])
            if child is None:
                break
            run = child.tokens
            # Its key is all of a node of one block.
            if len(run) > width and not tokens.startswith(run, at):
                found += child.blocks[: _common(run, tokens[at:], width)]
                break
            found += child.blocks
            at += len(run)
            node = child
        return found

    def extend(self, namespace: Namespace, above: int | None, tokens: bytes, blocks: list[int]) -> list[int]:
        """Hang `blocks`, which hold `tokens`, below the block `above` (None: at the root).

        Returns:
            The blocks that the tree holds for these tokens: its own where it had some, else those given.
        """
        node, used, width = *self._place(namespace, above), self._width
        kept: list[int] = []
        while len(kept) < len(blocks):
            at = len(kept) * width
            if used < len(node.blocks):
                same = _common(node.tokens[used * width :], tokens[at:], width)
                kept += node.blocks[used : used + same]
                used += same
                if len(kept) < len(blocks) and used < len(node.blocks):
                    node = self._split(node, used)
                continue
            child = node.children.get(tokens[at : at + width])
            if child is None:
                self._hang(node, tokens[at:], blocks[len(kept) :])
                return kept + blocks[len(kept) :]
            node, used = child, 0
        return kept

    def remove_last(self, block: int) -> None:
        """Take out `block`, the end of a path."""
        node = self._nodes[block]
        assert node is not None, f"block {block} is evicted, and the tree doesn't hold it"
        is_last = node.blocks[-1] == block and not node.children
        assert is_last, f"block {block} is evicted before those below it"
        self._cut(node, len(node.blocks) - 1)

    def remove_below(self, block: int) -> list[int]:
        """Take out `block` and all that hangs below it; the blocks taken out. O(their number)."""
        node = self._nodes[block]
        if node is None:
            return []
        removed: list[int] = []
        doomed = list(node.children.values())
        node.children = {}
        while doomed:
            below = doomed.pop()
            doomed += below.children.values()
            removed += self._unlist(below.blocks)
        return self._cut(node, self._depths[block] - node.start) + removed

    def clear(self) -> list[int]:
        """Take out everything; the blocks taken out."""
        removed = [block for block, depth in enumerate(self._depths) if depth >= 0]
        self._roots.clear()
        return self._unlist(removed)

    def paths(self) -> Iterator[tuple[Namespace, bytes, list[int]]]:
        """Every path from a root to an end, as tokens and blocks: for checks."""
        for namespace, root in self._roots.items():
            below = [(child, b"", list[int]()) for child in root.children.values()]
            while below:
                node, tokens, blocks = below.pop()
                tokens, blocks = tokens + node.tokens, blocks + node.blocks
                if not node.children:
                    yield namespace, tokens, blocks
                below += [(child, tokens, blocks) for child in node.children.values()]

    def check(self) -> None:
        """Each block once, listed where it hangs; no empty node, no needless one; keys are what they say."""
        seen = 0
        for root in self._roots.values():
            assert root.children, "an empty namespace is kept"
            nodes = list(root.children.values())
            while nodes:
                node = nodes.pop()
                nodes += node.children.values()
                seen += len(node.blocks)
                self._check_node(node)
        assert seen == self.num_blocks == sum(depth >= 0 for depth in self._depths), "the tree lost count of its blocks"

    def _check_node(self, node: _Node) -> None:
        assert node.blocks, "an empty node is kept"
        assert len(node.tokens) == len(node.blocks) * self._width
        assert node.key == node.tokens[: self._width], "a node hangs under a wrong key"
        assert node.parent is not None
        assert node.parent.children[node.key] is node
        assert node.start == node.parent.end, "a node lies at a wrong depth"
        assert len(node.children) != 1, "two nodes that could be one"
        for at, block in enumerate(node.blocks, node.start):
            assert self._nodes[block] is node, f"block {block} is listed elsewhere"
            assert self._depths[block] == at

    def _place(self, namespace: Namespace, above: int | None) -> tuple[_Node, int]:
        """Where to go on below `above`: a node, and how many of its blocks lie behind."""
        if above is not None:
            node = self._nodes[above]
            assert node is not None, f"block {above} isn't in the tree"
            return node, self._depths[above] + 1 - node.start
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = _Node(b"", [], 0, self._width)
            root.namespace = namespace
        return root, 0

    def _hang(self, node: _Node, tokens: bytes, blocks: list[int]) -> None:
        """New blocks below the end of `node`: it grows if nothing hangs there, else it gets a child."""
        start = node.end
        if node.parent is not None and not node.children:
            node.tokens += tokens
            node.blocks += blocks
        else:
            child = _Node(tokens, blocks, start, self._width)
            node.adopt(child)
            node = child
        self.num_blocks += len(blocks)
        self.version += 1
        for depth, block in enumerate(blocks, start):
            self._nodes[block] = node
            self._depths[block] = depth

    def _split(self, node: _Node, used: int) -> _Node:
        """Part `node` behind its first `used` blocks; the upper part. What hangs below stays with the lower one."""
        assert node.parent is not None
        cut = used * self._width
        upper = _Node(bytes(node.tokens[:cut]), node.blocks[:used], node.start, self._width)
        node.parent.adopt(upper)
        for block in upper.blocks:
            self._nodes[block] = upper
        del node.tokens[:cut]
        del node.blocks[:used]
        node.key = bytes(node.tokens[: self._width])
        node.start += used
        upper.adopt(node)
        return upper

    def _join(self, upper: _Node) -> None:
        """Undo a split, once only one part hangs below: else a path frays with every branch that came and went."""
        (lower,) = upper.children.values()
        assert upper.parent is not None
        lower.tokens[:0] = upper.tokens
        lower.blocks[:0] = upper.blocks
        lower.key, lower.start = upper.key, upper.start
        upper.parent.adopt(lower)
        for block in upper.blocks:
            self._nodes[block] = lower

    def _cut(self, node: _Node, used: int) -> list[int]:
        """Shorten `node`, which has no children, to its first `used` blocks; it goes if that is none."""
        removed = self._unlist(node.blocks[used:])
        del node.blocks[used:]
        del node.tokens[used * self._width :]
        parent = node.parent
        assert parent is not None
        if node.blocks:
            return removed
        del parent.children[node.key]
        if parent.namespace is not None and not parent.children:
            del self._roots[parent.namespace]
        elif parent.namespace is None and len(parent.children) == 1:
            self._join(parent)
        return removed

    def _unlist(self, blocks: list[int]) -> list[int]:
        for block in blocks:
            self._nodes[block] = None
            self._depths[block] = -1
            self.keys[block] = b""
        self.num_blocks -= len(blocks)
        self.version += 1
        return blocks


def _common(run: bytes | bytearray, tokens: bytes, width: int) -> int:
    """Blocks of `width` bytes that both begin with. By halves, each compared as a whole."""
    low, high = 0, min(len(run), len(tokens)) // width
    while low < high:
        middle = (low + high + 1) // 2
        if run[low * width : middle * width] == tokens[low * width : middle * width]:
            low = middle
        else:
            high = middle - 1
    return low
