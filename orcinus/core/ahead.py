"""Proactive swap (FastServe, NSDI '26; SYSTEMS.md §4): KV leaves the device before its room is needed, and comes back
before its turn, beside the work of others.

A request's estimated next scheduled time (ENST) is when it will be promoted, or when those served before it have used
what is left of their quanta, whichever comes first. What goes out is only copied: as long as nobody takes the block,
its owner finds it where it was. What comes in lies in the radix tree, once it has come, as if it had never left.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import merge
from itertools import islice

from orcinus.core.draft import Draft, Fetch, PlanInFlight
from orcinus.core.journal import Fetched
from orcinus.core.plan import Swap, SwapOut
from orcinus.core.sequence import Sequence, SequenceGroup
from orcinus.core.state import SchedulerState

# Who comes later than after so many iterations like this one isn't waited for.
_HORIZON = 8
Preempt = Callable[[SequenceGroup, SequenceGroup, float], None]


class Ahead:
    """Adds to each plan what its iteration can carry beside the work. Nobody in the plan waits for it."""

    def __init__(self, state: SchedulerState, preempt: Preempt) -> None:
        config = state.config
        self._state = state
        self._preempt = preempt
        self.is_enabled = state.queues.policy.foresees and state.tiers.spills
        # One more block for each sequence of a batch; and what the prompts of an iteration can take.
        self._reserve = min(config.max_running, config.num_blocks // 8)
        self._burst = min(config.max_batch_tokens // config.block_size, config.num_blocks // 2)
        self._left = self._room = 0

    def swap(self, draft: Draft, swaps: tuple[Swap, ...], now: float) -> list[Fetch]:
        """Swaps for the plan of `draft`, which has `swaps` already; they are taken from the tiers by the caller."""
        if not self.is_enabled:
            return []
        state = self._state
        seconds = state.pace.seconds(draft.num_decodes, draft.num_prefilled)
        self._left = int(seconds / max(state.config.host_block_seconds, 1e-9)) - len(swaps)
        soon = self._soon(seconds * _HORIZON, now)
        resting = self._resting(soon)
        held = lacking = 0
        # Whose turn comes last goes first, should there be too little room after all.
        for sequence in reversed(resting):
            path, found = state.cache.find_ahead(sequence)
            held, lacking = held + state.pool.count_cached(path), lacking + len(found)
            state.pool.share(path)
            state.pool.release(path)
        self._set_aside(soon, self._reserve + held + lacking, seconds * _HORIZON, now)
        self._clean(self._burst + held + lacking)
        self._room = self._num_clean() - self._reserve - held
        # No ping-pong: what had to leave for this very plan shows that there is no room.
        if any(isinstance(swap, SwapOut) for swap in swaps):
            return []
        fetches = [self._fetch(sequence, now) for sequence in resting]
        return [fetch for fetch in fetches if fetch is not None]

    # ---- whose turn comes

    def _soon(self, horizon: float, now: float) -> list[SequenceGroup]:
        """Waiting groups whose ENST lies within `horizon`, those to be promoted first."""
        queues, policy = self._state.queues, self._state.queues.policy
        due = {view.request.request_id for view in policy.due_by(now + horizon)}
        soon = [group for group in queues.waiting if group.request.request_id in due] if due else []
        del soon[self._state.config.max_running :]
        ahead = 0.0
        for group in merge(queues.running, queues.waiting, key=lambda group: group.order):
            if ahead > horizon or len(soon) >= self._state.config.max_running:
                break
            if not any(sequence.table.blocks for sequence in group.live) and group.request.request_id not in due:
                soon.append(group)
            ahead += policy.quantum_left(group) * len(group.live) / self._state.config.max_running
        return soon

    def _resting(self, groups: list[SequenceGroup]) -> list[Sequence]:
        """Their sequences that have no KV on the device, and that no plan in flight fetches for."""
        fetched = {fetch.sequence.seq_id for plan in self._state.in_flight for fetch in plan.fetches}
        return [
            sequence
            for group in groups
            for sequence in group.live
            if not sequence.table.blocks and not sequence.in_flight and sequence.seq_id not in fetched
        ]

    # ---- out

    def _set_aside(self, soon: list[SequenceGroup], room: int, horizon: float, now: float) -> None:
        """Take their blocks back from those that run, but not now and not soon, the largest ENST first."""
        state = self._state
        if not state.admission.may_preempt or state.pool.num_free + state.pool.num_limbo >= room:
            return
        ahead = state.queues.policy.due_by(now + horizon)
        keep = {view.request.request_id for view in ahead}
        paused = self._paused()
        while paused and state.pool.num_free + state.pool.num_limbo < room:
            group = paused.pop()
            if group.request.request_id not in keep and not group.pinned_blocks and not group.is_in_flight:
                self._preempt(group, soon[0] if soon else state.queues.running[0], now)

    def _paused(self) -> list[SequenceGroup]:
        """Those that run behind a full batch of others, in order."""
        count, paused = 0, []
        for group in self._state.queues.running:
            count += len(group.live)
            if count > self._state.config.max_running:
                paused.append(group)
        return paused

    def _clean(self, room: int) -> None:
        """Copy out what will be taken first, so that nothing has to be waited for then."""
        state = self._state
        for block in list(islice(state.pool.cached(), max(0, room - state.pool.num_unused))):
            if self._left <= 0:
                return
            if not state.tiers.has(block):
                state.tiers.spill(block)
                self._left -= 1

    # ---- in

    def _fetch(self, sequence: Sequence, now: float) -> Fetch | None:
        """Begin to bring back what `sequence` lacks, as much as there is room for."""
        state, pool = self._state, self._state.pool
        path, found = state.cache.find_ahead(sequence)
        pool.share(path)
        count = min(len(found), self._left, self._room)
        fetch = None
        if count > 0:
            self._left, self._room = self._left - count, self._room - count
            state.tiers.lock(found[:count])
            blocks = pool.allocate(count)
            pool.pin(blocks)
            pool.release(blocks)
            state.tiers.restore(found[:count], blocks, sequence.seq_id)
            state.journal.write(Fetched(now, sequence.request.request_id, sequence.index, count))
            fetch = Fetch(sequence, len(path), found[:count], blocks)
        pool.release(path)
        return fetch

    def _num_clean(self) -> int:
        """Blocks that can be taken without copying anything first."""
        count = self._state.pool.num_unused
        for block in self._state.pool.cached():
            if not self._state.tiers.has(block):
                break
            count += 1
        return count


def arrive(state: SchedulerState, plan: PlanInFlight, lost: frozenset[tuple[int, int]]) -> None:
    """What `plan` was to bring is there: it can be found from now on."""
    pool, cache = state.pool, state.cache
    for fetch in plan.fetches:
        path = cache.find(fetch.sequence)[: fetch.start + len(fetch.blocks)]
        # What lies above it may have gone, and the KV may be in doubt by now.
        is_sound = len(path) >= fetch.start and state.tiers.hold(fetch.found)
        is_lost = any((each.slot, each.generation) in lost for each in fetch.found)
        # A path falls idle as a whole, its end first.
        pool.share(path)
        if is_sound and not is_lost:
            cache.adopt(fetch.sequence, path[: fetch.start], fetch.blocks)
        pool.unpin(fetch.blocks)
        pool.release(path)
