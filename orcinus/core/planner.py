"""Plans go out: which sequences run in the next iteration, and how many tokens of each."""

from __future__ import annotations

from math import inf

from orcinus.core import gang as gangs
from orcinus.core import journal as why
from orcinus.core.ahead import Ahead
from orcinus.core.draft import Draft, PlanInFlight, chunk_end
from orcinus.core.kv.tiers import Found
from orcinus.core.pace import ROW_TILE, TokenBudget
from orcinus.core.plan import IterationPlan
from orcinus.core.request import ServiceClass
from orcinus.core.sequence import Sequence, SequenceGroup, SequenceState
from orcinus.core.shares import Runnable, Share, in_turns
from orcinus.core.state import SchedulerState
from orcinus.core.victims import Victims


class Planner:
    """Decodes first, then prefills, then newcomers (SYSTEMS.md §12); but who is served before others starts first."""

    def __init__(self, state: SchedulerState) -> None:
        config = state.config
        self._state = state
        self._queues = state.queues
        self._victims = Victims(config, state.pool, state.queues)
        self._tile = min(ROW_TILE, config.block_size)
        self._budget = TokenBudget(state.pace, config.max_batch_tokens, self._tile, config.target_iteration_seconds)
        self._evens = config.even_plans and config.num_stages > 1
        self._ahead = Ahead(state, self.preempt)
        self._num_evicted = self._num_spilled = self._num_stored = 0

    def schedule(self, now: float) -> IterationPlan | None:
        """The next plan, or None if nothing can run."""
        self._queues.refresh(now)
        self._displace(now)
        due = [
            (group, sequence)
            for group in self._queues.running
            for sequence in group.sequences
            if self._is_due(sequence)
        ]
        runnable = [each for each in due if self._may_run(each[1])]
        draft = self._new_draft(runnable)
        if self._evens:
            runnable = self._shared_out(draft, due, runnable)
        self._serve_all(draft, runnable, now)
        if runnable and not draft.work:
            # All decodes lack blocks. Those that are pinned and prefill can have what was set aside for them.
            draft.prefill_left = draft.limit_left = self._state.config.max_batch_tokens
            self._serve_all(draft, [each for each in runnable if not each[1].is_decoding], now)
        self._admit(draft, now)
        return self._issue(draft, now) if draft.work else None

    def _serve_all(self, draft: Draft, runnable: Runnable, now: float) -> None:
        for group, sequence in runnable:
            if draft.slots_left == 0:
                break
            # It may have been preempted by an elder in this very pass.
            if sequence.state is SequenceState.RUNNING and self._may_join(draft, group, sequence, now):
                self._serve(draft, group, sequence, now)

    @property
    def has_evicted(self) -> bool:
        """Cached blocks were taken since that was told last."""
        return self._state.pool.num_evicted != self._num_evicted

    def tell_evicted(self, now: float) -> None:
        """Write it down."""
        evicted, self._num_evicted = self._state.pool.num_evicted - self._num_evicted, self._state.pool.num_evicted
        if evicted:
            self._state.journal.write(why.Evicted(now, evicted))

    def keeps_waiting(self, decodes: int) -> bool:
        """Nobody in line can start beside `decodes` sequences, and the reason is the one told.

        It stays so while nobody else comes or ends, the order is the same, and the cache holds what it holds.
        """
        queues, config = self._queues, self._state.config
        if not queues.waiting:
            return True
        group = queues.waiting[0]
        # Service moves those that wait; a target moves the budget.
        if queues.policy.watches_service or config.target_iteration_seconds is not None:
            return False
        if self._victims.may_displace(group):
            return False
        room = config.max_batch_tokens - decodes
        reason = self._obstacle(group, Draft(config.max_batch_size - decodes, prefill_left=room, limit_left=room))
        return bool(reason) and reason == group.blocked_by

    def preempt(self, victim: SequenceGroup, in_favour_of: SequenceGroup, now: float) -> None:
        """Take back all blocks of `victim`: every block is needed at every step, so half of them is worth nothing."""
        dropped = sum(sequence.num_computed for sequence in victim.live)
        self._state.stop(victim)
        victim.num_preemptions += 1
        self._state.journal.write(
            why.Preempted(now, victim.request.request_id, in_favour_of.request.request_id, tokens_dropped=dropped)
        )

    # ---- the batch

    def _new_draft(self, runnable: Runnable) -> Draft:
        """Tokens are set aside for decodes. Beside others, best effort only pads: it gets what is left (REEF).

        Beside realtime it gets no more than hardly shows, once iterations have been seen.
        """
        first = min((sequence.request.service_class for _, sequence in runnable), default=ServiceClass.BESTEFFORT)
        pads = first < ServiceClass.BESTEFFORT
        decodes = self._num_decodes(runnable, pads=pads)
        state, config = self._state, self._state.config
        return Draft(
            slots_left=config.max_batch_size,
            prefill_left=self._budget.prefill(decodes),
            limit_left=config.max_batch_tokens - decodes,
            growth_left=self._budget.growth(),
            depth_price=self._budget.depth_price,
            tile=self._tile,
            pads=pads,
            padding_left=state.pace.padding(decodes) if first is ServiceClass.REALTIME else inf,
        )

    def _shared_out(self, draft: Draft, due: Runnable, runnable: Runnable) -> Runnable:
        """Leave the other stages their part, and serve those first who waited for theirs."""
        config, queues = self._state.config, self._queues
        newcomers = queues.waiting[: config.max_running - queues.num_running]
        share = Share.of(config, [sequence for _, sequence in due], newcomers, len(self._state.in_flight))
        draft.decodes_left = share.decodes
        draft.prefill_left = min(draft.prefill_left, share.prefill)
        return in_turns(runnable, share.decodes, pads=draft.pads)

    def _num_decodes(self, runnable: Runnable, *, pads: bool) -> int:
        """Tokens to set aside: one for each decoding sequence that gets a slot.

        The eldest gets one first. If it prefills, one decode less fits, and its token must not be set aside for that
        one: it would stand still, perhaps for good, since the decodes may wait for blocks that only it can reclaim.
        """
        slots = self._state.config.max_batch_size - (bool(runnable) and not runnable[0][1].is_decoding)
        if pads:
            runnable = [each for each in runnable if each[1].request.service_class < ServiceClass.BESTEFFORT]
        return min(sum([sequence.is_decoding for _, sequence in runnable]), slots)

    def _is_due(self, sequence: Sequence) -> bool:
        """Something is missing that a plan could run."""
        return (
            sequence.state is SequenceState.RUNNING
            and len(sequence.tokens) + sequence.num_pending > sequence.num_scheduled
            and sequence.wants_more()
            and (sequence.is_forked or sequence.num_computed > 0 or self._leads(sequence))
        )

    def _may_run(self, sequence: Sequence) -> bool:
        """No plan in flight forbids another (look-ahead 0: none may have it).

        Pieces of a prompt may follow each other through the stages: the next one needs the KV of the one before only
        where that has been.
        """
        config = self._state.config
        if sequence.reads_disk or sequence.request.beams is not None:
            return sequence.in_flight == 0
        return sequence.in_flight < (config.pieces_in_flight if sequence.num_missing > 1 else 1 + config.lookahead)

    def _may_join(self, draft: Draft, group: SequenceGroup, sequence: Sequence, now: float) -> bool:
        """Beams that lack one token each go together or not at all: the first one asks for all of them."""
        gang = [] if group.beams is None else group.gang()
        # Nothing to wait for: it is no beam, others are behind it, or the first one was in and brings the others along.
        if not gang:
            return True
        if sequence is not gang[0] or len(gang) > draft.slots_left or len(gang) > draft.budget_of(gang):
            return False
        return self._make_room(group, gangs.blocks_needed(self._state, gang), now)

    def _leads(self, sequence: Sequence) -> bool:
        return self._state.group_of(sequence).leader() is sequence

    def _serve(self, draft: Draft, group: SequenceGroup, sequence: Sequence, now: float) -> bool:
        """Give `sequence` its next tokens: one if it decodes, else as many as the budget leaves.

        False if it lacks budget or blocks; who waits for a prefix lacks neither.
        """
        state, size = self._state, self._state.config.block_size
        # Who begins behind a cached prefix may lack one token only; nothing was set aside for it.
        is_decode = sequence.is_decoding
        if sequence.num_scheduled == 0 and not self._begin(draft, group, sequence, now):
            return True
        found = [] if sequence.in_flight else state.cache.find_elsewhere(sequence)
        start = sequence.num_scheduled + len(found) * size
        known = len(sequence.tokens) + sequence.num_pending
        budget = 1 if is_decode and not draft.pads else draft.budget(sequence, is_decode=is_decode)
        end = known if budget and start + 1 == known else chunk_end(start, known, budget, size)
        if end < known and sequence.request.is_whole:
            draft.is_closed = True
            return False
        if end == start:
            return False
        copy = None
        # Most decodes write into a block that is there and their own.
        needed = sequence.table.needed(start, end, size, state.pool)
        if needed:
            if not self._make_room(group, needed, now):
                return False
            state.tiers.lock(found)
            copy = sequence.table.prepare(start, end, size, state.pool)
        if not sequence.in_flight:
            self._restore(group, sequence, found, now)
        draft.charge(sequence, end - start, is_decode=is_decode)
        draft.add(sequence, end, state.num_iterations, copy)
        # Not when it looked: it may have had no room then, and have found more since.
        if group.cached_tokens is None:
            group.cached_tokens = min(start, sequence.num_prompt_tokens)
        self._queues.policy.on_service(group, end - start, now)
        return True

    def _begin(self, draft: Draft, group: SequenceGroup, sequence: Sequence, now: float) -> bool:
        """Take what the cache has of its tokens; False if it should wait for more, which a plan is computing."""
        state, cache = self._state, self._state.cache
        if not cache.is_enabled:
            return True
        found = cache.find(sequence)
        in_flight = (draft.entries, *(plan.entries for plan in state.in_flight))
        if any(cache.is_underway(sequence, len(found), entries) for entries in in_flight):
            self._block(group, "prefix", now)
            return False
        if group.cached_tokens is None:
            sequence.num_found_blocks = len(found)
        if found:
            state.take(sequence, found, now)
            if sequence.num_computed >= max(1, sequence.num_prompt_tokens - 1):
                state.fork(group, sequence, now)
        return True

    def _restore(self, group: SequenceGroup, sequence: Sequence, found: list[Found], now: float) -> None:
        """What was `found` on host or disk comes to the blocks of `sequence`, now ready, before it goes on."""
        state = self._state
        if found:
            first, end = sequence.num_shared_blocks, sequence.num_shared_blocks + len(found)
            state.tiers.restore(found, sequence.table.blocks[first:end], sequence.seq_id)
            sequence.num_scheduled = end * state.config.block_size
            state.journal.write(
                why.Restored(now, group.request.request_id, sequence.index, sequence.num_scheduled, len(found))
            )
        sequence.reads_disk = state.tiers.on_disk(found)

    def _make_room(self, group: SequenceGroup, needed: int, now: float) -> bool:
        """Preempt until `needed` blocks are free; False if they aren't (yet).

        The eldest can preempt all others but those pinned, which get to their ends first, and then it fits (`add` has
        checked): so somebody always advances.
        """
        pool = self._state.pool
        while needed > pool.num_free:
            if needed <= pool.num_free + pool.num_limbo or not self._state.admission.may_preempt:
                return False
            victim = self._victims.of(group, self._state.num_iterations)
            if victim is None:
                return False
            self.preempt(victim, group, now)
        return True

    # ---- newcomers

    def _displace(self, now: float) -> None:
        """Start those that are served before somebody who runs. Who ranks last then pauses, or gives up its blocks."""
        queues = self._queues
        while queues.waiting and queues.running and self._victims.may_displace(group := queues.waiting[0]):
            reason = self._obstacle_to_displacing(group, now)
            if reason:
                self._block(group, reason, now)
                return
            self._state.start(group, now)
            queues.refresh(now)

    def _obstacle_to_displacing(self, group: SequenceGroup, now: float) -> str:
        state, queues = self._state, self._queues
        if group.is_in_flight:
            return "in_flight"
        if not self._victims.has_slot(group):
            return "batch_size"
        if not state.can_pin(group):
            return "kv_blocks"
        while (missing := state.admission.missing(group, queues.num_running)) > state.pool.num_limbo:
            victim = self._victims.for_newcomer(group, missing) if state.admission.may_preempt else None
            if victim is None:
                return "kv_blocks"
            self.preempt(victim, group, now)
        return "kv_blocks" if missing else ""

    def _admit(self, draft: Draft, now: float) -> None:
        """Start waiting groups in order; the first that can't start holds up all behind it."""
        queues = self._queues
        while queues.waiting and not draft.is_closed:
            queues.refresh(now)
            group = queues.waiting[0]
            reason = self._obstacle(group, draft)
            if reason:
                self._block(group, reason, now)
                return
            self._state.start(group, now)
            if group.request.service_class is ServiceClass.REALTIME and not draft.pads:
                draft.pads, draft.padding_left = True, self._state.pace.padding(0)
            leader = group.leader()
            assert leader is not None
            if not self._serve(draft, group, leader, now):
                return

    def _block(self, group: SequenceGroup, reason: str, now: float) -> None:
        """Told once a reason."""
        if reason != group.blocked_by:
            group.blocked_by = reason
            self._state.journal.write(why.Blocked(now, group.request.request_id, reason))

    def _obstacle(self, group: SequenceGroup, draft: Draft) -> str:
        """Why `group` can't start now, or nothing."""
        state = self._state
        if group.is_in_flight:
            return "in_flight"
        if draft.slots_left == 0 or self._queues.num_running + len(group.live) > state.config.max_running:
            return "batch_size"
        least = group.request.num_prompt_tokens if group.request.is_whole else 1
        if draft.budget(group.live[0], is_decode=False) < least:
            return "token_budget"
        # In limbo, not lost: a promise given now could not be kept before the plans in flight are back.
        if state.admission.missing(group, self._queues.num_running) or not state.can_pin(group):
            return "kv_blocks"
        return ""

    def _issue(self, draft: Draft, now: float) -> IterationPlan:
        state = self._state
        swaps = state.tiers.take()
        fetches = self._ahead.swap(draft, swaps, now)
        ahead = state.tiers.take()
        plan = draft.finish(state.epoch, state.num_iterations, state.forget, swaps, ahead)
        pins = [copy.source for copy in draft.copies]
        in_flight = PlanInFlight(state.num_iterations, draft.entries, pins, now)
        in_flight.decodes, in_flight.prefill_tokens = draft.num_decodes, draft.num_prefilled
        in_flight.prefill_pairs = draft.num_pairs
        in_flight.swaps, in_flight.fetches = swaps + ahead, fetches
        state.in_flight.append(in_flight)
        self.tell_evicted(now)
        self._note_spills(now)
        work = [(work.seq_id, work.start, work.num_tokens) for work in plan.work]
        state.journal.write(why.Scheduled.of(now, state.epoch, state.num_iterations, work))
        state.num_iterations += 1
        state.forget = []
        return plan

    def _note_spills(self, now: float) -> None:
        tiers = self._state.tiers
        spilled, self._num_spilled = tiers.num_spilled - self._num_spilled, tiers.num_spilled
        stored, self._num_stored = tiers.num_stored - self._num_stored, tiers.num_stored
        if spilled or stored:
            self._state.journal.write(why.Spilled(now, spilled, stored))
