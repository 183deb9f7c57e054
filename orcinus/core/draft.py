"""A plan while it is being made, and the record that core keeps of it while it is in flight."""

from __future__ import annotations

from dataclasses import dataclass, field

from orcinus.core.plan import FED_BACK, BlockCopy, BlockDelta, IterationPlan, NewSequence, Output, Work
from orcinus.core.request import ServiceClass, pack_tokens
from orcinus.core.sequence import Sequence


def chunk_end(start: int, known: int, budget: int, block_size: int) -> int:
    """Position at which this iteration's chunk of one sequence stops; `start` if nothing fits.

    Args:
        start: tokens whose KV exists or is in flight.
        known: tokens known so far, > start; a gap of 1 means the sequence is decoding.
        budget: tokens this iteration may still run, >= 0.
        block_size: tokens per KV block.

    Chunked prefill: Sarathi-Serve, OSDI '24 (SYSTEMS.md, section 12).
    """
    end = min(known, start + budget)
    boundary = end - end % block_size
    # Only full blocks enter the radix tree: a prompt cut inside a block would be shared one iteration later.
    return boundary if start < boundary and end < known else end


# Not frozen: setting six fields of a frozen dataclass takes four times as long, for each sequence of each plan.
@dataclass(slots=True)
class Entry:
    """One sequence's part of a plan in flight.

    `copied`: the plan copies a block for it. `incarnation` tells whether its KV still counts on return.
    """

    sequence: Sequence
    start: int
    end: int
    samples: int
    copied: bool
    incarnation: int

    @property
    def is_current(self) -> bool:
        """Its KV will count: the sequence lives, and has not lost its blocks since."""
        return self.incarnation == self.sequence.incarnation and not self.sequence.is_finished


@dataclass(slots=True)
class PlanInFlight:
    """What `update` needs when the result of `iteration` comes back; `pins` are lifted then."""

    iteration: int
    entries: list[Entry]
    pins: list[int]
    issued_at: float = 0.0
    decodes: int = 0
    prefill_tokens: int = 0


@dataclass(slots=True)
class Draft:
    """Collects one plan. Adding a sequence moves its `num_scheduled`, so a draft with work must be issued.

    Args:
        slots_left: sequences that fit still.
        prefill_left: tokens for prompts still, so that the iteration takes as long as it should.
        limit_left: tokens for prompts still, whatever it takes.
        pads: best effort decodes out of `prefill_left`: nothing was set aside for it.
    """

    slots_left: int
    prefill_left: int
    limit_left: int
    pads: bool = False
    num_decodes: int = 0
    num_prefilled: int = 0
    entries: list[Entry] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    new: list[NewSequence] = field(default_factory=list)
    block_deltas: list[BlockDelta] = field(default_factory=list)
    copies: list[BlockCopy] = field(default_factory=list)
    # Somebody waits for more of the budget than is left, and must not be passed.
    is_closed: bool = False

    def budget(self, sequence: Sequence, *, is_decode: bool) -> int:
        """Tokens that `sequence` may run."""
        request = sequence.request
        if is_decode:
            pads = self.pads and request.service_class is ServiceClass.BESTEFFORT
            return min(1, self.prefill_left) if pads else 1
        # What can't be cut may take longer than an iteration should: once, alone.
        return self.limit_left if request.is_whole and not self.num_prefilled else self.prefill_left

    def budget_of(self, gang: list[Sequence]) -> int:
        """Tokens that these, of one request and each lacking one, may run together."""
        pads = self.pads and gang[0].request.service_class is ServiceClass.BESTEFFORT
        return self.prefill_left if pads else len(gang)

    def charge(self, sequence: Sequence, tokens: int, *, is_decode: bool) -> None:
        """`sequence` is about to run so many tokens of its budget."""
        if is_decode:
            self.num_decodes += 1
            if not self.pads or sequence.request.service_class is not ServiceClass.BESTEFFORT:
                return
        else:
            self.num_prefilled += tokens
        self.limit_left -= tokens
        self.prefill_left = max(0, self.prefill_left - tokens)

    def add(self, sequence: Sequence, end: int, iteration: int, copy: BlockCopy | None) -> None:
        """Run `sequence` up to position `end`; its blocks are ready once `copy` is made."""
        start = sequence.num_scheduled
        is_last = end == len(sequence.tokens) + sequence.num_pending
        self._tell_state(sequence)
        if copy is not None:
            self.copies.append(copy)
        known = sequence.tokens[start:end]
        # A token that was sampled by a plan still in flight is known to the worker alone.
        tokens = known.tobytes() if len(known) == end - start else FED_BACK
        self.work.append(Work(sequence.seq_id, start, end - start, tokens, _output(sequence, start, is_last)))
        self.entries.append(Entry(sequence, start, end, int(is_last), copy is not None, sequence.incarnation))
        self.slots_left -= 1
        sequence.num_scheduled = end
        sequence.num_pending += is_last
        sequence.in_flight += 1
        sequence.last_iteration = iteration

    def finish(self, epoch: int, iteration: int, finished: list[int]) -> IterationPlan:
        """The plan as the workers get it."""
        return IterationPlan(
            epoch,
            iteration,
            tuple(self.work),
            tuple(self.new),
            tuple(self.block_deltas),
            tuple(self.copies),
            tuple(finished),
        )

    def _tell_state(self, sequence: Sequence) -> None:
        """The sequence in full if the workers don't know it, else what changed in its block table."""
        table = sequence.table
        if not sequence.is_known:
            self.new.append(
                NewSequence(
                    sequence.seq_id,
                    sequence.index,
                    sequence.num_prompt_tokens,
                    sequence.tokens.tobytes(),
                    pack_tokens(table.blocks),
                    sequence.request.params,
                    tuple(sorted(sequence.end_token_ids)),
                    sequence.request.adapter,
                    sequence.request.pooling,
                    sequence.request.num_candidates,
                )
            )
            sequence.is_known = True
        elif table.dirty_from < len(table.blocks):
            changed = pack_tokens(table.blocks[table.dirty_from :])
            self.block_deltas.append(BlockDelta(sequence.seq_id, table.dirty_from, changed))
        table.dirty_from = len(table.blocks)


def _output(sequence: Sequence, start: int, is_last: bool) -> Output:
    """A sample or a vector once nothing is missing; prompt logprobs for the prompt positions not delivered yet."""
    if sequence.request.pooling is not None:
        return Output.POOLED if is_last else Output.NOTHING
    output = Output.SAMPLE if is_last else Output.NOTHING
    wants_prompt = sequence.request.params.prompt_logprobs is not None and sequence.index == 0
    if wants_prompt and start < sequence.num_prompt_tokens - 1 and not sequence.request.resumed:
        output |= Output.PROMPT_LOGPROBS
    return output
