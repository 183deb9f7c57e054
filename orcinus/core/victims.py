"""Who gives its KV blocks back when there are too few, and when a newcomer may ask for that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from orcinus.core.config import SchedulerConfig
from orcinus.core.kv.pool import BlockPool
from orcinus.core.queues import Queues
from orcinus.core.sequence import SequenceGroup

# After so many preemptions a request is pinned: it returns once its worst case can be promised to it, and is never
# preempted again (RELIABILITY.md, I17).
MAX_PREEMPTIONS = 3
# Class, overdue or not, tenant term and first rank: those that are equal in these belong to one band.
_BAND = 4


class Victims:
    """Chooses. Whoever ranks behind may be chosen, the last band first, and never one that is pinned."""

    def __init__(self, config: SchedulerConfig, pool: BlockPool, queues: Queues) -> None:
        self._config = config
        self._pool = pool
        self._queues = queues

    def of(self, group: SequenceGroup, iteration: int) -> SequenceGroup | None:
        """The one to preempt so that `group`, which runs, can grow. Nobody who is in the plan of `iteration` already.

        One that is pinned may take from elders, too: it was promised blocks, and all that aren't promised can be had.
        So whoever is pinned gets to its end; and then the eldest, who can preempt all that aren't.
        """
        candidates = self._loose() if group.pinned_blocks else self._behind(group)
        return self._best(
            other
            for other in candidates
            if other is not group and all(each.last_iteration != iteration for each in other.live)
        )

    def for_newcomer(self, group: SequenceGroup, missing: int) -> SequenceGroup | None:
        """The one to preempt so that `group`, which waits, can start; None if all that may be would not do."""
        candidates = self._behind(group)
        is_shared = self._queues.policy.displacing == "share"
        if is_shared:
            lower = (other for other in candidates if other.order[0] != group.order[0])
            candidates = [*lower, *self._over_share_of_blocks(group, candidates, missing)]
        if sum(self._held(other) for other in candidates) < missing - self._pool.num_limbo:
            return None
        return self._best(candidates)

    def may_displace(self, group: SequenceGroup) -> bool:
        """Whether `group`, which waits, is served before somebody that runs."""
        last = self._queues.running[-1]
        if group.request.service_class != last.request.service_class:
            return group.request.service_class < last.request.service_class
        return self._queues.policy.displacing != "class" and group.order < last.order

    def has_slot(self, group: SequenceGroup) -> bool:
        """Whether `group` gets a place in the batch, if those that must make way for it do."""
        queues, live = self._queues, len(group.live)
        if queues.num_running + live <= self._config.max_running:
            return True
        behind = [other for other in queues.running if other.order > group.order]
        ahead = queues.num_running - sum(len(other.live) for other in behind)
        if ahead + live > self._config.max_running:
            return False
        if queues.policy.displacing != "share" or group.order[0] != behind[-1].order[0]:
            return True
        return self._is_under_share_of_slots(group, behind)

    # ---- candidates

    def _loose(self) -> Iterator[SequenceGroup]:
        return (group for group in self._queues.running if not group.pinned_blocks)

    def _behind(self, group: SequenceGroup) -> list[SequenceGroup]:
        return [other for other in self._loose() if other.order > group.order]

    def _best(self, candidates: Iterable[SequenceGroup]) -> SequenceGroup | None:
        """Of the last band the one that was preempted least often, then that loses least, then the latest."""
        ordered = list(candidates)
        if not ordered:
            return None
        last = ordered[-1]
        if self._queues.policy.keeps_arrival_order:
            return last
        band = [group for group in ordered if group.order[:_BAND] == last.order[:_BAND]]
        return min(reversed(band), key=lambda group: (group.num_preemptions, self._loss(group)))

    def _loss(self, group: SequenceGroup) -> int:
        """Tokens that would have to be computed again, if the blocks that nobody else uses go."""
        size = self._config.block_size
        kept = sum(self._pool.references(block) > 1 for each in group.live for block in each.table.blocks)
        return sum(sequence.num_computed for sequence in group.live) - kept * size

    def _held(self, group: SequenceGroup) -> int:
        """Blocks that come free with it."""
        return sum(self._pool.references(block) == 1 for each in group.live for block in each.table.blocks)

    # ---- shares

    def _num_tenants(self) -> int:
        return len({group.request.tenant for group in self._queues.groups.values()})

    def _is_under_share_of_slots(self, group: SequenceGroup, behind: list[SequenceGroup]) -> bool:
        """Its tenant stays within an equal share of the running sequences, and somebody behind it is above.

        Equal numbers of sequences aren't equal numbers of tokens: who lags by half an iteration needn't stay within.
        """
        lag = [other.order[2] - group.order[2] for other in behind if other.order[1] == group.order[1]]
        if lag and max(lag) * 2 > self._config.max_batch_tokens:
            return True
        held: dict[str, int] = {}
        for other in self._queues.running:
            held[other.request.tenant] = held.get(other.request.tenant, 0) + len(other.live)
        share = self._config.max_running / self._num_tenants()
        mine = held.get(group.request.tenant, 0) + len(group.live)
        return mine <= max(share, len(group.live)) and any(held[other.request.tenant] > share for other in behind)

    def _over_share_of_blocks(
        self, group: SequenceGroup, candidates: list[SequenceGroup], missing: int
    ) -> list[SequenceGroup]:
        """Those of tenants above an equal share of the pool, if the newcomer's own stays within it."""
        held: dict[str, int] = {}
        for other in self._queues.running:
            held[other.request.tenant] = held.get(other.request.tenant, 0) + self._held(other)
        share = self._config.num_blocks / self._num_tenants()
        if held.get(group.request.tenant, 0) + missing > share:
            return []
        return [other for other in candidates if held[other.request.tenant] > share]
