"""Names for the KV of blocks that hold in every engine: a keyed hash of whose it is and of all tokens up to its end.

Nothing can be read from a name, and nobody without the seed can make one to see whether it is known (RELIABILITY.md,
S16).
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from orcinus.core.kv.radix import Namespace, RadixTree

KEY_BYTES = 16


class BlockKeys:
    """Names of the blocks of `tree`, each made once while it is there, and of those that could follow."""

    def __init__(self, tree: RadixTree, seed: bytes = b"") -> None:
        self._tree = tree
        self._seed = seed

    def of(self, block: int) -> bytes:
        """The name of a block of the tree."""
        keys, unnamed = self._tree.keys, list[tuple[int, bytes]]()
        above: int | None = block
        namespace: Namespace | None = None
        while above is not None and not keys[above]:
            at = above
            above, tokens, namespace = self._tree.place(at)
            unnamed.append((at, tokens))
        if above is not None:
            key = keys[above]
        else:
            assert namespace is not None
            key = self.root(namespace)
        for at, tokens in reversed(unnamed):
            key = keys[at] = self.after(key, tokens)
        return key

    def parent(self, block: int) -> bytes:
        """The name of what lies above a block of the tree."""
        above, _, namespace = self._tree.place(block)
        if above is not None:
            return self.of(above)
        assert namespace is not None
        return self.root(namespace)

    def root(self, namespace: Namespace) -> bytes:
        """What the first block of a namespace follows."""
        return blake2b(msgspec.msgpack.encode(namespace), key=self._seed, digest_size=KEY_BYTES).digest()

    def after(self, key: bytes, tokens: bytes) -> bytes:
        """The name of the block that holds `tokens` behind the one called `key`."""
        return blake2b(key + tokens, key=self._seed, digest_size=KEY_BYTES).digest()
