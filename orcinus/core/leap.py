"""Several iterations at little cost: while only positions and blocks move, each plan follows from the one before.

`Core.leap` begins one. It leaves the state, the journal and the policy as the plain loop would, but touches a sequence
only when its block is full or its answer may be over, and all of them once at the end. For those who know what will be
sampled: the simulator.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from math import inf
from typing import Protocol

from orcinus.core import journal as why
from orcinus.core.draft import Entry
from orcinus.core.plan import SequenceOutput
from orcinus.core.planner import Planner
from orcinus.core.progress import Progress
from orcinus.core.request import ServiceClass
from orcinus.core.results import Results
from orcinus.core.sequence import Sequence, SequenceGroup
from orcinus.core.state import SchedulerState

# The journal gets its events after so many iterations at the latest.
_MOST_UNTOLD = 1024


class Answers(Protocol):
    """What will be sampled."""

    def tokens_to_end(self, seq_id: int, position: int) -> int:
        """How many tokens from `position` on, the first included, until one that may end the answer; many if none."""
        ...

    def tokens(self, seq_id: int, position: int, count: int) -> array[int]:
        """`count` of them from `position` on."""
        ...


class _Member:
    """One sequence. `start` is its position in the first iteration; of `settled` iterations it knows."""

    __slots__ = ("group", "is_over", "sequence", "settled", "start")

    def __init__(self, group: SequenceGroup, sequence: Sequence) -> None:
        self.group = group
        self.sequence = sequence
        self.start = sequence.num_scheduled
        self.settled = 0
        self.is_over = False


class Leap:
    """Call `schedule` and `update` by turns, as long as `schedule` says yes; then `close`.

    Args:
        parts: who runs from which position in the first iteration; in the k-th after it, k tokens further.
        forgotten: by the workers with the iteration scheduled last, as in a plan.
        num_steps: iterations updated.
    """

    def __init__(
        self,
        state: SchedulerState,
        planner: Planner,
        results: Results,
        answers: Answers,
        deadline: float,
        batch: list[tuple[SequenceGroup, Sequence]],
    ) -> None:
        self._state, self._planner, self._results, self._answers = state, planner, results, answers
        self._deadline = deadline
        self._size = state.config.block_size
        self._first_iteration = state.num_iterations
        self._members = [_Member(group, sequence) for group, sequence in batch]
        self._order = list(state.queues.running)
        waiting = state.queues.waiting
        self._is_alone = state.queues.num_running == len(batch) and not waiting
        # Who waits for blocks starts sooner if the cache comes to hold some of its tokens.
        may_find = bool(waiting) and waiting[0].blocked_by == "kv_blocks" and state.cache.is_enabled
        self._cache_version = state.cache.version if may_find else None
        self._is_over = False
        self._by_phase: list[list[_Member]] = [[] for _ in range(self._size)]
        self._ends: dict[int, list[_Member]] = {}
        self._issued_at: list[float] = []
        self._first_untold = 0
        self.num_steps = 0
        self.forgotten: list[int] = []
        self.parts: tuple[why.Part, ...] = ()
        for member in self._members:
            self._by_phase[member.start % self._size].append(member)
            self._expect_end(member)
        self._name_parts()

    @property
    def request_ids(self) -> list[str]:
        """Whose sequences run, one for each."""
        return [member.sequence.request.request_id for member in self._members]

    @property
    def context(self) -> int:
        """Tokens of KV that the next iteration reads, its own included."""
        return self._context + self.num_steps * len(self._members)

    def schedule(self, now: float) -> bool:
        """Go on by one iteration; False if its plan would differ by more than positions and blocks: nothing is done."""
        state = self._state
        if self._is_over or now >= self._deadline or not self._is_in_order(now):
            return False
        due = self._by_phase[-self.num_steps % self._size]
        growing = [each for each in due if not each.is_over and self._lacks_block(each)] if due else ()
        if len(growing) > state.pool.num_free:
            return False
        for member in growing:
            table = member.sequence.table
            table.blocks += state.pool.allocate(1)
            table.dirty_from = len(table.blocks)
        if state.queues.policy.watches_service:
            for member in self._members:
                state.queues.policy.on_service(member.group, 1, now)
        if growing and self._planner.has_evicted:
            self._tell()
            self._planner.tell_evicted(now)
        self._issued_at.append(now)
        state.num_iterations += 1
        self.forgotten, state.forget = state.forget, []
        return True

    def update(self, now: float) -> list[Progress]:
        """The iteration is done. Progress of those alone whose answer is over, with their last token."""
        if self._results.watches_time:
            groups = {member.group.number: member.group for member in self._members}
            self._results.note_time((len(self._members), 0, 0), self._issued_at[-1], groups.values(), now)
        step = self.num_steps
        ending = self._ends.pop(step, ())
        if self._state.cache.is_enabled:
            self._fill(step, ending)
        self.num_steps += 1
        progress = [part for member in ending for part in self._end(member, now)] if ending else []
        if len(self._issued_at) == _MOST_UNTOLD:
            self._tell()
        return progress

    def close(self) -> None:
        """Bring everybody up to date."""
        self._tell()
        for member in self._members:
            self._settle(member, self.num_steps)

    # ---- may it go on?

    def _is_in_order(self, now: float) -> bool:
        """Those that run are where they were, and who waits can find no more in the cache."""
        queues = self._state.queues
        if queues.policy.watches_service:
            queues.refresh(now)
            if queues.running != self._order:
                return False
        return self._cache_version is None or self._cache_version == self._state.cache.version

    def _lacks_block(self, member: _Member) -> bool:
        return len(member.sequence.table.blocks) * self._size <= member.start + self.num_steps

    # ---- sequences

    def _expect_end(self, member: _Member) -> None:
        sequence = member.sequence
        known = sequence.num_tokens
        left = sequence.request.max_tokens - known + sequence.num_prompt_tokens
        until = min(left, self._answers.tokens_to_end(sequence.seq_id, known))
        self._ends.setdefault(member.settled + until - 1, []).append(member)

    def _settle(self, member: _Member, steps: int) -> None:
        """It learns of all iterations but those after the first `steps`."""
        count = steps - member.settled
        if count > 0:
            sequence = member.sequence
            sequence.tokens += self._answers.tokens(sequence.seq_id, sequence.num_tokens, count)
            sequence.num_computed += count
            sequence.num_scheduled += count
            member.settled = steps
            sequence.last_iteration = self._first_iteration + steps - 1

    def _fill(self, step: int, ending: Iterable[_Member]) -> None:
        """Share the blocks that iteration `step` has filled, before anybody's answer ends."""
        for member in self._by_phase[-(step + 1) % self._size]:
            if member.is_over:
                continue
            if member in ending:
                self._settle(member, step)
                member.sequence.num_computed += 1
                self._state.cache.keep(member.sequence, None)
                member.sequence.num_computed -= 1
            else:
                self._settle(member, step + 1)
                self._state.cache.keep(member.sequence, None)

    def _end(self, member: _Member, now: float) -> list[Progress]:
        """Take the token that may end it as the plain loop does."""
        sequence = member.sequence
        self._settle(member, self.num_steps - 1)
        start = sequence.num_computed
        (token,) = self._answers.tokens(sequence.seq_id, sequence.num_tokens, 1)
        sequence.num_computed += 1
        sequence.num_scheduled += 1
        sequence.last_iteration = self._first_iteration + self.num_steps - 1
        member.settled = self.num_steps
        self._tell()
        entry = Entry(sequence, start, start + 1, 1, copied=False, incarnation=sequence.incarnation)
        progress = self._results.append(entry, SequenceOutput(sequence.seq_id, (token,)), now)
        if not sequence.is_finished:
            self._expect_end(member)
            return [progress]
        member.is_over = True
        self._members.remove(member)
        self._is_over = not self._is_alone or not self._members
        self._order = list(self._state.queues.running)
        self._name_parts()
        return [progress]

    def _name_parts(self) -> None:
        self.parts = tuple([(each.sequence.seq_id, each.start, 1) for each in self._members])
        self._context = sum([start + 1 for _, start, _ in self.parts])

    # ---- the journal

    def _tell(self) -> None:
        """Write down the iterations scheduled since this was done last."""
        instants = self._issued_at
        if not instants:
            return
        state = self._state
        work = [(seq_id, start + self._first_untold, 1) for seq_id, start, _ in self.parts]
        first = why.Scheduled.of(instants[0], state.epoch, state.num_iterations - len(instants), work)
        state.journal.repeat(first, instants)
        self._first_untold += len(instants)
        self._issued_at = []


