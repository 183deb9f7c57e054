"""A model whose every token is known in advance, and a worker that holds its KV cache and checks each slot it reads.

KV of a position is a keyed hash of the weights, the owner and all tokens up to there; the next token is a hash of that,
the seed and the answer's index. So a lost, repeated or crossed token changes all that follow it.
"""

from __future__ import annotations

from dataclasses import dataclass

from beam_reference import Found, reference_steps

from orcinus.core.plan import (
    FED_BACK,
    Erase,
    IterationPlan,
    IterationResult,
    NewSequence,
    Output,
    SequenceFailure,
    SequenceOutput,
    Swap,
    SwapIn,
    SwapOut,
    TokenLogprobs,
    Work,
)
from orcinus.core.request import FinishReason, Request, unpack_tokens

VOCAB = 32
EOS = 7
# What the KV of a row that went wrong holds.
NAN = -1
_MASK = 2**64 - 1
_FACTOR = 0x9E3779B97F4A7C15


def absorb(state: int, token: int) -> int:
    """The KV of a position: that of the one before, and its token."""
    return (state * _FACTOR + token + 1) & _MASK


def mix(state: int, seed: int, index: int) -> int:
    """Well-mixed bits of all three."""
    for value in (seed & _MASK, index + 1):
        state = ((state ^ value) * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & _MASK
        state ^= state >> 29
    return state


def owner_state(tenant: str, cache_salt: str, weights_revision: str, adapter: str) -> int:
    """What comes before the first token: whose KV, and of which weights. Others' KV is foreign from there on."""
    state = 0
    for part in (tenant, cache_salt, weights_revision, adapter):
        state = absorb(state, 256)
        for byte in part.encode():
            state = absorb(state, byte)
    return state


def first_state(request: Request) -> int:
    """The same, of the one who asked."""
    return owner_state(request.tenant, request.cache_salt, request.weights_revision, request.adapter)


def states_of(tokens: list[int], state: int) -> list[int]:
    """The KV of each position."""
    states = []
    for token in tokens:
        state = absorb(state, token)
        states.append(state)
    return states


def sample(state: int, seed: int, index: int, banned: frozenset[int]) -> int:
    """The token that follows `state`; the next one in line if it is `banned` (too early for an end)."""
    token = mix(state, seed, index) % VOCAB
    while token in banned:
        token = (token + 1) % VOCAB
    return token


def values_of(state: int, seed: int) -> list[float]:
    """The log-probability of each token behind `state`: no two are equal."""
    return [-(mix(state, seed, token) % 2**40) / 2**37 for token in range(VOCAB)]


def right_search(request: Request) -> tuple[list[Found], list[set[tuple[int, ...]]]]:
    """The answers of a search, best first, and the beams that go on after each number of tokens."""
    states = {(): states_of(list(unpack_tokens(request.prompt)), first_state(request))[-1]}

    def values(tokens: tuple[int, ...]) -> list[float]:
        if tokens not in states:
            states[tokens] = absorb(states[tokens[:-1]], tokens[-1])
        return values_of(states[tokens], request.params.seed or 0)

    found, steps = reference_steps(values, request)
    return found, [{beam.tokens for beam in beams} for beams in steps]


def vector_of(state: int) -> bytes:
    """What the model makes of a prompt whose last KV is `state`."""
    return mix(state, 0, 0).to_bytes(8, "little")


def right_answer(request: Request, index: int) -> tuple[list[int], FinishReason]:
    """All tokens of one answer and why it ends, from the request alone; resumed tokens count."""
    if request.pooling is not None:
        return [], FinishReason.STOP
    state = states_of(list(unpack_tokens(request.prompt)), first_state(request))[-1]
    known = list(unpack_tokens(request.resumed[index])) if request.resumed else []
    ends, least, tokens = request.end_token_ids, request.params.min_tokens, list[int]()
    for made in range(request.max_tokens):
        banned = ends if made < least else frozenset[int]()
        token = known[made] if made < len(known) else sample(state, request.params.seed or 0, index, banned)
        state = absorb(state, token)
        tokens.append(token)
        if token in ends and len(tokens) > least:
            return tokens, FinishReason.STOP
    return tokens, FinishReason.LENGTH


@dataclass(slots=True)
class Held:
    """What the worker holds of one sequence; `states` is the KV that each of `tokens` ought to have."""

    new: NewSequence
    tokens: list[int]
    states: list[int]
    table: list[int]
    first: int
    failed_with: str = ""

    def append(self, token: int) -> None:
        """One more token."""
        self.states.append(absorb(self.states[-1], token))
        self.tokens.append(token)


@dataclass(slots=True)
class Trouble:
    """What goes wrong while one plan runs: the `row`th row fails with `code`, or the copies do.

    A numerical error leaves KV that isn't finite; any other failure leaves the row's KV unmade.
    """

    row: int
    code: str
    in_copies: bool = False
    in_disk: bool = False


@dataclass(slots=True)
class Slot:
    """One of host or disk. A disk may lose it, and says so when it notices."""

    generation: int
    content: list[int | None]
    key: bytes
    parent: bytes


class Worker:
    """Applies plans in order. `first_states` is told by the world, for no worker knows tenants.

    Slots from `first_disk_slot` on are the disk's, and outlive the memory.
    """

    def __init__(self, block_size: int, first_disk_slot: int = 0) -> None:
        self._size = block_size
        self._first_disk_slot = first_disk_slot
        self.elsewhere: dict[int, Slot] = {}
        self._lost: list[tuple[int, int]] = []
        # Sequences whose KV could not be read, in the plan that runs.
        self._in_vain: set[int] = set()
        self._epoch = 0
        self.sequences: dict[int, Held] = {}
        self.slots: dict[int, list[int | None]] = {}
        self.first_states: dict[int, int] = {}
        self.num_sampled = 0

    def lose_memory(self) -> None:
        """The KV is gone."""
        self.slots.clear()
        self.elsewhere = self.disk

    @property
    def disk(self) -> dict[int, Slot]:
        """What it holds."""
        return {at: slot for at, slot in self.elsewhere.items() if at >= self._first_disk_slot}

    def run(self, plan: IterationPlan, trouble: Trouble | None = None) -> IterationResult:
        """State changes, then all writes, then all reads, then what comes out."""
        if trouble is not None and trouble.in_disk:
            self._spoil_disk(plan, trouble.row)
        self.apply_state(plan, copies=trouble is None or not trouble.in_copies)
        if trouble is not None:
            self._break(plan, trouble)
        # Beside the work: it must not matter which comes first.
        if plan.iteration % 2:
            self.apply_ahead(plan)
        for work in plan.work:
            if work.seq_id not in self._in_vain:
                self.write(work)
        if not plan.iteration % 2:
            self.apply_ahead(plan)
        outputs, failures = [], []
        for work in plan.work:
            held = self.sequences[work.seq_id]
            if work.seq_id in self._in_vain:
                # It has a token made of nothing now, as a real worker has.
                held.tokens.append(0)
                held.states.append(NAN)
                continue
            if held.failed_with:
                failures.append(SequenceFailure(work.seq_id, held.failed_with, "planned"))
                # The next plan may already feed it back.
                if Output.SAMPLE in work.output:
                    held.append(0)
                continue
            self._read(held, work)
            if work.output:
                outputs.append(self._answer(held, work))
        lost, self._lost = tuple(self._lost), []
        return IterationResult(plan.epoch, plan.iteration, tuple(outputs), tuple(failures), lost=lost)

    def _spoil_disk(self, plan: IterationPlan, which: int) -> None:
        """A slot that somebody is about to read can't be read any more; or every other one, for those who will."""
        swaps = (*plan.swaps, *plan.ahead)
        wanted = [swap.slot for swap in swaps if isinstance(swap, SwapIn) and swap.slot in self.disk]
        lost = [wanted[which % len(wanted)]] if wanted else list(self.disk)[which % 2 :: 2]
        for slot in lost:
            del self.elsewhere[slot]

    def _break(self, plan: IterationPlan, trouble: Trouble) -> None:
        targets = {copy.target for copy in plan.copies}
        for place, work in enumerate(plan.work):
            held = self.sequences[work.seq_id]
            if targets & set(held.table) if trouble.in_copies else place == trouble.row % len(plan.work):
                held.failed_with = held.failed_with or trouble.code

    def apply_state(self, plan: IterationPlan, *, copies: bool = True) -> None:
        """Everything of the plan that its work needs."""
        if plan.epoch != self._epoch:
            assert plan.epoch > self._epoch, "a plan of an older epoch was issued"
            self.sequences.clear()
            self._epoch = plan.epoch
        for seq_id in plan.finished:
            assert self.sequences.pop(seq_id, None), f"sequence {seq_id} is forgotten twice"
        for new in plan.new:
            assert new.seq_id not in self.sequences, f"sequence {new.seq_id} is stated twice"
            self.sequences[new.seq_id] = self._hold(new)
        for delta in plan.block_deltas:
            table = self.sequences[delta.seq_id].table
            assert delta.start <= len(table), "a block delta leaves a gap"
            table[delta.start :] = unpack_tokens(delta.blocks)
        self._in_vain = set()
        for swap in plan.swaps:
            self._swap(swap)
        for copy in plan.copies if copies else ():
            assert copy.source in self.slots, "a block is copied that nobody has written"
            self.slots[copy.target] = list(self.slots[copy.source])

    def apply_ahead(self, plan: IterationPlan) -> None:
        """What nobody in the plan waits for."""
        for swap in plan.ahead:
            self._swap(swap)
        waited = {swap.seq_id for swap in plan.swaps if isinstance(swap, SwapIn)}
        self._in_vain &= waited

    def _swap(self, swap: Swap) -> None:
        match swap:
            case SwapOut():
                content = list(self.slots[swap.block])
                assert None not in content, "I6: a block leaves that isn't full"
                self.elsewhere[swap.slot] = Slot(swap.generation, content, swap.key, swap.parent)
            case SwapIn():
                self._swap_in(swap)
            case Erase():
                assert swap.slot >= self._first_disk_slot, "a host's slot needs no erasing"
                self.elsewhere.pop(swap.slot, None)

    def _swap_in(self, swap: SwapIn) -> None:
        there = self.elsewhere.get(swap.slot)
        is_disk = swap.slot >= self._first_disk_slot
        if is_disk and (there is None or there.generation != swap.generation):
            self._lost.append((swap.slot, swap.generation))
            self._in_vain.add(swap.seq_id)
            return
        assert there is not None, "an empty slot is read"
        assert there.generation == swap.generation, "a stale slot is read"
        self.slots[swap.block] = list(there.content)

    def _hold(self, new: NewSequence) -> Held:
        tokens, first = list(unpack_tokens(new.tokens)), self.first_states[new.seq_id]
        return Held(new, tokens, states_of(tokens, first), list(unpack_tokens(new.blocks)), first)

    def write(self, work: Work) -> None:
        """Make the KV of one sequence's tokens."""
        held, end = self.sequences[work.seq_id], work.start + work.num_tokens
        assert end <= len(held.tokens), "work lies past the tokens that the worker knows"
        if work.tokens == FED_BACK:
            assert (work.num_tokens, end) == (1, len(held.tokens)), "the worker holds no token to feed back"
        else:
            given = list(unpack_tokens(work.tokens))
            assert given == held.tokens[work.start : end], "input tokens differ from the worker's"
        for at in range(work.start, end):
            slots = self.slots.setdefault(held.table[at // self._size], [None] * self._size)
            slots[at % self._size] = NAN if held.failed_with else held.states[at]

    def _read(self, held: Held, work: Work) -> None:
        end, size = work.start + work.num_tokens, self._size
        for entry, start in enumerate(range(0, end, size)):
            stop = min(start + size, end)
            there = self.slots[held.table[entry]][: stop - start]
            assert there == held.states[start:stop], f"sequence {work.seq_id} reads foreign KV near {start}"

    def _answer(self, held: Held, work: Work) -> SequenceOutput:
        end, new = work.start + work.num_tokens, held.new
        tokens: tuple[int, ...] = ()
        logprobs: tuple[TokenLogprobs, ...] = ()
        prompt_logprobs: tuple[TokenLogprobs, ...] = ()
        if Output.SAMPLE in work.output:
            assert end == len(held.tokens), "a sample is asked for while tokens are missing"
            if new.num_candidates:
                return self._continuations(held)
            tokens = (self._sample(held),)
            logprobs = (TokenLogprobs(float(end), 0),) if new.params.logprobs is not None else ()
        if Output.PROMPT_LOGPROBS in work.output:
            ends_at = min(end + 1, new.num_prompt_tokens)
            prompt_logprobs = tuple(TokenLogprobs(float(at), 0) for at in range(work.start + 1, ends_at))
        if Output.POOLED in work.output:
            assert end == new.num_prompt_tokens == len(held.tokens), "a vector of half a prompt"
            assert new.pooling is not None
            assert work.start == 0 or not new.pooling.whole, "the prompt was cut"
            return SequenceOutput(work.seq_id, (), pooled=vector_of(held.states[-1]))
        return SequenceOutput(work.seq_id, tokens, logprobs, prompt_logprobs)

    def _continuations(self, held: Held) -> SequenceOutput:
        """What a search chooses from. The worker goes on with the likeliest one that is allowed."""
        new, values = held.new, values_of(held.states[-1], held.new.params.seed or 0)
        order = sorted(range(VOCAB), key=lambda token: -values[token])
        banned = new.end_token_ids if len(held.tokens) - new.num_prompt_tokens < new.params.min_tokens else ()
        sampled = next(token for token in order if token not in banned)
        held.append(sampled)
        self.num_sampled += 1
        top = tuple(order[: new.num_candidates])
        found = TokenLogprobs(values[sampled], 1, top, tuple(values[token] for token in top))
        return SequenceOutput(new.seq_id, (sampled,), (found,))

    def _sample(self, held: Held) -> int:
        new = held.new
        made = len(held.tokens) - new.num_prompt_tokens
        banned = frozenset(new.end_token_ids) if made < new.params.min_tokens else frozenset[int]()
        token = sample(held.states[-1], new.params.seed or 0, new.index, banned)
        held.append(token)
        self.num_sampled += 1
        return token
