"""The invariants of RELIABILITY.md §5 that core alone can break, checked from outside after every event.

The numbers in the messages are those of docs/correctness.md. Formulas are written down here once more, not imported:
what core believes of itself proves nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Several
from typing import TYPE_CHECKING

from closed_form import owner_state, states_of

from orcinus.core import journal as why
from orcinus.core.config import SchedulerConfig
from orcinus.core.plan import IterationPlan
from orcinus.core.request import Request, unpack_tokens
from orcinus.core.sequence import Sequence, SequenceGroup, SequenceState

if TYPE_CHECKING:
    from sim_clients import Client
    from sim_world import World

W, R, P, F = SequenceState.WAITING, SequenceState.RUNNING, SequenceState.PREEMPTED, SequenceState.FINISHED
# From one event to the next. A preempted one may start again and be preempted again within one pass.
LEGAL = {W: {W, R, P, F}, R: {R, P, F}, P: {P, R, F}, F: {F}}
# I17: after so many a request is never preempted again.
MAX_PREEMPTIONS = 3


def ceil_div(tokens: int, size: int) -> int:
    """Blocks that hold so many tokens."""
    return (tokens + size - 1) // size


def width_of(request: Request) -> int:
    """Sequences that run at a time: beams or answers."""
    return request.params.n if request.beams is None else request.beams.width


def worst_case(request: Request, config: SchedulerConfig) -> int:
    """Blocks that it can come to need."""
    return width_of(request) * ceil_div(len(request.prompt) // 4 + request.max_tokens, config.block_size)


def is_impossible(request: Request, config: SchedulerConfig) -> bool:
    """Alone in an empty engine it could not run to its end (I19)."""
    # Beams go together: in one plan.
    too_many = width_of(request) > config.max_batch_size * (1 if request.beams else config.num_stages)
    whole = request.pooling is not None and request.pooling.whole
    too_long = whole and len(request.prompt) // 4 > config.max_batch_tokens
    return worst_case(request, config) > config.num_blocks or too_many or too_long


# ---- the state


def check_state(world: World) -> None:
    """After every event."""
    world.scheduler.check()
    _check_blocks(world)
    _check_groups(world)
    _check_cache(world)


def _check_blocks(world: World) -> None:
    pool = world.scheduler.pool
    named = Counter(b for g in world.scheduler.groups() for s in g.sequences for b in s.table.blocks)
    references = [pool.references(block) for block in range(world.config.num_blocks)]
    assert references == [named[block] for block in range(world.config.num_blocks)], "I2: a wrong reference count"
    states = pool.num_free + pool.num_limbo + sum(map(bool, references))
    assert states == world.config.num_blocks, "I1: blocks were lost or invented"
    assert world.in_flight or pool.num_limbo == 0, "I7: blocks wait for a plan, and none is in flight"
    idle = {*pool._free, *pool._cached}
    assert len(idle) == pool.num_free, "I1: a block is free twice"
    for out in world.in_flight:
        for blocks in out.touched.values():
            assert not blocks & idle, "I7: a block could be handed out that a plan may touch"


def _check_groups(world: World) -> None:
    scheduler = world.scheduler
    groups = scheduler.groups()
    waiting, running = set(map(id, scheduler.waiting)), set(map(id, scheduler.running))
    assert len(waiting) + len(running) == len(groups), "I10: a request is in no list, or in two"
    assert waiting | running == set(map(id, groups)), "I10: a list holds what isn't alive"
    num_open = sum(client.is_open for client in world.clients.values())
    assert num_open == len(groups), "I10: core knows other requests than the clients"
    num_running = 0
    for group in groups:
        num_running += _check_group(world, group, id(group) in running)
    assert num_running == scheduler.num_running, "I10: core counts other sequences than run"
    # Where somebody may come before those that run, these pause.
    is_plain = world.config.policy == "fcfs" and len({group.request.service_class for group in groups}) < 2
    most = world.config.max_batch_size * world.config.num_stages
    assert not is_plain or num_running <= most, "I8: too many run"
    if world.config.admission == "reserve":
        promised = sum(worst_case(group.request, world.config) for group in scheduler.running)
        assert promised <= world.config.num_blocks, "I19: more is promised than there is"


def _check_group(world: World, group: SequenceGroup, is_running: bool) -> int:
    """The number of its sequences that run."""
    client, config, count = world.clients[group.request.request_id], world.config, 0
    most = 0 if config.admission == "reserve" else MAX_PREEMPTIONS
    assert group.num_preemptions <= most, "I17: preempted too often"
    if client.beams:
        _check_beams(group, client)
    for sequence in group.sequences:
        # A search has more beams than answers, and ends all of them together.
        answer = client.answers[min(sequence.index, len(client.answers) - 1)]
        assert sequence.is_finished == (answer.finish_reason is not None), "I11: core and client disagree on the end"
        before = world.states.get(sequence.seq_id, W)
        # Waiting and ended at once is a resumed answer that was complete.
        assert sequence.state in LEGAL[before], f"I10: {before} became {sequence.state}"
        world.states[sequence.seq_id] = sequence.state
        if not sequence.is_finished:
            assert (sequence.state is R) == is_running, "I10: a list and a state disagree"
            is_told = client.beams or sequence.num_generated == len(answer.tokens)
            assert is_told, "I8: core and client count other tokens"
            count += is_running
        _check_table(sequence, config)
    return count


def _check_beams(group: SequenceGroup, client: Client) -> None:
    """I12: the beams are those of a plain search, after as many tokens; none runs ahead."""
    first = len(client.prompt)
    beams = [tuple(s.tokens[first:]) for s in group.live if group.beams is not None and group.beams.runs(s.index)]
    assert len({len(beam) for beam in beams}) <= 1, "I12: some beams are ahead of others"
    assert not beams or sorted(beams) == sorted(client.beams[len(beams[0])]), "I12: other beams than a plain search"
    assert all(s.in_flight <= 1 for s in group.sequences), "I8: two plans share a beam"


def _check_table(sequence: Sequence, config: SchedulerConfig) -> None:
    num_blocks, size = len(sequence.table.blocks), config.block_size
    if sequence.state is not R:
        assert num_blocks == 0, "I15: who doesn't run owns blocks"
        return
    known = sequence.num_tokens + sequence.num_pending
    assert 0 <= sequence.num_computed <= sequence.num_scheduled <= known, "I8: more is scheduled than is known"
    assert sequence.num_generated + sequence.num_pending <= max(1, sequence.request.max_tokens), "I8: too many tokens"
    pieces = config.num_stages if config.even_plans else 0
    assert 0 <= sequence.in_flight <= max(1 + config.lookahead, pieces), "I8: too many plans share a sequence"
    assert num_blocks >= ceil_div(sequence.num_scheduled, size), "I4: the table is too short"
    # An abandoned look-ahead may have left a block for one token that was lost.
    assert num_blocks <= ceil_div(known + 1, size), "I4: a block past the tokens"
    assert len(set(sequence.table.blocks)) == num_blocks, "I4: a table names a block twice"


def _check_cache(world: World) -> None:
    """Each block that can be found is full, and holds the KV of just the tokens and the owner it is found by."""
    size, slots, count = world.config.block_size, world.worker.slots, 0
    for namespace, packed, blocks in world.scheduler.cache.paths():
        assert world.config.enable_prefix_caching, "blocks are shared, and nobody allowed it"
        states = world.path_states((tuple(namespace), bytes(packed)))
        count += len(blocks)
        for place, block in enumerate(blocks):
            right = states[place * size : (place + 1) * size]
            assert slots[block] == right, f"I5, I6, I28: block {block} is found by other tokens than it holds"
    # Paths share their beginnings.
    assert count >= world.scheduler.pool.num_cached, "I1: a cached block can't be found"


def states_of_path(path: tuple[tuple[str, ...], bytes]) -> list[int]:
    """The KV that a path of the tree stands for."""
    owner, packed = path
    return states_of(list(unpack_tokens(packed)), owner_state(*owner))


def check_quiescence(world: World) -> None:
    """Nothing is left (I15), and the worker was told so."""
    scheduler, pool = world.scheduler, world.scheduler.pool
    assert all(not client.is_open for client in world.clients.values()), "I11: an answer never ended"
    left = [*scheduler.waiting, *scheduler.running, *scheduler.groups()]
    assert not left, "I15: a list still holds a request"
    assert scheduler.num_running == scheduler.num_in_flight == pool.num_limbo == 0
    assert pool.num_free == world.config.num_blocks, "I15: blocks leaked"
    assert getattr(scheduler.state.admission, "promised", 0) == 0, "I15: a promise was not taken back"
    assert len(world.worker.sequences) <= 1, "I15: the worker was not told to forget what has ended"
    assert len(world.journal) <= 65_536, "I22: the journal grows without bound"


# ---- the journal


def check_journal(world: World, news: list[why.Event]) -> None:
    """What it says is what happened."""
    told, begun = world.to_tell, set[tuple[str, int]]()
    is_calm = not any(isinstance(event, why.Preempted | why.CacheHit) for event in news)
    for event in news:
        match event:
            case why.Finished():
                answers = world.clients[event.request_id].answers
                if event.index >= len(answers):
                    continue
                answer = answers[event.index]
                assert event.reason == answer.finish_reason, "I13: the journal has another end"
                # What the beams of a search that was cut short had made, nobody has seen.
                is_told = not world.clients[event.request_id].beams or answer.tokens
                assert not is_told or event.generated_tokens == len(answer.tokens), (
                    "I13: the journal counts other tokens"
                )
            case why.Admitted():
                request = world.clients[event.request_id].request
                assert event.waited == event.at - request.arrived_at
                promised = worst_case(request, world.config) if world.config.admission == "reserve" else 0
                assert event.reserved == promised
            case why.Preempted():
                _check_preemption(world, event)
            case why.Scheduled():
                plan = world.in_flight[-1].plan
                work = tuple((work.seq_id, work.start, work.num_tokens) for work in plan.work)
                assert (event.epoch, event.iteration, event.work) == (plan.epoch, plan.iteration, work)
                _note_first_starts(world)
                _check_beginnings(world, work, begun)
                tiers, evicted = world.scheduler.tiers, world.scheduler.pool.num_evicted
                assert world.num_evicted == evicted, "the journal doesn't tell of all that was evicted"
                assert world.num_spilled == tiers.num_spilled + tiers.num_stored, "or of all that went elsewhere"
            case why.CacheHit():
                assert event.tokens > 0
                assert event.tokens % world.config.block_size == 0
                begun.add((event.request_id, event.index))
            case why.Forked():
                begun.add((event.request_id, event.index))
            case why.Restored():
                told["restored"] -= event.blocks
                begun.add((event.request_id, event.index))
            case why.Lost():
                told["lost"] -= 1
            case why.Evicted() | why.Spilled():
                world.num_evicted += event.blocks if isinstance(event, why.Evicted) else 0
                world.num_spilled += event.blocks + event.stored if isinstance(event, why.Spilled) else 0
            case why.Fetched():
                told["restored"] -= event.blocks
            # Whoever gives way later in the same pass changes what was so; or finds what it had blocks to compute in.
            case why.Blocked() if is_calm:
                _check_obstacle(world, event)
    _check_told(world)


def _check_told(world: World) -> None:
    """What was done is in the journal, all of it."""
    told = world.to_tell
    assert not any(told.values()), f"the journal doesn't tell how often: {+told} {-told}"
    world.holding = {s.seq_id for group in world.scheduler.running for s in group.sequences if s.table.blocks}


def _check_beginnings(world: World, work: Several[tuple[int, int, int]], begun: set[tuple[str, int]]) -> None:
    """Who had no KV and doesn't begin at the beginning has found it, and that was told."""
    sequences = world.sequences()
    for seq_id, start, _ in work:
        who = sequences[seq_id].request.request_id, sequences[seq_id].index
        assert not start or seq_id in world.holding or who in begun, "KV came from somewhere, and nobody was told"


