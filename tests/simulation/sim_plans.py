"""What plans, decisions and results have to be, checked from outside as each comes (docs/correctness.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim_checks import ceil_div
from sim_clients import Client

from orcinus.core.core import Collect, Decision, Expired, Submit
from orcinus.core.plan import NUMERICAL_ERROR, IterationPlan, IterationResult, NewSequence, Output, SwapIn, Work
from orcinus.core.progress import Progress
from orcinus.core.request import FinishReason, ServiceClass, unpack_tokens
from orcinus.core.sequence import Sequence, SequenceGroup

if TYPE_CHECKING:
    from sim_world import World

Due = dict[tuple[str, int], tuple[int, ...]]


# ---- plans


def check_statement(new: NewSequence, client: Client) -> None:
    """The workers are told of a sequence just what its client asked and has got."""
    request, tokens = client.request, list(unpack_tokens(new.tokens))
    if client.beams:
        made = tuple(tokens[len(client.prompt) :])
        assert tokens[: len(client.prompt)] == client.prompt, "I12: a beam is stated wrongly"
        assert made in client.beams[len(made)], "I12: a beam is stated wrongly"
        assert new.num_candidates >= request.beams.width + len(request.end_token_ids), "a search has too little choice"
    else:
        assert tokens == client.prompt + client.answers[new.index].tokens, "I12: a sequence is stated wrongly"
    assert new.num_prompt_tokens == len(client.prompt)
    assert (new.params, new.pooling, new.adapter) == (request.params, request.pooling, request.adapter)
    assert new.end_token_ids == tuple(sorted(request.end_token_ids))


def check_plan(
    world: World, plan: IterationPlan, sequences: dict[int, Sequence], before: Before
) -> dict[int, set[int]]:
    """A plan that has just been made; the blocks that it touches, by sequence."""
    config = world.config
    assert plan.epoch == world.scheduler.epoch
    assert plan.work, "I18: an empty plan"
    assert sum(work.num_tokens for work in plan.work) <= config.max_batch_tokens, "I8: the token budget is exceeded"
    assert len(plan.work) <= config.max_batch_size, "I8: too many sequences"
    assert len({work.seq_id for work in plan.work}) == len(plan.work), "I8: a sequence is twice in one plan"
    assert len(world.in_flight) < config.num_stages + config.lookahead, "I8: too many plans in flight"
    targets = {copy.target: copy.source for copy in plan.copies}
    assert len(targets) == len(plan.copies) <= len(plan.work), "I3: more than one copy a sequence"
    touched = {}
    for work in plan.work:
        assert work.seq_id in sequences, "I14: work for what has ended"
        touched[work.seq_id] = _check_work(world, sequences[work.seq_id], work, targets)
        _check_new_blocks(world, sequences[work.seq_id], before)
    assert set(targets) <= set().union(*touched.values()), "a copy for nobody"
    return touched


def _check_work(world: World, sequence: Sequence, work: Work, targets: dict[int, int]) -> set[int]:
    client = world.clients[sequence.request.request_id]
    answer = client.answers[min(sequence.index, len(client.answers) - 1)]
    assert answer.finish_reason is None, "I14: work for what has ended"
    deadline = client.request.deadline
    assert deadline is None or deadline > world.now, "I21: work for a request whose deadline has passed"
    assert work.num_tokens > 0
    _check_output(sequence, work, world.config.lookahead)
    size, end, blocks = world.config.block_size, work.start + work.num_tokens, sequence.table.blocks
    assert len(blocks) * size >= end, "I4: the table is too short"
    read = {*blocks, *(targets[block] for block in blocks if block in targets)}
    for block in blocks[work.start // size : ceil_div(end, size)]:
        assert world.scheduler.pool.references(block) == 1, "I3: a shared block is written"
        assert not world.scheduler.cache.holds(block), "I3: a block that others can find is written"
    return read


def _check_new_blocks(world: World, sequence: Sequence, before: Before) -> None:
    """I7: what a sequence gets to write is touched by no plan in flight."""
    new = [block for block in sequence.table.blocks if block not in before.tables.get(sequence.seq_id, ())]
    new = [
        block for block in new if world.scheduler.pool.references(block) == 1 and not world.scheduler.cache.holds(block)
    ]
    for out in world.in_flight if new else ():
        assert not any(block in held for held in out.touched.values() for block in new), (
            "I7: a block is taken too early"
        )


def _check_output(sequence: Sequence, work: Work, lookahead: int) -> None:
    """A sample is asked for when no known token is missing any more, and then only."""
    is_last = work.start + work.num_tokens == sequence.num_tokens + sequence.num_pending - (
        Output.SAMPLE in work.output
    )
    wanted = Output.POOLED if sequence.request.pooling is not None else Output.SAMPLE
    if wanted is Output.SAMPLE:
        assert not is_last or Output.SAMPLE in work.output, "I18: the last token runs for nothing"
    prompt_logprobs = Output.PROMPT_LOGPROBS in work.output
    assert sequence.num_pending <= 1 + lookahead, "I8: looks farther ahead than it may"
    assert not prompt_logprobs or sequence.request.params.prompt_logprobs is not None


# ---- decisions


@dataclass(slots=True)
class Before:
    """What is compared with what comes after a decision."""

    waiting: list[SequenceGroup]
    num_preempted: int
    num_in_flight: int
    gangs: list[set[int]]
    tables: dict[int, set[int]]

    @classmethod
    def of(cls, world: World) -> Before:
        """Now."""
        scheduler = world.scheduler
        tables = {s.seq_id: set(s.table.blocks) for group in scheduler.running for s in group.sequences}
        gangs = [beams for group in scheduler.running if (beams := gang_of(group))]
        return cls(list(scheduler.waiting), world.journal.counts["Preempted"], len(world.in_flight), gangs, tables)


def gang_of(group: SequenceGroup) -> set[int]:
    """The beams of a search, if each of them lacks its next token and nothing else."""
    beams = [] if group.request.beams is None else [s for s in group.live if s.table.blocks]
    is_ready = all(s.num_computed == s.num_tokens - 1 and not s.in_flight for s in beams)
    return {s.seq_id for s in beams} if is_ready else set()


def check_decision(world: World, before: Before, decision: Decision) -> None:
    """Nobody was overtaken, and nobody stood still who could have run."""
    if isinstance(decision, Expired):
        return
    has_room = before.num_in_flight < world.config.num_stages + world.config.lookahead
    if isinstance(decision, Collect):
        assert decision.has_room == has_room
    late = [g.request.deadline for g in world.scheduler.groups() if (g.request.deadline or world.now + 1) <= world.now]
    assert not late, "I21: a deadline has passed, and nobody was told"
    _check_overtaking(world, before)
    if isinstance(decision, Submit):
        _check_gangs(world, decision.plan, before.gangs)
        _check_reason(world, before)
    if has_room and world.journal.counts["Preempted"] == before.num_preempted:
        plan = decision.plan if isinstance(decision, Submit) else None
        _check_nobody_idles(world, plan, before)


def _check_reason(world: World, before: Before) -> None:
    """Who is first in line knows why it waits; but if preempted just now, or behind what can't be cut."""
    head = next(iter(world.scheduler.waiting), None)
    if head is None or world.journal.counts["Preempted"] > before.num_preempted:
        return
    assert head.blocked_by or any(g.request.is_whole for g in world.scheduler.running), "somebody waits, and isn't told"


