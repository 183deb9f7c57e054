"""Packing: token-major rows without padding, each with its own position and KV slot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orcinus.core.plan import FED_BACK, BlockDelta, IterationPlan, NewSequence, Output, Work
from orcinus.core.request import SamplingParams, pack_tokens
from orcinus.errors import PlanError
from orcinus.worker.pack import pack
from orcinus.worker.sequences import Sequences

BLOCK_SIZE = 16


def new_sequence(seq_id: int, tokens: list[int], blocks: list[int], num_prompt: int | None = None) -> NewSequence:
    return NewSequence(
        seq_id,
        0,
        len(tokens) if num_prompt is None else num_prompt,
        pack_tokens(tokens),
        pack_tokens(blocks),
        SamplingParams(max_tokens=8, seed=0),
        (),
    )


def plan(*, new: tuple[NewSequence, ...] = (), **changes: tuple[object, ...]) -> IterationPlan:
    return IterationPlan(0, 0, (), new, **changes)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(1, 40)), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
def test_every_row_is_a_token_of_its_sequence_at_its_position_and_slot(chunks, random) -> None:
    """The oracle is a loop over sequences and positions."""
    sequences = Sequences(max_blocks=16, num_slots=2)
    blocks = list(range(200))
    random.shuffle(blocks)
    work, expected = [], []
    for seq_id, (start, count) in enumerate(chunks):
        tokens = [random.randrange(1000) for _ in range(start + count)]
        table = [blocks.pop() for _ in range(-(-(start + count) // BLOCK_SIZE))]
        sequences.apply(plan(new=(new_sequence(seq_id, tokens, table),)))
        work.append(Work(seq_id, start, count, pack_tokens(tokens[start:]), Output.SAMPLE))
        expected += [
            (tokens[p], p, table[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE) for p in range(start, start + count)
        ]
    packed = pack(work, [sequences[item.seq_id] for item in work], sequences, BLOCK_SIZE)
    rows = zip(packed.tokens.tolist(), packed.batch.positions.tolist(), packed.batch.slots.tolist(), strict=True)
    assert list(rows) == expected
    ends = np.cumsum([count for _, count in chunks])
    assert packed.batch.query_starts.tolist() == [0, *ends.tolist()]
    assert packed.batch.context_lengths.tolist() == [start + count for start, count in chunks]
    assert packed.rows.tolist() == (ends - 1).tolist()


def test_a_batch_has_as_many_rows_as_tokens_are_needed() -> None:
    """SYSTEMS.md §15: padding is 0 %."""
    sequences = Sequences(max_blocks=16, num_slots=4)
    sequences.apply(plan(new=(new_sequence(0, [1] * 100, list(range(7))), new_sequence(1, [2] * 3, [9]))))
    work = [
        Work(0, 0, 100, pack_tokens([1] * 100), Output.NOTHING),
        Work(1, 2, 1, pack_tokens([2]), Output.SAMPLE),
    ]
    packed = pack(work, [sequences[0], sequences[1]], sequences, BLOCK_SIZE)
    assert packed.tokens.shape == (101,)
    assert packed.rows.tolist() == [100]


def test_a_fed_back_token_is_the_last_of_the_log() -> None:
    sequences = Sequences(max_blocks=4, num_slots=1)
    sequences.apply(plan(new=(new_sequence(5, [7, 8], [3]),)))
    sequences[5].append(42)
    packed = pack([Work(5, 2, 1, FED_BACK, Output.SAMPLE)], [sequences[5]], sequences, BLOCK_SIZE)
    assert packed.tokens.tolist() == [42]


def test_prompt_logprobs_ask_for_the_row_before_each_prompt_token() -> None:
    sequences = Sequences(max_blocks=4, num_slots=1)
    sequences.apply(plan(new=(new_sequence(0, list(range(10)), [0]),)))
    wanted = Output.SAMPLE | Output.PROMPT_LOGPROBS
    packed = pack([Work(0, 4, 6, pack_tokens(range(4, 10)), wanted)], [sequences[0]], sequences, BLOCK_SIZE)
    assert packed.scored == [(0, range(5, 10))]
    assert packed.rows.tolist() == [5, 0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "wrong",
    [
        Work(0, 3, 1, FED_BACK, Output.SAMPLE),
        Work(0, 0, 2, pack_tokens([1]), Output.SAMPLE),
        Work(0, 1, 2, pack_tokens([1, 2]), Output.SAMPLE),
    ],
)
def test_a_plan_that_contradicts_the_log_is_reported(wrong: Work) -> None:
    sequences = Sequences(max_blocks=4, num_slots=1)
    sequences.apply(plan(new=(new_sequence(0, [1, 2], [0]),)))
    with pytest.raises(PlanError):
        pack([wrong], [sequences[0]], sequences, BLOCK_SIZE)


def test_unknown_and_doubly_known_sequences_are_reported() -> None:
    sequences = Sequences(max_blocks=1, num_slots=1)
    with pytest.raises(PlanError, match="never told"):
        sequences.apply(plan(finished=(3,)))
    sequences.apply(plan(new=(new_sequence(0, [1], [0]),)))
    with pytest.raises(PlanError, match="known already"):
        sequences.apply(plan(new=(new_sequence(0, [1], [0]),)))
    with pytest.raises(PlanError, match="exceeds"):
        sequences.apply(plan(block_deltas=(BlockDelta(0, 1, pack_tokens([2])),)))


def test_slots_are_reused_and_grow_when_they_run_out() -> None:
    sequences = Sequences(max_blocks=2, num_slots=1)
    for seq_id in range(5):
        sequences.apply(plan(new=(new_sequence(seq_id, [seq_id], [seq_id]),)))
    tables = {seq_id: int(sequences.tables[sequences[seq_id].slot, 0]) for seq_id in range(5)}
    assert tables == {seq_id: seq_id for seq_id in range(5)}
    sequences.apply(plan(finished=(0, 1, 2, 3)))
    before = sequences.tables.shape
    sequences.apply(plan(new=tuple(new_sequence(seq_id, [1], [0]) for seq_id in (10, 11, 12))))
    assert sequences.tables.shape == before
    sequences.clear()
    assert len(sequences) == 0


def test_a_log_keeps_its_tokens_when_it_grows() -> None:
    sequences = Sequences(max_blocks=64, num_slots=1)
    sequences.apply(plan(new=(new_sequence(0, [9], [0]),)))
    for token in range(500):
        sequences[0].append(token)
    assert sequences[0].tokens.tolist() == [9, *range(500)]
    assert torch.from_numpy(sequences[0].tokens.astype(np.int64)).sum() == 9 + sum(range(500))
