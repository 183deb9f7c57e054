"""The beams of a request as sequences: what `Beams` chose is carried out by fork; its answers are told at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Several

from orcinus.core import journal as why
from orcinus.core.beams import Beams, Move
from orcinus.core.draft import Entry
from orcinus.core.plan import SequenceOutput
from orcinus.core.progress import Progress
from orcinus.core.request import FinishReason
from orcinus.core.sequence import Sequence, SequenceGroup
from orcinus.core.state import SchedulerState


def take(state: SchedulerState, entry: Entry, output: SequenceOutput, now: float) -> list[Progress]:
    """The likeliest continuations of one beam came; with the last beam's, the next ones are chosen.

    Of a beam that lost its KV meanwhile they don't count. They will be the same once it has it again.
    """
    sequence = entry.sequence
    group = state.group_of(sequence)
    beams = group.beams
    assert beams is not None
    if not entry.samples or not entry.is_current:
        return []
    beams.offer(sequence.index, output.tokens[0], output.logprobs[0])
    if not beams.is_complete:
        return []
    moves = beams.choose()
    if not moves:
        return _end(state, group, beams, now)
    _carry_out(state, group, moves)
    state.journal.write(_chosen(state, group, moves, beams, now))
    return []


def blocks_needed(state: SchedulerState, gang: list[Sequence]) -> int:
    """Free blocks that all of them take for a token each.

    Of those who share a block alone, the last one to write needs no copy.
    """
    size = state.config.block_size
    needed = 0
    writers: Counter[int] = Counter()
    for each in gang:
        needed += each.table.needed(each.num_scheduled, each.num_scheduled + 1, size, state.pool)
        writers.update(each.table.blocks[each.num_scheduled // size :][:1])
    shared = [block for block, count in writers.items() if count == state.pool.references(block) > 1]
    return needed - sum(not state.cache.holds(block) for block in shared)


def _carry_out(state: SchedulerState, group: SequenceGroup, moves: Several[Move]) -> None:
    """First the beams without continuation let go, then others fork, and then those that stay go on."""
    going = {move.parent for move in moves}
    for sequence in group.sequences:
        if sequence.index not in going:
            state.release(sequence)
            sequence.drop_kv()
    for move in moves:
        if move.slot != move.parent:
            _fork(state, group.sequences[move.parent], group.sequences[move.slot], move.token)
    for move in moves:
        sequence = group.sequences[move.slot]
        if move.slot == move.parent:
            sequence.tokens.append(move.token)
        if not move.is_sampled:
            state.restate(sequence)


def _fork(state: SchedulerState, parent: Sequence, child: Sequence, token: int) -> None:
    """`child` goes on behind the tokens of `parent`, in the same blocks: whoever writes first into one copies it."""
    state.cache.fork(parent, child, parent.num_computed)
    child.tokens = parent.tokens[:]
    child.tokens.append(token)
    child.is_forked = True


def _chosen(
    state: SchedulerState, group: SequenceGroup, moves: Several[Move], beams: Beams, now: float
) -> why.BeamsChosen:
    parents = dict.fromkeys(range(len(group.sequences)), -1) | {move.slot: move.parent for move in moves}
    blocks = [block for sequence in group.sequences for block in sequence.table.blocks]
    return why.BeamsChosen(
        now, group.request.request_id, tuple(parents.values()), len(beams.answers), len(set(blocks)), len(blocks)
    )


def _end(state: SchedulerState, group: SequenceGroup, beams: Beams, now: float) -> list[Progress]:
    """All beams let go, and the best answers are told."""
    request = group.request
    wanted = request.params.n
    if len(beams.answers) < wanted:
        message = f"the search found {len(beams.answers)} answers that end; {wanted} were asked for"
        return state.end_all(group, "no_candidates", message, now)
    progress: list[Progress] = []
    found = [answer.reason for answer in beams.answers]
    for sequence in group.sequences:
        # A search among very few tokens finds fewer answers than it has beams.
        reason = found[sequence.index] if sequence.index < len(found) else FinishReason.ABORT
        if sequence.index < len(found):
            del sequence.tokens[sequence.num_prompt_tokens :]
            sequence.tokens.extend(beams.answers[sequence.index].read()[0])
        state.end(group, sequence, reason, now)
        if sequence.index < wanted:
            progress.append(_told(group, beams, sequence.index))
    return progress


def _told(group: SequenceGroup, beams: Beams, index: int) -> Progress:
    answer = beams.answers[index]
    tokens, logprobs = answer.read()
    return Progress(
        group.request.request_id,
        index,
        tokens,
        logprobs if group.request.params.logprobs is not None else (),
        finish_reason=answer.reason,
        stop_token=tokens[-1] if answer.reason is FinishReason.STOP else None,
        cached_tokens=group.cached_tokens or 0,
    )