def _check_gangs(world: World, plan: IterationPlan, gangs: list[set[int]]) -> None:
    """Beams go together or not at all; but for those that were preempted in this very pass and begin anew."""
    planned, sequences = {work.seq_id for work in plan.work}, world.sequences()
    for gang in gangs:
        still = all(sequences[seq_id].num_computed == sequences[seq_id].num_tokens - 1 for seq_id in gang)
        assert not still or gang <= planned or not gang & planned, "I18: beams don't go together"


def _check_overtaking(world: World, before: Before) -> None:
    """I16: who starts leaves nobody behind that comes before it; under other policies, nobody of a higher class."""
    left = world.scheduler.waiting
    still = set(map(id, left))
    for starter in (group for group in before.waiting if id(group) not in still):
        for group in left:
            assert service_order(world, starter) <= service_order(world, group), "I16: a newcomer overtook"


def service_order(world: World, group: SequenceGroup) -> tuple[object, ...]:
    """Who comes first. What lies between class and arrival is the policy's: its own tests say whether it is right."""
    request = group.request
    if world.config.policy != "fcfs":
        return (request.service_class,)
    return (request.service_class, request.arrived_at, world.order[request.request_id])


def _check_nobody_idles(world: World, plan: IterationPlan | None, before: Before) -> None:
    """I18: a decoding sequence needs a slot and at most one block. If both are left over, it should have run.

    But for those that got their first tokens, a fork's, in this very pass, and best effort, which gets what is left.
    """
    config, scheduler = world.config, world.scheduler
    planned = {work.seq_id for work in plan.work} if plan else set[int]()
    if len(planned) == config.max_batch_size or scheduler.pool.num_free == 0 or _has_its_share(world, plan, before):
        return
    for group in scheduler.running:
        # Beams need a slot and a block each, all at once.
        width = len(group.live) if group.request.beams is not None else 1
        if config.max_batch_size - len(planned) < width or scheduler.pool.num_free < width:
            continue
        for sequence in group.live if group.request.service_class < ServiceClass.BESTEFFORT else ():
            is_old = bool(before.tables.get(sequence.seq_id))
            # What is read from disk may turn out to be lost.
            most = 0 if sequence.reads_disk or group.beams is not None else config.lookahead
            may = is_old and sequence.in_flight <= most and sequence.seq_id not in planned
            more = sequence.request.pooling is None and (
                sequence.num_generated + sequence.num_pending < sequence.request.max_tokens
            )
            assert not (may and more and sequence.is_decoding), "I18: a decoding sequence stands still"


