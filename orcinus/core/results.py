"""Results come in: what an iteration has computed counts from here on, and what it sampled goes out."""

from __future__ import annotations

from collections.abc import Iterable

from orcinus.core import gang
from orcinus.core import journal as why
from orcinus.core.ahead import arrive
from orcinus.core.draft import Entry, PlanInFlight
from orcinus.core.plan import NUMERICAL_ERROR, IterationResult, SequenceFailure, SequenceOutput, SwapIn
from orcinus.core.progress import Progress
from orcinus.core.request import FinishReason
from orcinus.core.sequence import Sequence, SequenceGroup, SequenceState
from orcinus.core.state import SchedulerState


class Results:
    """Commits the oldest plan in flight."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self._last_end = 0.0
        policy, target = state.queues.policy, state.config.target_iteration_seconds
        self._watches_time = policy.watches_time or target is not None or state.tiers.spills

    @property
    def watches_time(self) -> bool:
        """Somebody wants to know how long iterations take."""
        return self._watches_time or self._state.has_realtime

    def update(self, result: IterationResult, now: float) -> list[Progress]:
        """See `Scheduler.update`."""
        state = self._state
        if result.epoch != state.epoch:
            return []
        plan = state.in_flight.popleft()
        assert plan.iteration == result.iteration, f"collected {result.iteration}, the oldest is {plan.iteration}"
        state.pool.unpin(plan.pins)
        arrive(state, plan, frozenset(result.lost))
        if self.watches_time:
            ran = [entry.sequence for entry in plan.entries if not entry.sequence.is_finished]
            groups = {sequence.request.request_id: state.group_of(sequence) for sequence in ran}
            work = (plan.decodes, plan.prefill_tokens, plan.prefill_pairs)
            self.note_time(work, plan.issued_at, groups.values(), now)
        outputs = {output.seq_id: output for output in result.outputs}
        failures = {failure.seq_id: failure for failure in result.failures}
        progress: list[Progress] = []
        in_vain = self._lose(plan, result)
        for entry in plan.entries:
            if entry.sequence.seq_id in in_vain:
                self._rewind(entry, now)
            else:
                self._commit(entry, now, is_sound=not failures or entry.sequence.seq_id not in failures)
        for entry in plan.entries:
            seq_id = entry.sequence.seq_id
            if entry.sequence.state is SequenceState.FINISHED or seq_id in in_vain:
                continue
            if seq_id in failures:
                progress += self._fail(entry.sequence, failures[seq_id], now)
            elif seq_id in outputs:
                progress += self._take(entry, outputs[seq_id], now)
            else:
                assert not entry.samples, f"no output came for sequence {seq_id}"
        return progress

    def note_time(
        self, work: tuple[int, int, int], issued_at: float, groups: Iterable[SequenceGroup], now: float
    ) -> None:
        """An iteration of `groups` ran since it was issued, or since the one before it was done.

        Args:
            work: its decodes, and tokens and pairs of its prefills.
        """
        seconds = now - max(issued_at, self._last_end)
        self._last_end = now
        decodes, tokens, pairs = work
        self._state.pace.observe(decodes, tokens, seconds, pairs)
        for group in groups:
            self._state.queues.policy.on_time(group, max(0.0, seconds), now)

    def _lose(self, plan: PlanInFlight, result: IterationResult) -> set[int]:
        """Forget what the disk doesn't hold; the sequences that were to read it by this plan."""
        if not result.lost:
            return set()
        self._state.tiers.lose(result.lost)
        lost = set(result.lost)
        return {swap.seq_id for swap in plan.swaps if isinstance(swap, SwapIn) and (swap.slot, swap.generation) in lost}

    def _rewind(self, entry: Entry, now: float) -> None:
        """Nothing of it counts. The workers are told anew, for they hold a token that was sampled from nothing."""
        sequence = entry.sequence
        sequence.in_flight -= 1
        sequence.num_pending -= entry.samples
        if entry.is_current:
            sequence.num_scheduled = sequence.num_computed
            self._state.forget.append(sequence.seq_id)
            sequence.is_known = False
            self._state.journal.write(why.Lost(now, sequence.request.request_id, sequence.index))

    def _commit(self, entry: Entry, now: float, *, is_sound: bool) -> None:
        """The KV of the entry exists now, unless it was dropped while the plan was in flight. If sound it's shared."""
        sequence, state = entry.sequence, self._state
        sequence.in_flight -= 1
        sequence.num_pending -= entry.samples
        if not entry.is_current:
            return
        before, sequence.num_computed = sequence.num_computed, entry.end
        if is_sound and state.cache.is_enabled:
            state.cache.keep(sequence, state.newest_plan(sequence).pins if sequence.in_flight else None)
        # The position that branches start from, reached by whoever leads the group.
        branching = max(1, sequence.num_prompt_tokens - 1)
        if sequence.request.num_sequences > 1 and before < branching <= entry.end:
            state.fork(state.group_of(sequence), sequence, now)

    def _take(self, entry: Entry, output: SequenceOutput, now: float) -> list[Progress]:
        if entry.sequence.request.beams is not None:
            return gang.take(self._state, entry, output, now)
        return [self.append(entry, output, now)]

    def append(self, entry: Entry, output: SequenceOutput, now: float) -> Progress:
        """Take the sampled tokens, up to the one that ends the answer."""
        sequence, request = entry.sequence, entry.sequence.request
        group = self._state.group_of(sequence)
        if request.pooling is not None:
            end = self._state.end(group, sequence, FinishReason.STOP, now)
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
        prompt_logprobs = output.prompt_logprobs
        if prompt_logprobs:
            prompt_logprobs = prompt_logprobs[sequence.num_prompt_logprobs - entry.start :]
            sequence.num_prompt_logprobs += len(prompt_logprobs)
        if reason is not None:
            self._state.end(group, sequence, reason, now)
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
        group = self._state.group_of(failed)
        for sequence in group.live:
            self._state.cache.drop(sequence, found_too=failure.code == NUMERICAL_ERROR)
        return self._state.end_all(group, failure.code, failure.message, now)
