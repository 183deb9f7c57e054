"""The invariants of DESIGN.md §4, for tests and debug mode; an assertion names the broken one."""

from __future__ import annotations

from orcinus.core.kv.table import blocks_for
from orcinus.core.sequence import Sequence, SequenceState
from orcinus.core.state import SchedulerState
from orcinus.core.victims import MAX_PREEMPTIONS


def check(state: SchedulerState) -> None:
    """All of them, in O(everything)."""
    queues, config = state.queues, state.config
    groups = list(queues.groups.values())
    state.pool.check(sequence.table.blocks for group in groups for sequence in group.sequences)
    state.tiers.check()
    assert queues.num_running == sum(len(group.live) for group in queues.running)
    assert len(queues.waiting) + len(queues.running) == len(groups), "a group is in no queue, or in two"
    for queue in (queues.waiting, queues.running):
        orders = [group.order for group in queue]
        assert orders == sorted(orders), "a queue is unsorted"
    for group in groups:
        owners = [sequence for sequence in group.sequences if sequence.table.blocks]
        assert all(sequence.state is SequenceState.RUNNING for sequence in owners)
        assert group.num_preemptions <= MAX_PREEMPTIONS, "a request was preempted too often"
        for sequence in group.live:
            _check_sequence(sequence, state)
    promised = sum(group.pinned_blocks for group in queues.running)
    assert promised == sum(group.pinned_blocks for group in groups) == state.pinned_blocks <= config.num_blocks


def _check_sequence(sequence: Sequence, state: SchedulerState) -> None:
    known = sequence.num_tokens + sequence.num_pending
    assert 0 <= sequence.num_computed <= sequence.num_scheduled <= known
    assert len(sequence.table.blocks) >= blocks_for(sequence.num_scheduled, state.config.block_size)
    assert sequence.in_flight <= state.config.pieces_in_flight
