"""Bugs that people write, planted by hand in the KV pool, the block tables and the prefix cache."""

from __future__ import annotations

from typing import NamedTuple


class Bug(NamedTuple):
    """In `file` of orcinus/core, `old` (found once) becomes `new`."""

    file: str
    old: str
    new: str
    why: str


KV_BUGS = (
    Bug(
        "kv/pool.py",
        "            self._references[block] -= 1\n",
        "",
        "release takes no owner away",
    ),
    Bug(
        "kv/pool.py",
        "                if self._pins[block]:\n",
        "                if False:\n",
        "pinned blocks are freed at once",
    ),
    Bug(
        "kv/pool.py",
        "            self._pins[block] += 1\n",
        "            self._pins[block] = 1\n",
        "a second pin is lost",
    ),
    Bug(
        "kv/pool.py",
        "                self._num_limbo -= 1\n                idle",
        "                idle",
        "limbo is never left",
    ),
    Bug(
        "kv/pool.py",
        "            if self._pins[block] == 0 and self._references[block] == 0:",
        "            if self._references[block] == 0:",
        "the first unpin frees what others have pinned",
    ),
    Bug(
        "kv/pool.py",
        "                del self._cached[block]\n                self._free",
        "                self._free",
        "freed twice",
    ),
    Bug(
        "kv/pool.py",
        "        self._tree.remove_last(block)\n",
        "",
        "an evicted block is still found",
    ),
    Bug(
        "kv/pool.py",
        "self._cached.popitem(last=False)",
        "self._cached.popitem(last=True)",
        "the newest is evicted first",
    ),
    Bug(
        "kv/pool.py",
        "sorted(cached, key=depth, reverse=True)",
        "sorted(cached, key=depth)",
        "roots are evicted before leaves",
    ),
    Bug(
        "kv/pool.py",
        "self._references[block] == 1 and",
        "self._references[block] >= 1 and",
        "shared blocks are written",
    ),
    Bug(
        "kv/pool.py",
        "return self._references[block] == 1 and self._tree.depth(block) < 0",
        "return self._references[block] == 1",
        "blocks that others can find are written",
    ),
    Bug(
        "kv/table.py",
        "return -(-num_tokens // block_size)",
        "return num_tokens // block_size + 1",
        "one block too many at edges",
    ),
    Bug(
        "kv/table.py",
        "            pool.pin([source])\n",
        "",
        "the source of a copy may be handed out before the copy",
    ),
    Bug(
        "kv/table.py",
        "            pool.release([source])\n",
        "",
        "copy on write keeps the source",
    ),
    Bug(
        "kv/table.py",
        "copy = BlockCopy(source, target)",
        "copy = BlockCopy(target, source)",
        "the copy runs backwards",
    ),
    Bug(
        "kv/table.py",
        "        pool.share(branch.blocks)\n",
        "",
        "a fork shares and doesn't count",
    ),
    Bug(
        "kv/table.py",
        "        self.dirty_from = min(self.dirty_from, entry)",
        "        pass",
        "workers aren't told of a new block",
    ),
    Bug(
        "kv/table.py",
        "        pool.share(blocks)\n        self.clear(pool)",
        "        self.clear(pool)",
        "a hit takes no share",
    ),
    Bug(
        "kv/radix.py",
        "return cls(request.tenant, request.cache_salt, request.weights_revision, request.adapter)",
        'return cls("", request.cache_salt, request.weights_revision, request.adapter)',
        "tenants share KV",
    ),
    Bug(
        "kv/radix.py",
        "return cls(request.tenant, request.cache_salt, request.weights_revision, request.adapter)",
        'return cls(request.tenant, "", request.weights_revision, request.adapter)',
        "salts don't part",
    ),
    Bug(
        "kv/radix.py",
        "return cls(request.tenant, request.cache_salt, request.weights_revision, request.adapter)",
        'return cls(request.tenant, request.cache_salt, request.weights_revision, "")',
        "adapters share KV",
    ),
    Bug(
        "kv/radix.py",
        "        node.start += used\n",
        "",
        "a split forgets how deep its lower part lies",
    ),
    Bug(
        "kv/radix.py",
        "            self._depths[block] = -1\n",
        "",
        "what left the tree is still taken for held",
    ),
    Bug(
        "kv/prefix.py",
        "full = (sequence.num_tokens - 1) // self._block_size\n        return",
        "full = sequence.num_tokens // self._block_size\n        return",
        "the last token's KV is found too",
    ),
    Bug(
        "kv/prefix.py",
        "sequence.num_computed // self._block_size",
        "-(-sequence.num_computed // self._block_size)",
        "half a block is shared",
    ),
    Bug(
        "kv/prefix.py",
        "first = 0 if found_too else sequence.num_found_blocks",
        "first = sequence.num_found_blocks",
        "KV that isn't finite stays in the cache",
    ),
    Bug(
        "kv/prefix.py",
        "        self._pool.forget(self._tree.clear())",
        "        self._tree.clear()",
        "lost KV keeps its blocks",
    ),
    Bug(
        "kv/prefix.py",
        "                    self._pool.pin([own])\n                    pins.append(own)\n",
        "",
        "a block is freed while a plan in flight reads it",
    ),
    Bug(
        "kv/prefix.py",
        "            and self.is_keeper(other)\n",
        "",
        "waits for what is never shared",
    ),
    Bug(
        "kv/prefix.py",
        "            and Namespace.of(other.request) == Namespace.of(sequence.request)\n",
        "",
        "waits for another tenant's prefix",
    ),
    Bug(
        "kv/prefix.py",
        "sequence.num_shared_blocks = full",
        "sequence.num_shared_blocks = first",
        "shared blocks are offered again",
    ),
)
