"""May a request leave the queue? Two answers: promise its worst case (Orca), or give what it needs now (vLLM)."""

from __future__ import annotations

from typing import Literal, Protocol

from orcinus.core.kv.pool import BlockPool
from orcinus.core.kv.prefix import PrefixCache
from orcinus.core.kv.table import blocks_for
from orcinus.core.sequence import Sequence, SequenceGroup

AdmissionName = Literal["reserve", "on_demand"]


def worst_case_blocks(num_prompt_tokens: int, max_tokens: int, n: int, block_size: int) -> int:
    """Blocks that a request can come to need: each of its n branches for itself (SYSTEMS.md §1, note v)."""
    return n * blocks_for(num_prompt_tokens + max_tokens, block_size)


def worst_case(group: SequenceGroup, block_size: int) -> int:
    """The same, of a group."""
    request = group.request
    return worst_case_blocks(request.num_prompt_tokens, request.max_tokens, request.num_sequences, block_size)


class Admission(Protocol):
    """Decides on the first group in line; a group that is refused holds up all behind it."""

    may_preempt: bool

    def missing(self, group: SequenceGroup, num_running: int) -> int:
        """Blocks that must become free before `group` may start beside `num_running` sequences; 0 if it may now."""
        ...

    def enter(self, group: SequenceGroup) -> None:
        """`group` starts."""
        ...

    def leave(self, group: SequenceGroup) -> None:
        """`group` has ended or was preempted."""
        ...


class Reserve:
    """Orca's Algorithm 1 (OSDI '22): the worst case is promised once, so nobody is ever preempted."""

    may_preempt = False

    def __init__(self, pool: BlockPool, cache: PrefixCache, block_size: int) -> None:
        self._pool = pool
        self._block_size = block_size
        self.promised = 0

    def missing(self, group: SequenceGroup, num_running: int) -> int:
        """The promises stay within the pool."""
        return max(0, self.promised + worst_case(group, self._block_size) - self._pool.num_blocks)

    def enter(self, group: SequenceGroup) -> None:
        """Promise the worst case."""
        group.reserved = worst_case(group, self._block_size)
        self.promised += group.reserved

    def leave(self, group: SequenceGroup) -> None:
        """Take the promise back."""
        self.promised -= group.reserved
        group.reserved = 0


class OnDemand:
    """vLLM (SOSP '23, §4.3): blocks as they are needed; when none is left, the latest arrival gives its own back."""

    may_preempt = True

    def __init__(self, pool: BlockPool, cache: PrefixCache, block_size: int) -> None:
        self._pool = pool
        self._cache = cache
        self._block_size = block_size

    def missing(self, group: SequenceGroup, num_running: int) -> int:
        """The free blocks hold all its tokens known so far, and one more for each sequence that is running.

        Without that margin a newcomer would be preempted, half computed, as soon as its elders filled their blocks.
        """
        live = group.live
        shared = (live[0].num_prompt_tokens - 1) // self._block_size
        needed = sum(blocks_for(sequence.num_tokens + 1, self._block_size) for sequence in live)
        missing = needed - shared * (len(live) - 1) + num_running - self._pool.num_free
        if missing <= 0 or num_running == 0:
            return 0
        return max(0, missing - self._num_shared(live[0]))

    def _num_shared(self, sequence: Sequence) -> int:
        """Blocks that it would share with somebody who uses them now: they take nothing from what is free."""
        found = self._cache.find(sequence)
        return len(found) - self._pool.count_cached(found)

    def enter(self, group: SequenceGroup) -> None:
        """Nothing is promised."""

    def leave(self, group: SequenceGroup) -> None:
        """Nothing was promised."""


ADMISSIONS: dict[AdmissionName, type[Reserve] | type[OnDemand]] = {"reserve": Reserve, "on_demand": OnDemand}
