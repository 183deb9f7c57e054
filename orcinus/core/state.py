"""What the parts of the scheduler share: the queues, the pool, the plans in flight; and how a sequence lets go."""

from __future__ import annotations

from collections import deque

import msgspec

from orcinus.core import journal as why
from orcinus.core.admission import ADMISSIONS, worst_case
from orcinus.core.config import SchedulerConfig
from orcinus.core.draft import PlanInFlight
from orcinus.core.kv.keys import BlockKeys
from orcinus.core.kv.pool import BlockPool
from orcinus.core.kv.prefix import PrefixCache
from orcinus.core.kv.radix import RadixTree
from orcinus.core.kv.tiers import OnDisk, Tiers
from orcinus.core.pace import Pace
from orcinus.core.policy import POLICIES, Facts, RequestView
from orcinus.core.progress import Progress
from orcinus.core.queues import Queues
from orcinus.core.request import FinishReason
from orcinus.core.sequence import Sequence, SequenceGroup, SequenceState
from orcinus.core.victims import MAX_PREEMPTIONS


class SchedulerState:
    """Everything that decisions are made from."""

    def __init__(self, config: SchedulerConfig, journal: why.Journal, on_disk: OnDisk) -> None:
        self.config = config
        self.journal = journal
        tree = RadixTree(config.num_blocks, config.block_size)
        self.tiers = Tiers(config.tiers, BlockKeys(tree, on_disk.seed), on_disk)
        self.pool = BlockPool(config.num_blocks, tree, self.tiers.spill)
        self.cache = PrefixCache(
            self.pool, tree, self.tiers, config.block_size, is_enabled=config.enable_prefix_caching
        )
        self.pace = Pace()
        self.queues = Queues(POLICIES[config.policy](self._facts()))
        self.admission = ADMISSIONS[config.admission](self.pool, self.cache, config.block_size)
        self.in_flight: deque[PlanInFlight] = deque()
        self.epoch = 0
        self.num_iterations = 0
        # Somebody of that class has come, so that it matters how long iterations take.
        self.has_realtime = False
        # Blocks promised to running groups that are pinned.
        self.pinned_blocks = 0
        # For the next plan: sequences that the workers hold and may forget.
        self.forget: list[int] = []

    def group_of(self, sequence: Sequence) -> SequenceGroup:
        """Its group, which is alive."""
        return self.queues.groups[sequence.request.request_id]

    def can_pin(self, group: SequenceGroup) -> bool:
        """Whether `group`, if it was preempted too often, can be promised that it never will be again."""
        if group.num_preemptions < MAX_PREEMPTIONS:
            return True
        return self.pinned_blocks + worst_case(group, self.config.block_size) <= self.config.num_blocks

    def start(self, group: SequenceGroup, now: float) -> None:
        """It leaves the queue."""
        self.queues.start(group, now)
        self.admission.enter(group)
        if group.num_preemptions >= MAX_PREEMPTIONS:
            group.pinned_blocks = worst_case(group, self.config.block_size)
            self.pinned_blocks += group.pinned_blocks
        for sequence in group.live:
            sequence.state = SequenceState.RUNNING
            self.queues.num_running += 1
        group.blocked_by = ""
        waited = now - group.request.arrived_at
        self.journal.write(why.Admitted(now, group.request.request_id, waited, group.reserved))

    def stop(self, group: SequenceGroup) -> None:
        """Back to the queue, KV dropped."""
        for sequence in group.live:
            self.cache.leave(sequence)
            self.release(sequence)
            sequence.drop_kv()
            sequence.state = SequenceState.PREEMPTED
            self.queues.num_running -= 1
        if group.beams is not None:
            group.beams.withdraw()
        self._return_promises(group)
        self.queues.stop(group)

    def end(self, group: SequenceGroup, sequence: Sequence, reason: FinishReason, now: float) -> Progress:
        """One answer is over; with the last one its group leaves."""
        was_running = sequence.state is SequenceState.RUNNING
        self.release(sequence)
        sequence.state = SequenceState.FINISHED
        sequence.finish_reason = reason
        self.queues.num_running -= was_running
        request_id = group.request.request_id
        self.journal.write(why.Finished(now, request_id, sequence.index, str(reason), sequence.num_generated))
        if not group.live:
            self.queues.leave(group, was_running=was_running)
            self._return_promises(group)
        return Progress(request_id, sequence.index, finish_reason=reason)

    def end_all(self, group: SequenceGroup, code: str, message: str, now: float) -> list[Progress]:
        """End what is left of a request with an error."""
        return [
            msgspec.structs.replace(end, error_code=code, error_message=message)
            for end in self.end_each(group, group.live, FinishReason.ERROR, now)
        ]

    def end_each(
        self, group: SequenceGroup, ending: list[Sequence], reason: FinishReason, now: float
    ) -> list[Progress]:
        """End several sequences. Of more beams than answers only so many are told."""
        ends = [self.end(group, sequence, reason, now) for sequence in ending]
        return [end for end in ends if end.index < group.request.params.n]

    def release(self, sequence: Sequence) -> None:
        """Give the blocks back; those that a plan in flight may touch stay in limbo until it is collected."""
        self.restate(sequence)
        if sequence.in_flight:
            plan = self.newest_plan(sequence)
            self.pool.pin(sequence.table.blocks)
            plan.pins += sequence.table.blocks
        sequence.table.clear(self.pool)

    def restate(self, sequence: Sequence) -> None:
        """The workers may forget what they know of it: should it run once more, they are told in full."""
        if sequence.is_known:
            self.forget.append(sequence.seq_id)
            sequence.is_known = False

    def newest_plan(self, sequence: Sequence) -> PlanInFlight:
        """The last one in flight that has work for `sequence`."""
        return self.in_flight[sequence.last_iteration - self.in_flight[0].iteration]

    def take(self, sequence: Sequence, found: list[int], now: float) -> None:
        """`sequence` begins behind what it found in the cache."""
        self.cache.take(sequence, found)
        self.journal.write(why.CacheHit(now, sequence.request.request_id, sequence.index, sequence.num_computed))

    def fork(self, group: SequenceGroup, leader: Sequence, now: float) -> None:
        """Branches take over all of the prompt but its last token, which each runs itself to draw its own sample."""
        shared = leader.num_prompt_tokens - 1
        for branch in group.live:
            if branch is leader or branch.is_forked or branch.num_scheduled > 0 or not group.goes_on(branch):
                continue
            branch.is_forked = True
            found = self.cache.find(branch)
            if len(found) * self.config.block_size > shared:
                # Some of its answer, from before a preemption.
                self.take(branch, found, now)
                continue
            self.cache.fork(leader, branch, shared)
            self.journal.write(why.Forked(now, group.request.request_id, branch.index, len(branch.table.blocks)))

    def _return_promises(self, group: SequenceGroup) -> None:
        self.admission.leave(group)
        self.pinned_blocks -= group.pinned_blocks
        group.pinned_blocks = 0

    def _facts(self) -> Facts:
        size = self.config.block_size

        def leader(view: RequestView) -> Sequence:
            sequence = self.queues.groups[view.request.request_id].leader()
            assert sequence is not None
            return sequence

        return Facts(
            pace=self.pace,
            missing_tokens=lambda view: (each := leader(view)).num_tokens - len(self.cache.find(each)) * size,
            matched_blocks=lambda view: len(self.cache.find(leader(view))),
            cache_version=lambda: self.cache.version,
            max_wait_seconds=self.config.max_wait_seconds,
            max_overtakes=self.config.max_overtakes,
        )
