"""What core tells the workers to do, and what they answer. Ids, counts and positions; never a tensor.

An `IterationPlan` has two parts. *State changes* apply exactly once and in order, even when the work is skipped.
*Work* may be abandoned: nothing it did counts before `Scheduler.update` (SYSTEMS.md, G9).
"""

from __future__ import annotations

from enum import IntFlag

import msgspec

from orcinus.core.request import Pooling, SamplingParams

# In `Work.tokens`: the input is the token that this sequence sampled last, still on the worker.
FED_BACK = b""


class Output(IntFlag):
    """What comes out of one sequence's work."""

    NOTHING = 0
    SAMPLE = 1
    PROMPT_LOGPROBS = 2
    POOLED = 4


class NewSequence(msgspec.Struct, frozen=True, array_like=True):
    """A sequence the workers don't know (or no longer, after an epoch change), in full.

    Args:
        seq_id: core's number for it, never reused.
        index: place among its request's answers; part of the random key.
        num_prompt_tokens: how many of `tokens` are prompt; the rest is generated.
        tokens: packed uint32, all tokens known.
        blocks: packed uint32 block table.
        end_token_ids: masked until `min_tokens`.
        pooling: what is wanted instead of samples.
        num_candidates: so many of the likeliest tokens come with each sample, for core to choose from (beams).
    """

    seq_id: int
    index: int
    num_prompt_tokens: int
    tokens: bytes
    blocks: bytes
    params: SamplingParams
    end_token_ids: tuple[int, ...]
    adapter: str = ""
    pooling: Pooling | None = None
    num_candidates: int = 0


class BlockDelta(msgspec.Struct, frozen=True, array_like=True):
    """The block table of `seq_id` reads `blocks` (packed uint32) from entry `start` on."""

    seq_id: int
    start: int
    blocks: bytes


class BlockCopy(msgspec.Struct, frozen=True, array_like=True):
    """Copy block `source` to `target`, all layers, before any work of the plan."""

    source: int
    target: int


class SwapOut(msgspec.Struct, frozen=True, array_like=True, tag="out"):
    """Copy the KV of device block `block` to `slot` of the host's memory or of the disk.

    Slots from 0 up are the host's, those behind them the disk's. `generation` is the label that the slot bears from now
    on. `key` and `parent` name the KV, and that of the block before it, beyond the life of this engine; only a disk
    needs them.
    """

    slot: int
    generation: int
    block: int
    key: bytes = b""
    parent: bytes = b""


class SwapIn(msgspec.Struct, frozen=True, array_like=True, tag="in"):
    """Copy `slot` to device block `block`, for `seq_id`, which has work in this plan, or will have in a later one.

    If the slot bears another label than `generation`, nothing is copied: a host's slot then fails the sequence, for
    core has made a mistake; a disk's slot, or what nobody in this plan waits for, is `IterationResult.lost`.
    """

    slot: int
    generation: int
    block: int
    seq_id: int


class Erase(msgspec.Struct, frozen=True, array_like=True, tag="erase"):
    """What the disk's `slot` holds must not be found again."""

    slot: int


Swap = SwapOut | SwapIn | Erase


class Work(msgspec.Struct, frozen=True, array_like=True):
    """Run `num_tokens` tokens of one sequence from position `start`.

    `tokens` holds them packed, or is `FED_BACK` (then `num_tokens` is 1).
    """

    seq_id: int
    start: int
    num_tokens: int
    tokens: bytes
    output: Output


class IterationPlan(msgspec.Struct, frozen=True, array_like=True):
    """One iteration. Applied in order: finished, new, block_deltas, swaps, copies; then work.

    `ahead` comes after `swaps` and before those of the next plan. The work neither writes nor reads what it reads or
    writes, so both can go on at the same time.
    """

    epoch: int
    iteration: int
    work: tuple[Work, ...]
    new: tuple[NewSequence, ...] = ()
    block_deltas: tuple[BlockDelta, ...] = ()
    copies: tuple[BlockCopy, ...] = ()
    finished: tuple[int, ...] = ()
    swaps: tuple[Swap, ...] = ()
    ahead: tuple[Swap, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens that the iteration runs."""
        return sum(work.num_tokens for work in self.work)


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log-probability of one token, and the likeliest ones in falling order (ids and values)."""

    logprob: float
    rank: int
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


class SequenceOutput(msgspec.Struct, frozen=True, array_like=True):
    """What one sequence's work gave: sampled tokens, and log-probabilities where asked.

    `prompt_logprobs` covers the positions start+1 .. start+num_tokens of the work that lie in the prompt; `pooled` is
    the vector of a sequence with `pooling`, packed float32.
    """

    seq_id: int
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    pooled: bytes = b""


# The failure code of KV that isn't finite, or led to what isn't; it may have come with a prefix from the cache.
NUMERICAL_ERROR = "numerical_error"
# The failure code of a sequence that would have read another's KV from a host's slot.
STALE_KV = "stale_kv"


class SequenceFailure(msgspec.Struct, frozen=True, array_like=True):
    """The work of one sequence failed (`code` is stable); no other sequence is touched."""

    seq_id: int
    code: str
    message: str


class IterationResult(msgspec.Struct, frozen=True, array_like=True):
    """The answer to the plan of the same (epoch, iteration).

    Args:
        stage_times: seconds that each pipeline stage worked.
        lost: (slot, generation) of what the disk doesn't hold after all. Who was to read it by this plan has neither
            output nor failure: its work was in vain.
    """

    epoch: int
    iteration: int
    outputs: tuple[SequenceOutput, ...]
    failures: tuple[SequenceFailure, ...] = ()
    stage_times: tuple[float, ...] = ()
    lost: tuple[tuple[int, int], ...] = ()
