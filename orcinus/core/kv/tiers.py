"""KV that had to leave the device, or is to outlive the engine: in the host's memory and on disk, found by name.

What a preempted sequence will come back for goes to the host before the device needs its room; what is only cached goes
there beside the work, as far as that leaves time (`core/ahead.py`), or is dropped. Whoever comes finds his own there as
he finds anybody's. Full blocks are written to disk as they are computed, beside the work. What is found comes back only
if that costs less than to compute it again (vLLM, SOSP '23, §4.5; SYSTEMS.md §2).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from orcinus.core.kv.keys import BlockKeys
from orcinus.core.kv.radix import TOKEN_BYTES, Namespace
from orcinus.core.kv.tier import Tier
from orcinus.core.plan import Erase, Swap, SwapIn, SwapOut


@dataclass(frozen=True, slots=True)
class TierSizes:
    """Room, and what copies cost beside computing; see `SchedulerConfig`."""

    num_host_blocks: int
    num_disk_blocks: int
    block_size: int
    recompute_token_seconds: float
    host_block_seconds: float
    disk_block_seconds: float


class HeldBlock(msgspec.Struct, frozen=True, array_like=True):
    """A slot that an earlier engine has filled, counted from the disk's first one."""

    slot: int
    generation: int
    key: bytes
    parent: bytes


class OnDisk(msgspec.Struct, frozen=True):
    """What the worker found on its disk at the start: `blocks`, the one used longest ago first.

    `seed` keys their names. It is a secret of the disk's owner.
    """

    seed: bytes = b""
    blocks: tuple[HeldBlock, ...] = ()