def begin(
    state: SchedulerState, planner: Planner, results: Results, answers: Answers, deadline: float = inf
) -> Leap | None:
    """A leap from here, if the next plan is that of the last iteration but for positions and blocks."""
    # What spills and what is written to disk goes out with plans, and each of them may evict.
    batch = None if state.tiers.is_enabled else _batch(state)
    if batch is None or not planner.keeps_waiting(len(batch)):
        return None
    return Leap(state, planner, results, answers, deadline, batch)


def _batch(state: SchedulerState) -> list[tuple[SequenceGroup, Sequence]] | None:
    """Those that the next plan runs, if each of them decodes as it did in the last one. Others may lack a slot."""
    running, last, most = state.queues.running, state.num_iterations - 1, state.config.max_batch_size
    if not running or state.in_flight or state.config.plans_in_flight != 1 or _pads(running):
        return None
    batch: list[tuple[SequenceGroup, Sequence]] = []
    for group in running:
        for sequence in group.sequences:
            if sequence.is_finished:
                continue
            if len(batch) == most:
                return batch
            if not _goes_on(sequence, last) or (len(group.sequences) > 1 and _copies(sequence, state)):
                return None
            batch.append((group, sequence))
    return batch


def _goes_on(sequence: Sequence, last: int) -> bool:
    return (
        sequence.last_iteration == last
        and sequence.num_scheduled == len(sequence.tokens) - 1
        and sequence.is_known
        and sequence.request.pooling is None
        and sequence.request.beams is None
    )


def _copies(sequence: Sequence, state: SchedulerState) -> bool:
    """The block that it writes into is read by a branch that has had no slot since the fork."""
    blocks, entry = sequence.table.blocks, sequence.num_scheduled // state.config.block_size
    return entry < len(blocks) and not state.pool.is_writable(blocks[entry])


def _pads(running: list[SequenceGroup]) -> bool:
    """Best effort runs beside others, by what they leave."""
    classes = running[0].request.service_class, running[-1].request.service_class
    return classes[0] < ServiceClass.BESTEFFORT == classes[1]
