"""A plan while it is being made, and the record that core keeps of it while it is in flight."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, sqrt

from orcinus.core.kv.tiers import Found
from orcinus.core.pace import pairs_of
from orcinus.core.plan import FED_BACK, BlockCopy, BlockDelta, IterationPlan, NewSequence, Output, Swap, Work
from orcinus.core.request import ServiceClass, pack_tokens
from orcinus.core.sequence import Sequence, SequenceState


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
        sequence = self.sequence
        return self.incarnation == sequence.incarnation and sequence.state is not SequenceState.FINISHED


@dataclass(frozen=True, slots=True)
class Fetch:
    """Blocks that a plan in flight brings back for `sequence`, behind the first `start` blocks of its tokens."""

    sequence: Sequence
    start: int
    found: list[Found]
    blocks: list[int]


@dataclass(slots=True)
class PlanInFlight:
    """What `update` needs when the result of `iteration` comes back; `pins` are lifted then.

    `swaps` are all of the plan's; `fetches` are those that nobody in it waits for.
    """

    iteration: int
    entries: list[Entry]
    pins: list[int]
    issued_at: float = 0.0
    decodes: int = 0
    prefill_tokens: int = 0
    prefill_pairs: int = 0
    swaps: tuple[Swap, ...] = ()
    fetches: list[Fetch] = field(default_factory=list)


@dataclass(slots=True)
class Draft:
    """Collects one plan. Adding a sequence moves its `num_scheduled`, so a draft with work must be issued.

    Args:
        slots_left: sequences that fit still.
        prefill_left: tokens for prompts still, so that the iteration takes as long as it should; those with none
            before them.
        limit_left: tokens for prompts still, whatever it takes.
        growth_left: the same, so that an iteration isn't much longer than any of late.
        depth_price: what each token before it takes of `prefill_left` besides, for a token of a prompt.
        tile: so many tokens get the first prompt on, whatever they cost.
        pads: best effort decodes out of `prefill_left`: nothing was set aside for it.
        decodes_left: sequences that may decode still; None for as many as fit.
        padding_left: tokens that best effort may run still.
    """

    slots_left: int
    prefill_left: float
    limit_left: int
    growth_left: float = inf
    depth_price: float = 0.0
    tile: int = 1
    pads: bool = False
    decodes_left: int | None = None
    padding_left: float = inf
    num_decodes: int = 0
    num_prefilled: int = 0
    num_pairs: int = 0
    entries: list[Entry] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    new: list[NewSequence] = field(default_factory=list)
    block_deltas: list[BlockDelta] = field(default_factory=list)
    copies: list[BlockCopy] = field(default_factory=list)
    # Somebody waits for more of the budget than is left, and must not be passed.
    is_closed: bool = False

    def budget(self, sequence: Sequence, *, is_decode: bool) -> int:
        """Tokens that `sequence` may run."""
        # Beams go together, whatever their number.
        if is_decode and self.decodes_left == 0 and sequence.request.beams is None:
            return 0
        if is_decode:
            left = int(min(self.limit_left, self.prefill_left))
        elif sequence.request.is_whole and not self.num_prefilled:
            # What can't be cut may take longer than an iteration should: once, alone.
            left = self.limit_left
        else:
            left = self._prefill_at(sequence.num_scheduled)
        if self._is_padding(sequence):
            left = int(min(left, self.padding_left))
            return min(1, left) if is_decode else left
        return 1 if is_decode else left

    def _prefill_at(self, start: int) -> int:
        """Tokens of a prompt behind `start` others."""
        fitting = self.prefill_left
        if self.depth_price > 0.0:
            # n (1 + depth x start) + n² depth / 2 = what is left.
            first = 1.0 + self.depth_price * start
            fitting = 2 * fitting / (first + sqrt(first * first + 2 * self.depth_price * fitting))
        least = 1 if self.num_prefilled else self.tile
        fitting = max(fitting, min(least, self.prefill_left))
        return int(min(self.limit_left, self.growth_left, fitting))

    def budget_of(self, gang: list[Sequence]) -> int:
        """Tokens that these, of one request and each lacking one, may run together."""
        pads = self.pads and gang[0].request.service_class is ServiceClass.BESTEFFORT
        return int(min(self.prefill_left, self.limit_left, self.padding_left)) if pads else len(gang)

    def charge(self, sequence: Sequence, tokens: int, *, is_decode: bool) -> None:
        """`sequence` is about to run so many tokens of its budget."""
        if is_decode:
            self.num_decodes += 1
            if self.decodes_left is not None:
                self.decodes_left = max(0, self.decodes_left - 1)
        else:
            self.num_prefilled += tokens
            self.growth_left = max(1, self.growth_left - tokens)
            self.num_pairs += pairs_of(sequence.num_scheduled, tokens)
        if self._is_padding(sequence):
            self.padding_left -= tokens
        elif is_decode:
            return
        self.limit_left -= tokens
        # One token is one, wherever it stands: beams that lack one each were promised to go together.
        depth = pairs_of(sequence.num_scheduled, tokens) if tokens > 1 else 0
        self.prefill_left = max(0, self.prefill_left - tokens - self.depth_price * depth)

    def _is_padding(self, sequence: Sequence) -> bool:
        return self.pads and sequence.request.service_class is ServiceClass.BESTEFFORT

    def add(self, sequence: Sequence, end: int, iteration: int, copy: BlockCopy | None) -> None:
        """Run `sequence` up to position `end`; its blocks are ready once `copy` is made."""
        start = sequence.num_scheduled
        is_last = end == len(sequence.tokens) + sequence.num_pending
        if not sequence.is_known or sequence.table.dirty_from < len(sequence.table.blocks):
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

    def finish(
        self,
        epoch: int,
        iteration: int,
        finished: list[int],
        swaps: tuple[Swap, ...] = (),
        ahead: tuple[Swap, ...] = (),
    ) -> IterationPlan:
        """The plan as the workers get it."""
        return IterationPlan(
            epoch,
            iteration,
            tuple(self.work),
            tuple(self.new),
            tuple(self.block_deltas),
            tuple(self.copies),
            tuple(finished),
            swaps,
            ahead,
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
    if start >= sequence.num_prompt_tokens - 1:
        return output
    wants_prompt = sequence.request.params.prompt_logprobs is not None and sequence.index == 0
    if wants_prompt and not sequence.request.resumed:
        output |= Output.PROMPT_LOGPROBS
    return output
