"""The scheduler: which sequences run in the next iteration, and what their results mean.

Iteration-level scheduling after Orca (OSDI '22), a token budget after Sarathi-Serve (OSDI '24), paged KV with
preemption by recompute after vLLM (SOSP '23). Pure: time comes in as an argument, nothing is read or awaited.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from math import inf

from orcinus.core import journal as why
from orcinus.core.admission import ADMISSIONS
from orcinus.core.config import SchedulerConfig, refuse_impossible
from orcinus.core.draft import Draft, Entry, PlanInFlight, chunk_end
from orcinus.core.kv.pool import BlockPool
from orcinus.core.kv.prefix import PrefixCache
from orcinus.core.kv.radix import RadixTree
from orcinus.core.kv.table import blocks_for
from orcinus.core.plan import NUMERICAL_ERROR, IterationPlan, IterationResult, SequenceFailure, SequenceOutput
from orcinus.core.policy import POLICIES
from orcinus.core.progress import Progress
from orcinus.core.request import FinishReason, Request
from orcinus.core.sequence import Sequence, SequenceGroup, SequenceState
from orcinus.errors import InvalidRequest


def _order(group: SequenceGroup) -> tuple[object, ...]:
    return group.order


class Scheduler:
    """Requests in, plans out, results in, progress out.

    `waiting` and `running` hold groups in service order. A group is in exactly one of them from `add` to its end.
    """

    def __init__(self, config: SchedulerConfig, journal: why.Journal) -> None:
        self.config = config
        self.journal = journal
        tree = RadixTree(config.num_blocks, config.block_size)
        self.pool = BlockPool(config.num_blocks, tree)
        self.cache = PrefixCache(self.pool, tree, config.block_size, is_enabled=config.enable_prefix_caching)
        self.waiting: list[SequenceGroup] = []
        self.running: list[SequenceGroup] = []
        self.epoch = 0
        self.num_iterations = 0
        self._policy = POLICIES[config.policy]()
        self._admission = ADMISSIONS[config.admission](self.pool, self.cache, config.block_size)
        self._groups: dict[str, SequenceGroup] = {}
        self._in_flight: deque[PlanInFlight] = deque()
        self._num_requests = 0
        self._num_sequences = 0
        self._num_running = 0
        self._num_evicted = 0
        self._resort_at = inf
        # (deadline, group number, group) of those that have one, soonest first; ended groups are skipped when met.
        self._deadlines: list[tuple[float, int, SequenceGroup]] = []
        # For the next plan: sequences that the workers hold and may forget.
        self._forget: list[int] = []

    @property
    def num_in_flight(self) -> int:
        """Plans issued and not yet collected."""
        return len(self._in_flight)

    @property
    def num_running(self) -> int:
        """Sequences admitted and alive."""
        return self._num_running

    def groups(self) -> list[SequenceGroup]:
        """Every live group, in the order of `add`."""
        return list(self._groups.values())

    # ---- requests come and go

    def add(self, request: Request, now: float) -> None:
        """Take a request into the queue.

        Raises:
            InvalidRequest: its id is in use, it could not run even alone, or nothing of it is left to generate.
        """
        params = request.params
        if request.request_id in self._groups:
            raise InvalidRequest(f"request id {request.request_id[:100]!r} is in use", param="request_id")
        refuse_impossible(request, self.config)
        sequences = [Sequence(self._num_sequences + index, request, index) for index in range(params.n)]
        for sequence in sequences:
            sequence.settle()
        if all(sequence.is_finished for sequence in sequences):
            raise InvalidRequest("every answer in resumed is complete; nothing is left to generate", param="resumed")
        group = SequenceGroup(request, self._num_requests, sequences)
        self._num_requests += 1
        self._num_sequences += params.n
        self._groups[request.request_id] = group
        self._rank(group, now)
        insort(self.waiting, group, key=_order)
        if request.deadline is not None:
            heapq.heappush(self._deadlines, (request.deadline, group.number, group))
        resumed = sum(sequence.num_generated for sequence in sequences)
        first, prompt = sequences[0].seq_id, request.num_prompt_tokens
        self.journal.write(
            why.Added(now, request.request_id, prompt, request.max_tokens, params.n, resumed, first_seq_id=first)
        )

    def abort(
        self, request_id: str, now: float, index: int | None = None, cause: FinishReason = FinishReason.ABORT
    ) -> list[Progress]:
        """End a request, or one of its answers; nothing happens if it has ended already."""
        group = self._groups.get(request_id)
        if group is None:
            return []
        ending = [sequence for sequence in group.live if index is None or sequence.index == index]
        return [self._end(group, sequence, cause, now) for sequence in ending]

    def expire(self, now: float) -> list[Progress]:
        """End every request whose deadline has passed, begun or not: nobody wants its answer any more."""
        progress: list[Progress] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, group = heapq.heappop(self._deadlines)
            message = f"the request's deadline passed after {now - group.request.arrived_at:.3f} s"
            progress += self._end_all(group, "deadline_exceeded", message, now)
        return progress

    # ---- plans go out

    def schedule(self, now: float) -> IterationPlan | None:
        """The next plan, or None if nothing can run. Decodes first, then prefills, then newcomers (SYSTEMS.md §12)."""
        self._resort(now)
        config = self.config
        runnable = [
            (group, sequence) for group in self.running for sequence in group.sequences if self._may_run(sequence)
        ]
        draft = Draft(
            slots_left=config.max_batch_size,
            prefill_left=config.max_batch_tokens - self._num_decodes([sequence for _, sequence in runnable]),
        )
        for group, sequence in runnable:
            if draft.slots_left == 0:
                break
            # It may have been preempted by an elder in this very pass.
            if sequence.state is SequenceState.RUNNING:
                self._serve(draft, group, sequence, now)
        self._admit(draft, now)
        return self._issue(draft, now) if draft.work else None

    def _num_decodes(self, runnable: list[Sequence]) -> int:
        """Tokens to set aside: one for each decoding sequence that gets a slot.

        The eldest gets one first. If it prefills, one decode less fits, and its token must not be set aside for that
        one: it would stand still, perhaps for good, since the decodes may wait for blocks that only it can reclaim.
        """
        slots = self.config.max_batch_size - (bool(runnable) and not runnable[0].is_decoding)
        return min(sum(sequence.is_decoding for sequence in runnable), slots)

    def _may_run(self, sequence: Sequence) -> bool:
        """Something is missing, and no plan in flight forbids another (look-ahead 0: none may have it)."""
        return (
            sequence.state is SequenceState.RUNNING
            and sequence.in_flight <= self.config.lookahead
            and sequence.num_missing > 0
            and sequence.wants_more()
            and (sequence.is_forked or sequence.num_computed > 0 or self._leads(sequence))
        )

    def _leads(self, sequence: Sequence) -> bool:
        return self._groups[sequence.request.request_id].leader() is sequence

    def _serve(self, draft: Draft, group: SequenceGroup, sequence: Sequence, now: float) -> bool:
        """Give `sequence` its next tokens: one if it decodes, else as many as the budget leaves.

        False if it lacks budget or blocks; who waits for a prefix lacks neither.
        """
        is_decode = sequence.is_decoding
        if sequence.num_scheduled == 0 and not self._begin(draft, group, sequence, now):
            return True
        start = sequence.num_scheduled
        budget = 1 if is_decode else draft.prefill_left
        known = sequence.num_tokens + sequence.num_pending
        end = chunk_end(start, known, budget, self.config.block_size)
        if end < known and sequence.request.is_whole:
            draft.is_closed = True
            return False
        if end == start:
            return False
        copy = None
        # Most decodes write into a block that is there and their own.
        needed = sequence.table.needed(start, end, self.config.block_size, self.pool)
        if needed:
            if not self._make_room(group, needed, now):
                return False
            copy = sequence.table.prepare(start, end, self.config.block_size, self.pool)
        draft.add(sequence, end, self.num_iterations, copy)
        draft.prefill_left -= 0 if is_decode else end - start
        self._policy.on_service(group, end - start, now)
        return True

    def _begin(self, draft: Draft, group: SequenceGroup, sequence: Sequence, now: float) -> bool:
        """Take what the cache has of its tokens; False if it should wait for more, which a plan is computing."""
        if not self.cache.is_enabled:
            return True
        found = self.cache.find(sequence)
        in_flight = (draft.entries, *(plan.entries for plan in self._in_flight))
        if any(self.cache.is_underway(sequence, len(found), entries) for entries in in_flight):
            self._block(group, "prefix", now)
            return False
        if group.cached_tokens is None:
            sequence.num_found_blocks = len(found)
            group.cached_tokens = min(len(found) * self.config.block_size, sequence.num_prompt_tokens)
        if found:
            self._take(sequence, found, now)
            if sequence.num_computed >= max(1, sequence.num_prompt_tokens - 1):
                self._fork(group, sequence, now)
        return True

    def _take(self, sequence: Sequence, found: list[int], now: float) -> None:
        self.cache.take(sequence, found)
        self.journal.write(why.CacheHit(now, sequence.request.request_id, sequence.index, sequence.num_computed))

    def _make_room(self, group: SequenceGroup, needed: int, now: float) -> bool:
        """Preempt the latest arrivals until `needed` blocks are free; False if they aren't (yet).

        The eldest can always preempt all others and then fits (`add` has checked), so somebody always advances.
        """
        while needed > self.pool.num_free:
            if needed <= self.pool.num_free + self.pool.num_limbo or not self._admission.may_preempt:
                return False
            victim = self.running[-1]
            if victim is group:
                return False
            self._preempt(victim, group, now)
        return True

    def _admit(self, draft: Draft, now: float) -> None:
        """Start waiting groups in order; the first that can't start holds up all behind it."""
        while self.waiting and draft.slots_left > 0 and not draft.is_closed:
            group = self.waiting[0]
            reason = self._obstacle(group, draft)
            if reason:
                self._block(group, reason, now)
                return
            self._start(group, now)
            leader = group.leader()
            assert leader is not None
            if not self._serve(draft, group, leader, now):
                return

    def _block(self, group: SequenceGroup, reason: str, now: float) -> None:
        """Told once a reason."""
        if reason != group.blocked_by:
            group.blocked_by = reason
            self.journal.write(why.Blocked(now, group.request.request_id, reason))

    def _obstacle(self, group: SequenceGroup, draft: Draft) -> str:
        """Why `group` can't start now, or nothing."""
        if group.is_in_flight:
            return "in_flight"
        if self._num_running + len(group.live) > self.config.max_running:
            return "batch_size"
        least = group.request.num_prompt_tokens if group.request.is_whole else 1
        if draft.prefill_left < least:
            return "token_budget"
        # In limbo, not lost: a promise given now could not be kept before the plans in flight are back.
        if not self._admission.fits(group, self._num_running):
            return "kv_blocks"
        return ""

    def _start(self, group: SequenceGroup, now: float) -> None:
        self.waiting.remove(group)
        insort(self.running, group, key=_order)
        self._admission.enter(group)
        for sequence in group.live:
            sequence.state = SequenceState.RUNNING
            self._num_running += 1
        group.blocked_by = ""
        waited = now - group.request.arrived_at
        self.journal.write(why.Admitted(now, group.request.request_id, waited, group.reserved))

    def _preempt(self, victim: SequenceGroup, in_favour_of: SequenceGroup, now: float) -> None:
        """Take back all blocks of `victim`: every block is needed at every step, so half of them is worth nothing."""
        dropped = sum(sequence.num_computed for sequence in victim.live)
        self._stop_running(victim)
        victim.num_preemptions += 1
        self.journal.write(
            why.Preempted(now, victim.request.request_id, in_favour_of.request.request_id, tokens_dropped=dropped)
        )

    def _stop_running(self, group: SequenceGroup) -> None:
        """Back to the queue, KV dropped, place in the order kept."""
        for sequence in group.live:
            self._release(sequence)
            sequence.drop_kv()
            sequence.state = SequenceState.PREEMPTED
            self._num_running -= 1
        self._admission.leave(group)
        self.running.remove(group)
        insort(self.waiting, group, key=_order)

    def _issue(self, draft: Draft, now: float) -> IterationPlan:
        plan = draft.finish(self.epoch, self.num_iterations, self._forget)
        pins = [copy.source for copy in draft.copies]
        self._in_flight.append(PlanInFlight(self.num_iterations, draft.entries, pins))
        evicted, self._num_evicted = self.pool.num_evicted - self._num_evicted, self.pool.num_evicted
        if evicted:
            self.journal.write(why.Evicted(now, evicted))
        work = tuple((work.seq_id, work.start, work.num_tokens) for work in plan.work)
        self.journal.write(why.Scheduled(now, self.epoch, self.num_iterations, plan.num_tokens, work))
        self.num_iterations += 1
        self._forget = []
        return plan

    # ---- results come in

    def update(self, result: IterationResult, now: float) -> list[Progress]:
        """Commit the oldest plan in flight. A result of an older epoch changes nothing."""
        if result.epoch != self.epoch:
            return []
        plan = self._in_flight.popleft()
        assert plan.iteration == result.iteration, f"collected {result.iteration}, the oldest is {plan.iteration}"
        self.pool.unpin(plan.pins)
        outputs = {output.seq_id: output for output in result.outputs}
        failures = {failure.seq_id: failure for failure in result.failures}
        progress: list[Progress] = []
        for entry in plan.entries:
            self._commit(entry, now, is_sound=entry.sequence.seq_id not in failures)
        for entry in plan.entries:
            seq_id = entry.sequence.seq_id
            if entry.sequence.is_finished:
                continue
            if seq_id in failures:
                progress += self._fail(entry.sequence, failures[seq_id], now)
            elif seq_id in outputs:
                progress.append(self._append(entry, outputs[seq_id], now))
            else:
                assert not entry.samples, f"no output came for sequence {seq_id}"
        return progress

    def _commit(self, entry: Entry, now: float, *, is_sound: bool) -> None:
        """The KV of the entry exists now, unless it was dropped while the plan was in flight. If sound it's shared."""
        sequence = entry.sequence
        sequence.in_flight -= 1
        sequence.num_pending -= entry.samples
        if not entry.is_current:
            return
        sequence.num_computed = entry.end
        if is_sound and self.cache.is_enabled:
            self.cache.keep(sequence, self._newest_plan(sequence).pins if sequence.in_flight else None)
        # The position that branches start from, reached by whoever leads the group.
        branching = max(1, sequence.num_prompt_tokens - 1)
        if sequence.request.params.n > 1 and entry.start < branching <= entry.end:
            self._fork(self._groups[sequence.request.request_id], sequence, now)

    def _fork(self, group: SequenceGroup, leader: Sequence, now: float) -> None:
        """Branches take over all of the prompt but its last token, which each runs itself to draw its own sample."""
        shared = leader.num_prompt_tokens - 1
        for branch in group.live:
            if branch is leader or branch.is_forked or branch.num_scheduled > 0:
                continue
            branch.is_forked = True
            found = self.cache.find(branch)
            if len(found) * self.config.block_size > shared:
                # Some of its answer, from before a preemption.
                self._take(branch, found, now)
                continue
            self.cache.fork(leader, branch, shared)
            self.journal.write(why.Forked(now, group.request.request_id, branch.index, len(branch.table.blocks)))

    def _append(self, entry: Entry, output: SequenceOutput, now: float) -> Progress:
        """Take the sampled tokens, up to the one that ends the answer."""
        sequence, request = entry.sequence, entry.sequence.request
        group = self._groups[request.request_id]
        if request.pooling is not None:
            end = self._end(group, sequence, FinishReason.STOP, now)
            return Progress(end.request_id, end.index, finish_reason=end.finish_reason, pooled=output.pooled)
        reason: FinishReason | None = None
        taken = 0
        for token in output.tokens:
            sequence.tokens.append(token)
            taken += 1
            reason = sequence.reason_to_stop(token)
            if reason is not None:
                break
        stop_token = output.tokens[taken - 1] if reason is FinishReason.STOP else None
        prompt_logprobs = output.prompt_logprobs[sequence.num_prompt_logprobs - entry.start :]
        sequence.num_prompt_logprobs += len(prompt_logprobs)
        if reason is not None:
            self._end(group, sequence, reason, now)
        return Progress(
            request.request_id,
            sequence.index,
            output.tokens[:taken],
            output.logprobs[:taken],
            prompt_logprobs,
            reason,
            stop_token=stop_token,
            cached_tokens=group.cached_tokens or 0,
        )

    def _fail(self, failed: Sequence, failure: SequenceFailure, now: float) -> list[Progress]:
        """End the whole request: an answer to half of a question is not what was asked for."""
        group = self._groups[failed.request.request_id]
        for sequence in group.live:
            self.cache.drop(sequence, found_too=failure.code == NUMERICAL_ERROR)
        return self._end_all(group, failure.code, failure.message, now)

    def _end_all(self, group: SequenceGroup, code: str, message: str, now: float) -> list[Progress]:
        """End what is left of a request with an error."""
        return [
            Progress(
                group.request.request_id,
                sequence.index,
                finish_reason=self._end(group, sequence, FinishReason.ERROR, now).finish_reason,
                error_code=code,
                error_message=message,
            )
            for sequence in group.live
        ]

    # ---- endings

    def _end(self, group: SequenceGroup, sequence: Sequence, reason: FinishReason, now: float) -> Progress:
        was_running = sequence.state is SequenceState.RUNNING
        self._release(sequence)
        sequence.state = SequenceState.FINISHED
        sequence.finish_reason = reason
        self._num_running -= was_running
        request_id = group.request.request_id
        self.journal.write(why.Finished(now, request_id, sequence.index, str(reason), sequence.num_generated))
        if group.leader() is None:
            (self.running if was_running else self.waiting).remove(group)
            self._admission.leave(group)
            del self._groups[request_id]
        return Progress(request_id, sequence.index, finish_reason=reason)

    def _release(self, sequence: Sequence) -> None:
        """Give the blocks back; those that a plan in flight may touch stay in limbo until it is collected."""
        if sequence.is_known:
            self._forget.append(sequence.seq_id)
            sequence.is_known = False
        if sequence.in_flight:
            plan = self._newest_plan(sequence)
            self.pool.pin(sequence.table.blocks)
            plan.pins += sequence.table.blocks
        sequence.table.clear(self.pool)

    def _newest_plan(self, sequence: Sequence) -> PlanInFlight:
        """The last one in flight that has work for `sequence`."""
        return self._in_flight[sequence.last_iteration - self._in_flight[0].iteration]

    # ---- epochs

    def new_epoch(self, now: float, *, kv_lost: bool) -> None:
        """Abandon every plan in flight; the workers that ran them are fenced.

        Nothing that they did counts. With `kv_lost` the workers' memory is gone too, and all sequences start over from
        their tokens.
        """
        abandoned = len(self._in_flight)
        entries = [entry for plan in self._in_flight for entry in plan.entries]
        for entry in entries:
            entry.sequence.in_flight = 0
            entry.sequence.num_pending = 0
        for plan in self._in_flight:
            self.pool.unpin(plan.pins)
        self._in_flight.clear()
        for group in self.groups() if kv_lost else self._interrupted_in_copy(entries):
            if group in self.running:
                self._stop_running(group)
        if kv_lost:
            self.cache.clear()
        for group in self._groups.values():
            for sequence in group.sequences:
                sequence.num_scheduled = sequence.num_computed
                sequence.is_known = False
        self._forget = []
        self.epoch += 1
        self.journal.write(why.EpochStarted(now, self.epoch, abandoned, kv_lost))

    def _interrupted_in_copy(self, entries: list[Entry]) -> list[SequenceGroup]:
        """Groups that an abandoned plan copied a block for, or didn't.

        Copying once more would be no remedy: the source may have been written by its last owner since.
        """
        alive = [entry.sequence for entry in entries if entry.copied and not entry.sequence.is_finished]
        return [self._groups[sequence.request.request_id] for sequence in alive]

    # ---- order

    def _rank(self, group: SequenceGroup, now: float) -> None:
        request = group.request
        group.order = (request.service_class, self._policy.rank(group, now), request.arrived_at, group.number)
        self._resort_at = min(self._resort_at, self._policy.stable_until(now))

    def _resort(self, now: float) -> None:
        if now < self._resort_at:
            return
        self._resort_at = inf
        for group in self._groups.values():
            self._rank(group, now)
        self.waiting.sort(key=_order)
        self.running.sort(key=_order)

    def check(self) -> None:
        """The invariants of DESIGN.md §4, for tests and debug mode; an assertion names the broken one."""
        self.pool.check(sequence.table.blocks for group in self._groups.values() for sequence in group.sequences)
        assert self._num_running == sum(len(group.live) for group in self.running)
        for group in self._groups.values():
            owners = [sequence for sequence in group.sequences if sequence.table.blocks]
            assert all(sequence.state is SequenceState.RUNNING for sequence in owners)
            for sequence in group.live:
                known = sequence.num_tokens + sequence.num_pending
                assert 0 <= sequence.num_computed <= sequence.num_scheduled <= known
                assert len(sequence.table.blocks) >= blocks_for(sequence.num_scheduled, self.config.block_size)
                assert sequence.in_flight <= 1 + self.config.lookahead
