"""KV leaves the device before its room is needed, beside the work of others: copies that nobody waits for.

Under any policy what will be evicted next is copied out as far as the iteration leaves time. A policy that foresees
whose turn comes does more, FastServe's proactive swap (NSDI '26; SYSTEMS.md §4): it makes room and fetches, too.
A request's estimated next scheduled time (ENST) is when it will be promoted, or when those served before it have used
what is left of their quanta, whichever comes first: so those to be promoted soon come first, and then the order of
service. What goes out is only copied: as long as nobody takes the block, its owner finds it where it was. What comes in
lies in the radix tree, once it has come, as if it had never left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice, takewhile

from orcinus.core.draft import Draft, Fetch, PlanInFlight
from orcinus.core.journal import Fetched
from orcinus.core.plan import Swap, SwapOut
from orcinus.core.sequence import Sequence, SequenceGroup
from orcinus.core.state import SchedulerState

# Whoever is promoted within so many iterations like this one is due.
_HORIZON = 8
Preempt = Callable[[SequenceGroup, SequenceGroup, float], None]


class Ahead:
    """Adds to each plan what its iteration can carry beside the work. Nobody in the plan waits for it."""

    def __init__(self, state: SchedulerState, preempt: Preempt) -> None:
        config = state.config
        self._state = state
        self._preempt = preempt
        self._foresees = state.queues.policy.foresees
        # Kept free: one more block for each sequence of a batch. Kept clean: what the prompts of an iteration can take.
        self._reserve = min(config.max_running, config.num_blocks // 8)
        self._burst = min(config.max_batch_tokens // config.block_size, config.num_blocks // 2)
        self._left = 0  # Blocks that the copies beside this iteration can move.

    def swap(self, draft: Draft, swaps: tuple[Swap, ...], now: float) -> list[Fetch]:
        """Swaps for the plan of `draft`, which has `swaps` already; they are taken from the tiers by the caller."""
        if not self._state.tiers.spills:
            return []
        config, pool = self._state.config, self._state.pool
        seconds = self._state.pace.seconds(draft.num_decodes, draft.num_prefilled, draft.num_pairs)
        self._left = max(0, int(seconds / max(config.host_block_seconds, 1e-9)) - len(swaps))
        soon, room = self._make_room(now + seconds * _HORIZON, now) if self._foresees else ([], self._reserve)
        self._clean(pool.cached(), room + self._burst - pool.num_unused)
        if self._foresees:
            self._clean_paused()
        # No ping-pong: what had to leave for this very plan shows that there is no room.
        if any(isinstance(swap, SwapOut) for swap in swaps):
            return []
        return [fetch for sequence in soon if (fetch := self._fetch(sequence, now))]

    # ---- whose turn comes

    def _soon(self, due: set[str]) -> list[tuple[SequenceGroup, Sequence]]:
        """Those of the next batch, and of whoever is `due`, that have no KV here; the smallest ENST first."""
        waiting, most = self._state.queues.waiting, self._state.config.max_running
        promoted = [group for group in waiting if group.request.request_id in due] if due else []
        others = (group for group in waiting if group.request.request_id not in due)
        fetched = {fetch.sequence.seq_id for plan in self._state.in_flight for fetch in plan.fetches}
        return [
            (group, sequence)
            for group in [*promoted, *islice(others, most)][:most]
            for sequence in group.live
            if not sequence.in_flight and sequence.seq_id not in fetched
        ]

    def _paused(self) -> list[SequenceGroup]:
        """Those that run behind a full batch of others, in order."""
        count, paused = 0, []
        for group in self._state.queues.running:
            count += len(group.live)
            if count > self._state.config.max_running and not group.is_in_flight:
                paused.append(group)
        return paused

    # ---- out

    def _make_room(self, horizon: float, now: float) -> tuple[list[Sequence], int]:
        """Preempt the largest ENST for smaller ones; who can come in then, and blocks kept for that."""
        state, pool = self._state, self._state.pool
        due = {view.request.request_id for view in state.queues.policy.due_by(horizon)}
        paused = [each for each in self._paused() if each.request.request_id not in due and not each.pinned_blocks]
        room, soon = self._reserve, list[Sequence]()
        for group, sequence in self._soon(due):
            path, found = state.cache.find_ahead(sequence)
            wanted = room + pool.count_cached(path) + len(found)
            while pool.num_free < wanted and paused and state.admission.may_preempt:
                if group.request.request_id not in due and paused[-1].order < group.order:
                    break
                self._preempt(paused.pop(), group, now)
            if pool.num_free < wanted:
                break
            room = wanted
            soon.append(sequence)
        # Should there be too little room after all, whose turn comes last goes first.
        for sequence in reversed(soon):
            path = state.cache.find(sequence)
            pool.share(path)
            pool.release(path)
        return soon, room

    def _clean(self, blocks: Iterable[int], count: int) -> None:
        """Copy out what will be taken first, so that nothing has to be waited for then."""
        tiers = self._state.tiers
        for block in list(islice(blocks, max(0, count))):
            if self._left <= 0:
                return
            if not tiers.has(block):
                tiers.spill(block)
                self._left -= 1

    def _clean_paused(self) -> None:
        cache = self._state.cache
        for group in reversed(self._paused()):
            for sequence in group.live:
                # Not what was found to be in doubt.
                self._clean(takewhile(cache.holds, sequence.table.blocks[: sequence.num_shared_blocks]), self._burst)

    # ---- in

    def _fetch(self, sequence: Sequence, now: float) -> Fetch | None:
        """Begin to bring back what `sequence` lacks, as far as no block has to be copied out for that first."""
        state, pool = self._state, self._state.pool
        path, found = state.cache.find_ahead(sequence)
        pool.share(path)
        most, fetch = min(len(found), self._left), None
        clean = sum(1 for _ in islice(takewhile(state.tiers.has, pool.cached()), most))
        count = min(most, pool.num_unused + clean)
        if count > 0:
            self._left -= count
            state.tiers.lock(found[:count])
            blocks = pool.allocate(count)
            pool.pin(blocks)
            pool.release(blocks)
            state.tiers.restore(found[:count], blocks, sequence.seq_id)
            state.journal.write(Fetched(now, sequence.request.request_id, sequence.index, count))
            fetch = Fetch(sequence, len(path), found[:count], blocks)
        pool.release(path)
        return fetch


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
