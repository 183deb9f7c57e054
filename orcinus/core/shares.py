"""What one of several plans in flight takes of the work, so that no stage stands idle or waits for a longer plan.

Work is cut into as many micro-batches as there are stages: decodes by sequence, prompts also into pieces that follow
each other through the pipeline (DeepSpeed-Inference, SC '22, hybrid schedule; SYSTEMS.md, section 5).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orcinus.core.config import SchedulerConfig
from orcinus.core.request import ServiceClass
from orcinus.core.sequence import Sequence, SequenceGroup

# Prompts that wait are spread over so many rounds of the pipeline. One would make its plans as unequal as arrivals are;
# with more, answers begin later and stages stand idle no less.
_ROUNDS = 3

Runnable = list[tuple[SequenceGroup, Sequence]]


@dataclass(frozen=True, slots=True)
class Share:
    """The most that one plan takes: sequences that decode, and tokens of prompts."""

    decodes: int
    prefill: int

    @classmethod
    def of(
        cls, config: SchedulerConfig, due: list[Sequence], newcomers: Iterable[SequenceGroup], num_in_flight: int
    ) -> Share:
        """An equal part of it; of prompts at least a part of the budget, or a long one's last pieces would be tiny.

        Args:
            due: admitted and lacking something, in flight or not.
            newcomers: those who may start now.
            num_in_flight: plans.
        """
        decoding = [each for each in due if each.is_decoding]
        ready = sum(each.in_flight <= config.lookahead for each in decoding)
        # Of four on three stages two, one and one: with two and two the third would have none.
        decodes = min(_part(len(decoding), config.num_stages), _part(ready, config.plans_in_flight - num_in_flight))
        tokens = sum(each.num_missing for each in due if not each.is_decoding)
        tokens += sum(group.request.num_prompt_tokens for group in newcomers)
        budget, stages = config.max_batch_tokens, config.num_stages
        prefill = max(_part(tokens, _ROUNDS * stages), _part(budget, stages), config.block_size)
        return cls(max(1, decodes), min(budget, prefill))


def in_turns(runnable: Runnable, decodes: int, *, pads: bool) -> Runnable:
    """The same, but of those who decode all after the `decodes` that waited longest come last.

    Only an order: where one of the first gets no block, one of the last takes its place. Beams keep theirs: they go
    together.
    """

    def turn(sequence: Sequence) -> tuple[bool, int]:
        return pads and sequence.request.service_class is ServiceClass.BESTEFFORT, sequence.last_iteration

    alone = (sequence for group, sequence in runnable if sequence.is_decoding and group.beams is None)
    waiting = sorted(alone, key=turn)
    late = {sequence.seq_id for sequence in waiting[decodes:]}
    return sorted(runnable, key=lambda each: each[1].seq_id in late)


def _part(work: int, parts: int) -> int:
    return -(-work // parts)