class Found(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A block that is in `slot`."""

    key: bytes
    slot: int
    generation: int


class Tiers:
    """The host and the disk, and the swaps that the next plan is to carry, in order."""

    def __init__(self, sizes: TierSizes, keys: BlockKeys, on_disk: OnDisk) -> None:
        self.host = Tier(0, sizes.num_host_blocks)
        self.disk = Tier(sizes.num_host_blocks, sizes.num_disk_blocks)
        self._keys = keys
        self._width = sizes.block_size * TOKEN_BYTES
        recompute = sizes.block_size * sizes.recompute_token_seconds
        # Seconds saved by bringing a block back.
        self._gains = {
            self.host: recompute - sizes.host_block_seconds,
            self.disk: recompute - sizes.disk_block_seconds,
        }
        # It has to go out first.
        self.spills = sizes.num_host_blocks > 0 and recompute > 2 * sizes.host_block_seconds
        self._stores = sizes.num_disk_blocks > 0 and self._gains[self.disk] > 0
        # Of each key in a tier the one before it, and of each such one those behind it.
        self._parents: dict[bytes, bytes] = {}
        self._children: dict[bytes, dict[bytes, None]] = {}
        self._locked: frozenset[int] = frozenset()
        self._swaps: list[Swap] = []
        self.num_spilled = self.num_stored = self.num_restored = self.num_lost = 0
        self.disk.adopt([(self.disk.first + block.slot, block.generation, block.key) for block in on_disk.blocks])
        for block in on_disk.blocks:
            self._link(block.key, block.parent)

    @property
    def is_enabled(self) -> bool:
        """Something can be somewhere else than on the device."""
        return self.host.num_slots + self.disk.num_slots > 0

    # ---- out

    def spill(self, block: int) -> None:
        """`block`, cached, is about to be taken for other KV."""
        if self.spills and self._put(self.host, block):
            self.num_spilled += 1

    def has(self, block: int) -> bool:
        """`block`, cached, can be taken and nothing needs copying first."""
        return self.host.find(self._keys.of(block)) is not None

    def store(self, blocks: Iterable[int]) -> None:
        """`blocks` are full, and the tree's from now on."""
        if self._stores:
            self.num_stored += sum(self._put(self.disk, block) for block in blocks)

    def _put(self, tier: Tier, block: int) -> bool:
        """Whether it has to be copied: it isn't there yet, and there is room."""
        key = self._keys.of(block)
        if tier.find(key) is not None:
            tier.touch(key)
            return False
        put = tier.put(key, self._locked)
        if put is None:
            return False
        slot, gone = put
        parent = self._keys.parent(block)
        if gone is not None:
            self._unlink(gone)
        self._link(key, parent)
        names = (key, parent) if tier is self.disk else ()
        self._swaps.append(SwapOut(slot, tier.generation(slot), block, *names))
        return True

    # ---- in

    def find(self, namespace: Namespace, above: int | None, tokens: bytes) -> list[Found]:
        """The blocks that hold `tokens`, full blocks of them behind the block `above`, as far as it pays to have them.

        Changes nothing.
        """
        key = self._keys.root(namespace) if above is None else self._keys.of(above)
        found: list[Found] = []
        gain = best = 0.0
        num_worth = 0
        for start in range(0, len(tokens), self._width):
            key = self._keys.after(key, tokens[start : start + self._width])
            tier, slot = self._where(key)
            if slot is None:
                break
            found.append(Found(key, slot, tier.generation(slot)))
            gain += self._gains[tier]
            if gain > best:
                best, num_worth = gain, len(found)
        return found[:num_worth]

    def lock(self, found: Sequence[Found]) -> None:
        """`found` will be restored: what leaves the device until then doesn't get their slots."""
        self._locked = frozenset(each.slot for each in found)

    def restore(self, found: Sequence[Found], blocks: Sequence[int], seq_id: int) -> None:
        """Bring what was found to `blocks` of the device, which `seq_id` owns."""
        self._locked = frozenset()
        for each, block in zip(found, blocks, strict=True):
            self._swaps.append(SwapIn(each.slot, each.generation, block, seq_id))
        # The end of a path goes before what lies above it.
        for each in reversed(found):
            for tier in (self.host, self.disk):
                if tier.find(each.key) is not None:
                    tier.touch(each.key)
        self.num_restored += len(found)

    def on_disk(self, found: Iterable[Found]) -> bool:
        """One of `found` has to be read from disk, and that may fail."""
        return any(each.slot in self.disk for each in found)

    def hold(self, found: Iterable[Found]) -> bool:
        """All of `found` is still where it was."""
        tiers = (self.host, self.disk)
        return all(
            any(each.slot in tier and tier.key_at(each.slot, each.generation) == each.key for tier in tiers)
            for each in found
        )

    def take(self) -> tuple[Swap, ...]:
        """For the plan that goes out now."""
        swaps, self._swaps = tuple(self._swaps), []
        return swaps

    # ---- what isn't there any more

    def lose(self, slots: Iterable[tuple[int, int]]) -> None:
        """These slots don't hold what they were given in these generations."""
        for slot, generation in slots:
            tier = self.host if slot in self.host else self.disk
            key = tier.key_at(slot, generation)
            if key is not None:
                self._drop(tier, key)
                self.num_lost += 1

    def forget(self, block: int) -> None:
        """The KV of `block`, still in the tree, is in doubt, and so is all that was built on it."""
        if not self.is_enabled:
            return
        doubtful = [self._keys.of(block)]
        while doubtful:
            key = doubtful.pop()
            doubtful += self._children.get(key, ())
            if self.host.find(key) is not None:
                self._drop(self.host, key)
            if self.disk.find(key) is not None:
                self._swaps.append(Erase(self._drop(self.disk, key)))

    def abandon(self, plans: Iterable[Iterable[Swap]], *, kv_lost: bool) -> None:
        """Nobody knows how far these plans came. With `kv_lost` the host's memory is lost like the device's."""
        issued = [swap for swaps in plans for swap in swaps]
        doubtful = issued + (self._swaps if kv_lost else [])
        for swap in doubtful:
            tier = self.host if isinstance(swap, SwapOut) and swap.slot in self.host else self.disk
            if isinstance(swap, SwapOut) and (key := tier.key_at(swap.slot, swap.generation)) is not None:
                self._drop(tier, key)
        kept = doubtful if kv_lost else issued
        erased: list[Swap] = [swap for swap in kept if isinstance(swap, Erase)]
        self._swaps = erased + ([] if kv_lost else self._swaps)
        if kv_lost:
            for key in list(self.host):
                self._drop(self.host, key)

    def check(self) -> None:
        """The slots add up, and so do the links between what is held."""
        self.host.check()
        self.disk.check()
        assert {*self.host, *self.disk} == self._parents.keys(), "a link leads to what isn't held, or one is missing"
        links = {key: parent for parent, keys in self._children.items() for key in keys}
        assert links == self._parents, "a link goes one way only"
        assert not self._locked, "a lock was left"

    def _where(self, key: bytes) -> tuple[Tier, int | None]:
        slot = self.host.find(key)
        return (self.host, slot) if slot is not None else (self.disk, self.disk.find(key))

    def _drop(self, tier: Tier, key: bytes) -> int:
        slot = tier.drop(key)
        self._unlink(key)
        return slot

    def _link(self, key: bytes, parent: bytes) -> None:
        self._parents[key] = parent
        self._children.setdefault(parent, {})[key] = None

    def _unlink(self, key: bytes) -> None:
        """Unless it is held somewhere still."""
        if self._where(key)[1] is None:
            parent = self._parents.pop(key)
            del self._children[parent][key]
            if not self._children[parent]:
                del self._children[parent]
