"""A batch that is moved on is the one that `pack` lays out anew, and what can't be moved on isn't."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orcinus.core.plan import FED_BACK, BlockDelta, IterationPlan, NewSequence, Output, Work
from orcinus.core.request import SamplingParams, pack_tokens
from orcinus.worker.pack import Packed, pack
from orcinus.worker.sequences import Sequences
from orcinus.worker.steady import Steady

BLOCK = 16


def fields(packed: Packed) -> list[list[int]]:
    batch = packed.batch
    tensors = batch.query_starts, batch.context_lengths, batch.block_tables, batch.slots, batch.positions
    return [tensor.tolist() for tensor in (packed.tokens, packed.rows, *tensors)] + [packed.samples]


def learned(lengths: list[int]) -> tuple[Sequences, list[int]]:
    """Sequences of so many tokens, with blocks for all of them; and the first free block."""
    sequences, block = Sequences(max_blocks=16, num_slots=4), 0
    for seq_id, length in enumerate(lengths):
        blocks = range(block, block := block + -(-length // BLOCK))
        tokens, params = pack_tokens(range(length)), SamplingParams(max_tokens=99, seed=0)
        new = NewSequence(seq_id, 0, length, tokens, pack_tokens(blocks), params, ())
        sequences.apply(IterationPlan(0, 0, (), (new,)))
    return sequences, block


# Who works (by bit), and how many tokens each samples before the next iteration's plan is made.
ITERATIONS = st.lists(st.tuples(st.integers(1, 7), st.booleans()), min_size=1, max_size=40)


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=3, max_size=3), ITERATIONS)
def test_moved_on_as_laid_out(lengths: list[int], iterations: list[tuple[int, bool]]) -> None:
    (sequences, free), steady = learned(lengths), Steady(BLOCK, embeds=True)
    for number, (who, known) in enumerate(iterations):
        ids = [seq_id for seq_id in range(3) if who >> seq_id & 1 or number % 5]
        deltas, work = [], []
        for seq_id in ids:
            start = sequences[seq_id].length - 1
            if start % BLOCK == 0 and start > 0:
                deltas.append(BlockDelta(seq_id, start // BLOCK, pack_tokens([free])))
                free += 1
            tokens = pack_tokens([int(sequences[seq_id].tokens[-1])]) if known else FED_BACK
            work.append(Work(seq_id, start, 1, tokens, Output.SAMPLE))
        plan = IterationPlan(0, number, tuple(work), block_deltas=tuple(deltas))
        sequences.apply(plan)
        logs = [sequences[seq_id] for seq_id in ids]
        expected = pack(plan.work, logs, sequences, BLOCK)
        moved = steady.next(plan, logs)
        if moved is None:
            steady.keep(plan.work, logs, pack(plan.work, logs, sequences, BLOCK))
        else:
            assert fields(moved) == fields(expected)
        for seq_id in ids:
            sequences[seq_id].append(1000 + number)


def test_a_decode_is_moved_on_until_its_block_is_full() -> None:
    (sequences, _), steady, moved = learned([5]), Steady(BLOCK, embeds=True), []
    for number in range(12):
        log = sequences[0]
        work = (Work(0, log.length - 1, 1, FED_BACK, Output.SAMPLE),)
        plan = IterationPlan(0, number, work)
        if number == 11:
            sequences.apply(IterationPlan(0, number, (), block_deltas=(BlockDelta(0, 1, pack_tokens([1])),)))
        packed = steady.next(plan, [log])
        moved.append(packed is not None)
        steady.keep(work, [log], packed or pack(work, [log], sequences, BLOCK))
        log.append(7)
    # Positions 4 to 15: the twelfth is the last of the block.
    assert moved == [False] + [True] * 11


def test_a_chunk_of_a_prompt_is_laid_out() -> None:
    (sequences, _), steady = learned([9]), Steady(BLOCK, embeds=True)
    log = sequences[0]
    for start, count in [(0, 4), (4, 4), (8, 1)]:
        work = (Work(0, start, count, log.tokens[start : start + count].tobytes(), Output.SAMPLE),)
        assert steady.next(IterationPlan(0, start, work), [log]) is None
        steady.keep(work, [log], pack(work, [log], sequences, BLOCK))
    assert torch.equal(pack(work, [log], sequences, BLOCK).batch.positions, torch.tensor([8]))