def _check_preemption(world: World, event: why.Preempted) -> None:
    """I17: only the elder makes the younger give way, so each is eldest in its turn; or one that gave way too often."""
    counts = world.num_preempted
    counts[event.request_id] += 1
    if world.config.policy != "fcfs" or counts[event.in_favour_of] >= MAX_PREEMPTIONS:
        return
    victim, elder = (world.clients[name].request for name in (event.request_id, event.in_favour_of))
    orders = [(r.service_class, r.arrived_at, world.order[r.request_id]) for r in (elder, victim)]
    assert orders[0] < orders[1], "I17: the younger made the elder give way"


def _check_obstacle(world: World, event: why.Blocked) -> None:
    """Whoever has to wait is told why, and it is so."""
    group = next(g for g in world.scheduler.groups() if g.request.request_id == event.request_id)
    config, live = world.config, group.live
    match event.reason:
        case "in_flight":
            numbers = {sequence.seq_id for sequence in group.sequences}
            assert any(work.seq_id in numbers for out in world.in_flight for work in out.plan.work)
        case "batch_size":
            is_full = bool(world.in_flight) and len(world.in_flight[-1].plan.work) == config.max_batch_size
            assert is_full or world.scheduler.num_running + len(live) > config.max_batch_size * config.num_stages
        case "kv_blocks" if config.admission == "reserve":
            promised = sum(worst_case(other.request, config) for other in world.scheduler.running)
            assert promised + worst_case(group.request, config) > config.num_blocks
        case "kv_blocks" if group.num_preemptions < MAX_PREEMPTIONS:
            needed = sum(ceil_div(sequence.num_tokens + 1, config.block_size) for sequence in live)
            assert needed + world.scheduler.num_running > world.scheduler.pool.num_free
        case "prefix":
            assert config.enable_prefix_caching
            assert any(_can_share(world, group, out.plan) for out in world.in_flight), (
                "I18: waits for what nobody makes"
            )


def _note_first_starts(world: World) -> None:
    """I13: what the first plan of a request didn't compute was cached, whatever it finds when it comes back."""
    sequences = {s.seq_id: s for group in world.scheduler.groups() for s in group.sequences}
    for work in world.in_flight[-1].plan.work:
        sequence = sequences[work.seq_id]
        world.cached.setdefault(sequence.request.request_id, min(work.start, sequence.num_prompt_tokens))


def _can_share(world: World, group: SequenceGroup, plan: IterationPlan) -> bool:
    """Somebody in `plan` has the same owner and, for a block at least, the same beginning."""
    mine, size = world.clients[group.request.request_id], world.config.block_size
    others = {seq_id: world.clients[name] for seq_id, name in world.names.items()}
    return any(
        other.request.pooling is None
        and other.first == mine.first
        and (other.prompt + other.answers[0].tokens)[:size] == (mine.prompt + mine.answers[0].tokens)[:size]
        for work in plan.work
        if (other := others.get(work.seq_id)) is not None
    )
