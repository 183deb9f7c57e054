"""The last batch, one token on: while the same sequences decode, its tensors are moved on instead of made anew."""

from __future__ import annotations

from collections.abc import Sequence

from orcinus.core.plan import IterationPlan, Output, Work
from orcinus.worker.pack import Packed, input_tokens
from orcinus.worker.sequences import SequenceLog


class Steady:
    """Remembers the last batch if each of its sequences had one token to go on with.

    Args:
        embeds: as `pack` has it.
    """

    def __init__(self, block_size: int, *, embeds: bool) -> None:
        self._block_size = block_size
        self._embeds = embeds
        self._packed: Packed | None = None
        self._logs: list[SequenceLog] = []
        self._starts: list[int] = []

    def next(self, plan: IterationPlan, logs: Sequence[SequenceLog]) -> Packed | None:
        """What `pack` would give, in the tensors of the last time; None if that must lay it out.

        Raises:
            PlanError: see `input_tokens`.
        """
        packed = self._packed
        changed = plan.new or plan.finished or plan.block_deltas
        if packed is None or changed or not self._goes_on(plan.work, logs):
            return None
        if self._embeds:
            packed.tokens.numpy()[:] = input_tokens(plan.work, logs)
        batch = packed.batch
        for array in (batch.positions.numpy(), batch.slots.numpy(), batch.context_lengths.numpy()):
            array += 1
        self._starts = [item.start for item in plan.work]
        return packed

    def keep(self, work: Sequence[Work], logs: list[SequenceLog], packed: Packed) -> None:
        """This is the last batch now."""
        goes_on = all(item.num_tokens == 1 and item.output == Output.SAMPLE for item in work)
        self._packed = packed if goes_on and packed.segments is None else None
        self._logs, self._starts = logs, [item.start for item in work]

    def _goes_on(self, work: Sequence[Work], logs: Sequence[SequenceLog]) -> bool:
        """The same sequences in the same order, each with its next token, in the block of the last one."""
        return len(logs) == len(self._logs) and all(
            log is before
            and item.num_tokens == 1
            and item.output == Output.SAMPLE
            and item.start == start + 1
            and item.start % self._block_size != 0
            for item, log, before, start in zip(work, logs, self._logs, self._starts, strict=True)
        )
