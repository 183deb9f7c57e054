"""A plan's work as tensors: token-major, no padding, no batch axis (Orca's selective batching, OSDI '22, §3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orcinus.core.plan import FED_BACK, Output, Work
from orcinus.errors import PlanError
from orcinus.kernels import AttentionBatch
from orcinus.worker.sequences import SequenceLog, Sequences


@dataclass(frozen=True, slots=True)
class Packed:
    """One iteration's input.

    Args:
        tokens: int64 [tokens]; none in the later stages of a pipeline.
        batch: which rows belong to which sequence, and where their KV lies.
        rows: int64 [rows], the rows that go through the vocabulary head, in the order of `samples` then `scored`.
        samples: work items that sample, one row each.
        scored: work items that want prompt logprobs, with the prompt positions that they predict.
        pooled: work items that want a vector, with their rows.
        segments: int64 [tokens], 1 in the second text of a pair; None if nothing here has one.
    """

    tokens: Tensor
    batch: AttentionBatch
    rows: Tensor
    samples: list[int]
    scored: list[tuple[int, range]]
    pooled: list[tuple[int, range]]
    segments: Tensor | None


def pack(
    work: Sequence[Work], logs: Sequence[SequenceLog], sequences: Sequences, block_size: int, *, embeds: bool = True
) -> Packed:
    """Lay the tokens of all work items in one row after another.

    Args:
        embeds: the tokens themselves are needed, not only where they are.

    Raises:
        PlanError: an item asks for a token that this worker doesn't have.
    """
    starts = np.fromiter((item.start for item in work), dtype=np.int64, count=len(work))
    counts = np.fromiter((item.num_tokens for item in work), dtype=np.int64, count=len(work))
    query_starts = np.zeros(len(work) + 1, dtype=np.int64)
    np.cumsum(counts, out=query_starts[1:])
    owners = np.repeat(np.arange(len(work)), counts)
    positions = np.arange(query_starts[-1]) - query_starts[owners] + starts[owners]
    contexts = starts + counts
    tables = sequences.tables[sequences.slots(logs), : -(-int(contexts.max()) // block_size)]
    slots = tables[owners, positions // block_size].astype(np.int64) * block_size + positions % block_size
    tokens = input_tokens(work, logs) if embeds else np.empty(0, dtype=np.int64)
    batch = AttentionBatch(
        query_starts=torch.from_numpy(query_starts.astype(np.int32)),
        context_lengths=torch.from_numpy(contexts.astype(np.int32)),
        block_tables=torch.from_numpy(np.ascontiguousarray(tables)),
        slots=torch.from_numpy(slots),
        positions=torch.from_numpy(positions),
    )
    rows, samples, scored = _head_rows(work, logs, query_starts)
    pooled = [
        (i, range(int(query_starts[i]), int(query_starts[i + 1])))
        for i, item in enumerate(work)
        if item.output & Output.POOLED
    ]
    segments = _segments(logs, owners, positions)
    return Packed(torch.from_numpy(tokens), batch, torch.from_numpy(rows), samples, scored, pooled, segments)


def input_tokens(work: Sequence[Work], logs: Sequence[SequenceLog]) -> NDArray[np.int64]:
    """The tokens of all items, one after the other.

    Raises:
        PlanError: an item asks for a token that this worker doesn't have.
    """
    return np.frombuffer(b"".join(map(_tokens_of, work, logs)), dtype=np.uint32).astype(np.int64)


def to_device(packed: Packed, device: torch.device) -> Packed:
    """The same on the model's device."""
    if device.type == "cpu":
        return packed
    batch = packed.batch
    return Packed(
        packed.tokens.to(device),
        AttentionBatch(
            query_starts=batch.query_starts.to(device),
            context_lengths=batch.context_lengths.to(device),
            block_tables=batch.block_tables.to(device),
            slots=batch.slots.to(device),
            positions=batch.positions.to(device),
        ),
        packed.rows.to(device),
        packed.samples,
        packed.scored,
        packed.pooled,
        None if packed.segments is None else packed.segments.to(device),
    )


def _segments(logs: Sequence[SequenceLog], owners: NDArray[np.int64], positions: NDArray[np.int64]) -> Tensor | None:
    """Which tokens lie in the second text of their pair."""
    pooling = [log.description.pooling for log in logs]
    starts = np.array([0 if p is None else p.second_segment for p in pooling], dtype=np.int64)
    if not starts.any():
        return None
    return torch.from_numpy(((starts > 0)[owners] & (positions >= starts[owners])).astype(np.int64))


def _tokens_of(item: Work, log: SequenceLog) -> bytes:
    """The item's tokens as values; a fed-back one is the last of the log."""
    end = item.start + item.num_tokens
    if item.tokens != FED_BACK:
        if len(item.tokens) != 4 * item.num_tokens or end > log.length:
            raise PlanError(f"sequence {item.seq_id}: {len(item.tokens)} bytes of tokens for {item.start}..{end}")
        return item.tokens
    if item.num_tokens != 1 or end != log.length:
        raise PlanError(f"sequence {item.seq_id}: token {item.start} is to be fed back, but {log.length} are known")
    return log.tokens[-1:].tobytes()


def _head_rows(
    work: Sequence[Work], logs: Sequence[SequenceLog], query_starts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], list[int], list[tuple[int, range]]]:
    """Rows whose logits are needed. The row at position p predicts position p + 1."""
    samples = [i for i, item in enumerate(work) if item.output & Output.SAMPLE]
    scored: list[tuple[int, range]] = []
    rows = [int(query_starts[i + 1]) - 1 for i in samples]
    for i, item in enumerate(work):
        if item.output & Output.PROMPT_LOGPROBS:
            last = min(item.start + item.num_tokens, logs[i].description.num_prompt_tokens - 1)
            first_row = int(query_starts[i])
            scored.append((i, range(item.start + 1, last + 1)))
            rows.extend(range(first_row, first_row + last - item.start))
    return np.array(rows, dtype=np.int64), samples, scored
