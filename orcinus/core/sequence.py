"""The mutable side of a request: its sequences, known to core alone."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from enum import Enum, auto

from orcinus.core.beams import Beams
from orcinus.core.kv.table import BlockTable
from orcinus.core.request import FinishReason, Request, unpack_tokens


class SequenceState(Enum):
    """WAITING → RUNNING → FINISHED; PREEMPTED waits again, with its place in the order kept."""

    WAITING = auto()
    RUNNING = auto()
    PREEMPTED = auto()
    FINISHED = auto()


class Sequence:
    """One line of tokens being produced.

    Three positions say everything about its progress: `num_computed` ≤ `num_scheduled` ≤ `num_tokens` + `num_pending`.
    KV exists below the first, is being made below the second; the gap to the third is what is missing. There is no
    prefill and no decode: an iteration runs some of what is missing.
    """

    __slots__ = (
        "end_token_ids",
        "finish_reason",
        "in_flight",
        "incarnation",
        "index",
        "is_forked",
        "is_known",
        "last_iteration",
        "max_tokens",
        "num_computed",
        "num_found_blocks",
        "num_pending",
        "num_prompt_logprobs",
        "num_prompt_tokens",
        "num_scheduled",
        "num_shared_blocks",
        "reads_disk",
        "request",
        "seq_id",
        "state",
        "table",
        "tokens",
    )

    def __init__(self, seq_id: int, request: Request, index: int) -> None:
        self.seq_id = seq_id
        self.request = request
        self.index = index
        self.max_tokens = request.max_tokens
        self.tokens: array[int] = unpack_tokens(request.prompt)
        self.num_prompt_tokens = len(self.tokens)
        if request.resumed and request.beams is None:
            self.tokens.extend(unpack_tokens(request.resumed[index]))
        self.end_token_ids = request.end_token_ids
        self.table = BlockTable()
        self.state = SequenceState.WAITING
        self.finish_reason: FinishReason | None = None
        # Tokens whose KV exists, tokens whose KV exists or is in flight, tokens sampled in flight.
        self.num_computed = 0
        self.num_scheduled = 0
        self.num_pending = 0
        self.num_prompt_logprobs = 0
        # Leading blocks that are the radix tree's, and how many of them others had computed when it first began.
        self.num_shared_blocks = 0
        self.num_found_blocks = 0
        # Plans in flight with work for it, and the iteration of the newest.
        self.in_flight = 0
        self.last_iteration = -1
        # Raised when the KV is dropped: what was in flight then still gives its tokens, but no KV.
        self.incarnation = 0
        # The plan in flight reads some of its KV from disk: should that fail, it goes back to where it stood.
        self.reads_disk = False
        # The workers hold its state.
        self.is_known = False
        # Its prompt KV came from its group's leader (n > 1).
        self.is_forked = False

    @property
    def num_tokens(self) -> int:
        """Tokens known: prompt and generated."""
        return len(self.tokens)

    @property
    def num_generated(self) -> int:
        """Tokens generated and known, the resumed ones included."""
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def num_missing(self) -> int:
        """Tokens, known or in flight, whose KV nobody is computing yet."""
        return len(self.tokens) + self.num_pending - self.num_scheduled

    @property
    def is_decoding(self) -> bool:
        """One token is missing, and it has begun: its place in the token budget is set aside first."""
        # Spelt out: these are asked for each sequence of each plan.
        return self.num_scheduled > 0 and len(self.tokens) + self.num_pending - self.num_scheduled == 1

    @property
    def is_finished(self) -> bool:
        """It has ended; nothing of it is delivered any more."""
        return self.state is SequenceState.FINISHED

    def wants_more(self) -> bool:
        """Another token may be sampled: the limit isn't reached by those known and in flight."""
        if self.request.pooling is not None:
            return self.num_pending == 0
        return len(self.tokens) - self.num_prompt_tokens + self.num_pending < self.max_tokens

    def reason_to_stop(self, token: int) -> FinishReason | None:
        """Why the answer is over after `token`, its newest one, if it is."""
        generated = len(self.tokens) - self.num_prompt_tokens
        if token in self.end_token_ids and generated > self.request.params.min_tokens:
            return FinishReason.STOP
        return FinishReason.LENGTH if generated >= self.max_tokens else None

    def settle(self) -> None:
        """A resumed answer that is complete has ended, and its client was told so before the failure."""
        if self.num_generated:
            self.finish_reason = self.reason_to_stop(self.tokens[-1])
        if self.finish_reason is not None:
            self.state = SequenceState.FINISHED

    def drop_kv(self) -> None:
        """Forget positions; the caller has taken the blocks back. Tokens stay: they are recomputed as one prefill."""
        self.num_computed = 0
        self.num_scheduled = 0
        self.num_shared_blocks = 0
        self.is_forked = False
        self.incarnation += 1


@dataclass(slots=True, eq=False)
class SequenceGroup:
    """The n sequences of one request: admitted together, preempted together (vLLM, SOSP '23, §4.5).

    `number` counts requests in the order of `add`, and breaks ties of arrival. `cached_tokens` of the prompt were found
    in the radix tree when it first began; None before that. `beams` choose the tokens of a search. `pinned_blocks` are
    promised to one that runs and was preempted too often to be preempted again.
    """

    request: Request
    number: int
    sequences: list[Sequence]
    reserved: int = 0
    pinned_blocks: int = 0
    num_preemptions: int = 0
    cached_tokens: int | None = None
    beams: Beams | None = None
    blocked_by: str = ""
    order: tuple[float, ...] = field(default=())

    @property
    def live(self) -> list[Sequence]:
        """The sequences that have not finished."""
        return [sequence for sequence in self.sequences if sequence.state is not SequenceState.FINISHED]

    @property
    def is_in_flight(self) -> bool:
        """A plan in flight has work for one of its sequences."""
        return any(sequence.in_flight for sequence in self.sequences)

    def leader(self) -> Sequence | None:
        """The sequence that computes the prompt for the others: the first one alive."""
        return next((s for s in self.sequences if s.state is not SequenceState.FINISHED and self.goes_on(s)), None)

    def goes_on(self, sequence: Sequence) -> bool:
        """Not so a sequence that no beam is in yet, or no more."""
        return self.beams is None or self.beams.runs(sequence.index)

    def gang(self) -> list[Sequence]:
        """The beams, if each of them lacks its next token: none goes on without the others. Nothing if some lag."""
        beams = [sequence for sequence in self.live if self.goes_on(sequence)] if self.beams else []
        return beams if all(each.is_decoding and not each.in_flight for each in beams) else []
