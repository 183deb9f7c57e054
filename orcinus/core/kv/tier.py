"""One place for KV beside the device: slots, each empty or with the KV of one block, by name. Bookkeeping only."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterator, Sequence


class Tier:
    """`num_slots` slots, numbered from `first`. When none is left, the one used longest ago is taken.

    Whoever fills a slot raises its *generation*, and who reads it says which one it means: so a slot that has been
    filled anew can't be taken for what it held before (DESIGN.md §4).
    """

    def __init__(self, first: int, num_slots: int) -> None:
        self.first = first
        self.num_slots = num_slots
        self._free = list(range(first + num_slots - 1, first - 1, -1))
        self._generations = [0] * num_slots
        # In order of last use.
        self._slots: OrderedDict[bytes, int] = OrderedDict()
        self._keys: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._slots)

    def __contains__(self, slot: int) -> bool:
        return self.first <= slot < self.first + self.num_slots

    def find(self, key: bytes) -> int | None:
        """The slot that holds `key`."""
        return self._slots.get(key)

    def touch(self, key: bytes) -> None:
        """`key` has been used."""
        self._slots.move_to_end(key)

    def generation(self, slot: int) -> int:
        """The newest one of `slot`."""
        return self._generations[slot - self.first]

    def key_at(self, slot: int, generation: int) -> bytes | None:
        """What `slot` holds, if that is still what it held in `generation`."""
        return self._keys.get(slot) if self.generation(slot) == generation else None

    def put(self, key: bytes, locked: Container[int] = ()) -> tuple[int, bytes | None] | None:
        """A slot for `key`, which has none, and the key that had to go for it; None if all slots are `locked`."""
        gone = None
        if not self._free:
            gone = next((other for other, slot in self._slots.items() if slot not in locked), None)
            if gone is None:
                return None
            self.drop(gone)
        slot = self._free.pop()
        self._generations[slot - self.first] += 1
        self._slots[key], self._keys[slot] = slot, key
        return slot, gone

    def adopt(self, held: Sequence[tuple[int, int, bytes]]) -> None:
        """What slots have held since before this engine, (slot, generation, key), the one used longest ago first."""
        for slot, generation, key in held:
            # Lost and written once more.
            self._keys.pop(self._slots.pop(key, -1), None)
            self._generations[slot - self.first] = generation
            self._slots[key], self._keys[slot] = slot, key
        self._free = [slot for slot in self._free if slot not in self._keys]

    def drop(self, key: bytes) -> int:
        """`key` isn't held any more; the slot that is empty now."""
        slot = self._slots.pop(key)
        del self._keys[slot]
        self._free.append(slot)
        return slot

    def check(self) -> None:
        """Each slot is empty or holds one key, and each key is held once."""
        assert len(self._free) + len(self._slots) == self.num_slots, "slots were lost or invented"
        assert {slot: key for key, slot in self._slots.items()} == self._keys, "a slot holds two keys, or none"
        assert not set(self._free) & set(self._keys), "an empty slot holds something"