def _has_its_share(world: World, plan: IterationPlan | None, before: Before) -> bool:
    """As many decode in it as in each plan of a full pipeline, or in each that is still to come."""
    config = world.config
    if plan is None or not config.even_plans or config.num_stages == 1:
        return False
    planned = {work.seq_id for work in plan.work}
    here = [work for work in plan.work if work.start and work.num_tokens == 1]
    elsewhere = [
        sequence
        for group in world.scheduler.running
        for sequence in group.live
        if sequence.is_decoding and sequence.seq_id not in planned and before.tables.get(sequence.seq_id)
        if sequence.num_generated + sequence.num_pending < sequence.request.max_tokens
    ]
    ready = len(here) + sum(sequence.in_flight <= config.lookahead for sequence in elsewhere)
    free = config.num_stages + config.lookahead - before.num_in_flight
    return len(here) >= min(ceil_div(len(here) + len(elsewhere), config.num_stages), ceil_div(ready, free))


# ---- results


def due_tokens(world: World, result: IterationResult) -> Due:
    """I9: the sampled tokens that have to be delivered: of whoever lives and didn't fail, and doesn't search."""
    sequences = world.sequences()
    failed = {sequences[f.seq_id].request.request_id for f in result.failures if f.seq_id in sequences}
    due: Due = {}
    for output in result.outputs:
        sequence = sequences.get(output.seq_id)
        if sequence is None or sequence.is_finished or sequence.request.beams is not None:
            continue
        if sequence.request.request_id not in failed:
            due[sequence.request.request_id, sequence.index] = output.tokens
    return due


def check_ledger(progress: list[Progress], due: Due) -> None:
    """What the model made is delivered, but to those that ended: nothing is lost, nothing is invented."""
    got = {(p.request_id, p.index): p.tokens for p in progress if p.finish_reason is not FinishReason.ERROR}
    missing = {key: tokens for key, tokens in due.items() if got.get(key) != tokens}
    assert not missing, "I9: tokens were made and not delivered"


def count_in_vain(world: World, plan: IterationPlan, result: IterationResult) -> int:
    """Sequences whose KV could not be read from disk, and that still want it."""
    sequences, lost = world.sequences(), set(result.lost)
    reading = {swap.seq_id for swap in plan.swaps if isinstance(swap, SwapIn) and (swap.slot, swap.generation) in lost}
    return sum(seq_id in sequences and sequences[seq_id].reads_disk for seq_id in reading)


def doubtful_blocks(world: World, result: IterationResult) -> list[tuple[Sequence, list[int]]]:
    """Blocks that requests which fail now have computed; or found, where their KV isn't finite."""
    sequences = world.sequences()
    doubtful = []
    for failure in result.failures:
        failed = sequences.get(failure.seq_id)
        group = next((g for g in world.scheduler.groups() if failed in g.live), None)
        for sequence in group.live if group else ():
            found = 0 if failure.code == NUMERICAL_ERROR else sequence.num_found_blocks
            doubtful.append((sequence, list(sequence.table.blocks[found:])))
    return doubtful


def check_failures(world: World, doubtful: list[tuple[Sequence, list[int]]]) -> None:
    """I6: what a failed request made is never found. Another of its answers may have ended well just before."""
    for sequence, blocks in doubtful:
        assert sequence.is_finished, "I11: half of a failed request lives on"
        if sequence.finish_reason is FinishReason.ERROR:
            assert not any(map(world.scheduler.cache.holds, blocks)), "I6: a failed request's KV is shared"
