"""What a worker remembers of each sequence between iterations: its tokens, its block table, how to sample it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from orcinus.core.plan import BlockDelta, IterationPlan, NewSequence
from orcinus.errors import PlanError


class SequenceLog:
    """One sequence: an immutable description and a token log that grows."""

    __slots__ = ("_tokens", "description", "length", "slot")

    def __init__(self, description: NewSequence, slot: int) -> None:
        self.description = description
        self.slot = slot
        known = np.frombuffer(description.tokens, dtype=np.uint32)
        self.length = len(known)
        self._tokens = np.empty(max(64, 2 * self.length), dtype=np.uint32)
        self._tokens[: self.length] = known

    @property
    def tokens(self) -> NDArray[np.uint32]:
        """Prompt and generated so far; a view, valid until the next append."""
        return self._tokens[: self.length]

    def append(self, token: int) -> None:
        """Take a sampled token."""
        if self.length == len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.empty_like(self._tokens)])
        self._tokens[self.length] = token
        self.length += 1


class Sequences:
    """All sequences that core has told this worker about, and their block tables as one array.

    `tables` is int32 [slots, blocks]; a sequence keeps its slot (row) until it is forgotten.
    """

    def __init__(self, max_blocks: int, num_slots: int) -> None:
        self.tables = np.zeros((num_slots, max_blocks), dtype=np.int32)
        self._free_slots = list(range(num_slots - 1, -1, -1))
        self._logs: dict[int, SequenceLog] = {}

    def __len__(self) -> int:
        return len(self._logs)

    def __getitem__(self, seq_id: int) -> SequenceLog:
        log = self._logs.get(seq_id)
        if log is None:
            raise PlanError(f"the plan names sequence {seq_id}, which this worker was never told about")
        return log

    def find(self, seq_id: int) -> SequenceLog | None:
        """The sequence, if it is known."""
        return self._logs.get(seq_id)

    def apply(self, plan: IterationPlan) -> None:
        """The state changes of a plan, but its copies: forget, learn, extend tables.

        Raises:
            PlanError: the plan contradicts what came before; nothing is repaired.
        """
        for seq_id in plan.finished:
            self._free_slots.append(self[seq_id].slot)
            del self._logs[seq_id]
        for new in plan.new:
            self._learn(new)
        for delta in plan.block_deltas:
            self._extend(delta)

    def clear(self) -> None:
        """Forget all: a new epoch restates what it needs."""
        self._free_slots.extend(log.slot for log in self._logs.values())
        self._logs.clear()

    def slots(self, logs: Sequence[SequenceLog]) -> NDArray[np.int64]:
        """The rows of `tables` that belong to `logs`."""
        return np.fromiter((log.slot for log in logs), dtype=np.int64, count=len(logs))

    def _learn(self, new: NewSequence) -> None:
        if new.seq_id in self._logs:
            raise PlanError(f"the plan introduces sequence {new.seq_id}, which is known already")
        if not self._free_slots:
            self._grow()
        slot = self._free_slots.pop()
        self._logs[new.seq_id] = SequenceLog(new, slot)
        self._write(slot, 0, new.blocks)

    def _extend(self, delta: BlockDelta) -> None:
        self._write(self[delta.seq_id].slot, delta.start, delta.blocks)

    def _write(self, slot: int, start: int, packed: bytes) -> None:
        blocks = np.frombuffer(packed, dtype=np.uint32)
        if start + len(blocks) > self.tables.shape[1]:
            raise PlanError(
                f"a block table of {start + len(blocks)} entries exceeds the {self.tables.shape[1]} planned"
            )
        self.tables[slot, start : start + len(blocks)] = blocks

    def _grow(self) -> None:
        """Twice the rows. Core bounds what runs; aborted sequences linger here until the next plan."""
        rows = self.tables.shape[0]
        self.tables = np.concatenate([self.tables, np.zeros_like(self.tables)])
        self._free_slots.extend(range(2 * rows - 1, rows - 1, -1))
