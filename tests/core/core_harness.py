"""A worker without a model, and a driver that knows every token in advance.

The model is closed-form: token = keyed hash of (seed, answer, position). So a lost, repeated or crossed token shows at
once. The KV content of a slot is the hash of the token prefix that it stands for, so each scheduled sequence can be
asked, at each position, whether attention would read its own past and nothing else.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

import msgspec
from beam_reference import Found, Values, reference_search

from orcinus.core.config import SchedulerConfig
from orcinus.core.core import Collect, Core, Decision, Expired, Submit
from orcinus.core.kv.radix import Namespace
from orcinus.core.plan import (
    FED_BACK,
    NUMERICAL_ERROR,
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
from orcinus.core.progress import Progress
from orcinus.core.recording import Recorder
from orcinus.core.request import (
    FinishReason,
    Pooling,
    Request,
    SamplingParams,
    ServiceClass,
    pack_tokens,
    unpack_tokens,
)
from orcinus.core.sequence import Sequence, SequenceGroup

VOCAB = 32
EOS = 7
NAN = -1
_MASK = 2**64 - 1


def mix(*values: int) -> int:
    """64 well-mixed bits of `values`."""
    state = 0x9E3779B97F4A7C15
    for value in values:
        state = ((state ^ value) * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & _MASK
        state ^= state >> 29
    return state


def closed_form_token(
    params: SamplingParams, end_token_ids: tuple[int, ...], num_prompt: int, index: int, at: int
) -> int:
    """The token that the model samples for position `at`."""
    token = mix(params.seed or 0, index, at) % VOCAB
    while at - num_prompt < params.min_tokens and token in end_token_ids:
        token = (token + 1) % VOCAB
    return token


def closed_form_values(request: Request) -> Values:
    """What the model says of each token behind an answer that has begun in some way: no two values are equal."""

    def values(tokens: tuple[int, ...]) -> list[float]:
        beginning = mix(request.params.seed or 0, *tokens)
        return [-(mix(beginning, token) % 2**40) / 2**37 for token in range(VOCAB)]

    return values


@cache
def found_by_search(request_id: str, packed: bytes) -> list[Found]:
    """The answers of a search, best first; by the request as bytes, for it can't be hashed."""
    request = msgspec.msgpack.decode(packed, type=Request)
    return reference_search(closed_form_values(request), request)


def expected_search(request: Request) -> list[Found]:
    return found_by_search(request.request_id, msgspec.msgpack.encode(msgspec.structs.replace(request, arrived_at=0)))


def expected_answer(request: Request, index: int) -> tuple[list[int], FinishReason]:
    """The whole answer and why it ends, from the request alone; resumed tokens included."""
    if request.beams is not None:
        found = expected_search(request)[index]
        return list(found.tokens), found.reason
    if request.pooling is not None:
        return [], FinishReason.STOP
    ends = tuple(sorted(request.end_token_ids))
    resumed = unpack_tokens(request.resumed[index]) if request.resumed else ()
    prompt, tokens = request.num_prompt_tokens, list[int]()
    for made in range(request.max_tokens):
        known = made < len(resumed)
        tokens.append(resumed[made] if known else closed_form_token(request.params, ends, prompt, index, prompt + made))
        if tokens[-1] in ends and len(tokens) > request.params.min_tokens:
            return tokens, FinishReason.STOP
    return tokens, FinishReason.LENGTH


def make_request(
    request_id: str,
    prompt: list[int] | int = 4,
    max_tokens: int = 4,
    *,
    seed: int = 1,
    arrived_at: float = 0.0,
    service_class: ServiceClass = ServiceClass.NORMAL,
    resumed: tuple[bytes, ...] = (),
    eos: tuple[int, ...] = (),
    pooling: Pooling | None = None,
    tenant: str = "",
    cache_salt: str = "",
    **params: object,
) -> Request:
    """A request; `prompt` as a number gives that many tokens that no other seed has."""
    tokens = [mix(seed, at, 99) % VOCAB for at in range(prompt)] if isinstance(prompt, int) else prompt
    return Request(
        request_id=request_id,
        prompt=pack_tokens(tokens),
        params=SamplingParams(max_tokens=max_tokens, seed=seed, **params),  # type: ignore[arg-type]
        eos_token_ids=eos,
        arrived_at=arrived_at,
        service_class=service_class,
        resumed=resumed,
        pooling=pooling,
        tenant=tenant,
        cache_salt=cache_salt,
    )


def closed_form_vector(tokens: bytes) -> bytes:
    """The vector that the model makes of a prompt."""
    return mix(*unpack_tokens(tokens)).to_bytes(8, "little")


def first_state(namespace: Namespace) -> int:
    """What the KV of a namespace begins with: content of another tenant, or of other weights, is foreign."""
    return mix(*b"|".join(part.encode() for part in namespace))


def prefix_states(tokens: list[int], state: int) -> list[int]:
    """What the KV at each position stands for: all tokens up to it."""
    states = []
    for token in tokens:
        state = hash((state, token))
        states.append(state)
    return states


@dataclass
class WorkerSequence:
    """What a worker holds of one sequence."""

    new: NewSequence
    tokens: list[int]
    table: list[int]
    is_broken: bool = False


class PrefixWorker:
    """Applies plans as a worker does and checks, by content, every slot that attention would read."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.epoch = 0
        self.sequences: dict[int, WorkerSequence] = {}
        self.slots: dict[int, dict[int, int]] = defaultdict(dict)
        # Of host and disk: generation and content.
        self.elsewhere: dict[int, tuple[int, dict[int, int]]] = {}
        # Told by the world, for no worker knows tenants.
        self.namespaces: dict[int, Namespace] = {}

    def lose_memory(self) -> None:
        """The KV is gone."""
        self.slots.clear()

    def run(self, plan: IterationPlan, failing: frozenset[int] = frozenset(), code: str = "nan") -> IterationResult:
        """State changes, then all writes, then all reads, then samples."""
        self.apply_state(plan)
        for work in plan.work:
            self.sequences[work.seq_id].is_broken |= work.seq_id in failing
            self.write(work)
        for work in plan.work:
            if not self.sequences[work.seq_id].is_broken:
                self._read(work)
        outputs, failures = [], []
        for work in plan.work:
            if work.seq_id in failing:
                failures.append(SequenceFailure(work.seq_id, code, "a row holds NaN"))
                # Something must be there to feed back: under look-ahead the next plan may already name it.
                self.sequences[work.seq_id].tokens += [0] * (Output.SAMPLE in work.output)
            elif work.output:
                outputs.append(self._answer(work))
        return IterationResult(plan.epoch, plan.iteration, tuple(outputs), tuple(failures))

    def apply_state(self, plan: IterationPlan) -> None:
        """Everything of the plan but its work."""
        if plan.epoch != self.epoch:
            assert plan.epoch > self.epoch, "a plan of an older epoch was issued"
            self.sequences.clear()
            self.epoch = plan.epoch
        for seq_id in plan.finished:
            del self.sequences[seq_id]
        for new in plan.new:
            assert new.seq_id not in self.sequences, f"sequence {new.seq_id} is stated twice"
            self.sequences[new.seq_id] = WorkerSequence(
                new, list(unpack_tokens(new.tokens)), list(unpack_tokens(new.blocks))
            )
        for delta in plan.block_deltas:
            table = self.sequences[delta.seq_id].table
            assert delta.start <= len(table), "a block delta leaves a gap"
            table[delta.start :] = unpack_tokens(delta.blocks)
        for swap in (*plan.swaps, *plan.ahead):
            self._swap(swap)
        for copy in plan.copies:
            self.slots[copy.target] = dict(self.slots[copy.source])

    def _swap(self, swap: Swap) -> None:
        match swap:
            case SwapOut():
                self.elsewhere[swap.slot] = (swap.generation, dict(self.slots[swap.block]))
            case SwapIn():
                generation, content = self.elsewhere[swap.slot]
                assert generation == swap.generation, "a stale slot is read"
                self.slots[swap.block] = dict(content)
            case Erase():
                del self.elsewhere[swap.slot]

    def write(self, work: Work) -> None:
        """Write the KV of one sequence's tokens; of one that has failed it is worth nothing."""
        sequence = self.sequences[work.seq_id]
        end = work.start + work.num_tokens
        if work.tokens == FED_BACK:
            assert work.num_tokens == 1
            assert end == len(sequence.tokens), "the worker holds no token to feed back"
        else:
            given = list(unpack_tokens(work.tokens))
            assert given == sequence.tokens[work.start : end], "input tokens differ from the worker's"
        for at, prefix in enumerate(self._prefixes(sequence, end)):
            if at >= work.start:
                block, offset = self._slot(sequence, at)
                self.slots[block][offset] = NAN if sequence.is_broken else prefix

    def _read(self, work: Work) -> None:
        sequence = self.sequences[work.seq_id]
        for at, prefix in enumerate(self._prefixes(sequence, work.start + work.num_tokens)):
            block, offset = self._slot(sequence, at)
            assert self.slots[block].get(offset) == prefix, f"sequence {work.seq_id} reads foreign KV at {at}"

    def _answer(self, work: Work) -> SequenceOutput:
        sequence, end = self.sequences[work.seq_id], work.start + work.num_tokens
        new = sequence.new
        tokens: tuple[int, ...] = ()
        logprobs: tuple[TokenLogprobs, ...] = ()
        prompt_logprobs: tuple[TokenLogprobs, ...] = ()
        if Output.SAMPLE in work.output and new.num_candidates:
            return self._continuations(sequence, work)
        if Output.SAMPLE in work.output:
            assert end == len(sequence.tokens), "a sample is asked for while tokens are missing"
            token = closed_form_token(new.params, new.end_token_ids, new.num_prompt_tokens, new.index, end)
            sequence.tokens.append(token)
            tokens = (token,)
            logprobs = (TokenLogprobs(float(end), 0),) if new.params.logprobs is not None else ()
        if Output.PROMPT_LOGPROBS in work.output:
            ends_at = min(end + 1, new.num_prompt_tokens)
            prompt_logprobs = tuple(TokenLogprobs(float(at), 0) for at in range(work.start + 1, ends_at))
        if Output.POOLED in work.output:
            assert end == new.num_prompt_tokens == len(sequence.tokens), "a vector of half a prompt"
            assert new.pooling is not None
            assert work.start == 0 or not new.pooling.whole, "the prompt was cut"
            return SequenceOutput(work.seq_id, (), pooled=closed_form_vector(new.tokens))
        return SequenceOutput(work.seq_id, tokens, logprobs, prompt_logprobs)

    def _continuations(self, sequence: WorkerSequence, work: Work) -> SequenceOutput:
        """The likeliest of them, and the first one that isn't masked as what the worker goes on with."""
        new, end = sequence.new, work.start + work.num_tokens
        assert end == len(sequence.tokens), "a sample is asked for while tokens are missing"
        answer = tuple(sequence.tokens[new.num_prompt_tokens :])
        values = closed_form_values(Request(request_id="", prompt=b"", params=new.params))(answer)
        order = sorted(range(VOCAB), key=lambda token: -values[token])
        masked = new.end_token_ids if len(answer) < new.params.min_tokens else ()
        sampled = next(token for token in order if token not in masked)
        sequence.tokens.append(sampled)
        top = tuple(order[: new.num_candidates])
        found = TokenLogprobs(values[sampled], 1, top, tuple(values[token] for token in top))
        return SequenceOutput(work.seq_id, (sampled,), (found,))

    def _prefixes(self, sequence: WorkerSequence, end: int) -> list[int]:
        first = first_state(self.namespaces[sequence.new.seq_id])
        prefixes = prefix_states(sequence.tokens[:end], first)
        assert len(prefixes) == end, "work lies past the tokens that the worker knows"
        return prefixes

    def _slot(self, sequence: WorkerSequence, at: int) -> tuple[int, int]:
        return sequence.table[at // self.block_size], at % self.block_size


@dataclass
class Delivered:
    """What the client of one answer has seen."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_token: int | None = None
    cached_tokens: int | None = None


@dataclass
class PlanOut:
    """A plan in flight, and the blocks it may touch; the worker may or may not have run it yet."""

    plan: IterationPlan
    blocks: frozenset[int]
    result: IterationResult | None = None


class World:
    """Core, a worker, and clients that check what they get. Every action is followed by every check."""

    def __init__(self, config: SchedulerConfig, record: list[bytes] | None = None) -> None:
        self.config = config
        self.scheduler = (plain := Core(config)).scheduler
        self.journal = plain.journal
        self.core = plain if record is None else Recorder(plain, b"key", record.append)
        self.worker = PrefixWorker(config.block_size)
        self.now = 0.0
        self.in_flight: deque[PlanOut] = deque()
        self.stale: list[IterationResult] = []
        self.requests: dict[str, Request] = {}
        self.delivered: dict[tuple[str, int], Delivered] = {}
        self.stopped: set[str] = set()

    # ---- inputs

    def add(self, request: Request) -> None:
        self.core.add(request, self._tick())
        self.requests.pop(request.request_id, None)
        self.requests[request.request_id] = request
        for index in range(request.params.n):
            resumed = list(unpack_tokens(request.resumed[index])) if request.resumed else []
            delivered = Delivered(resumed)
            self.stopped.discard(request.request_id)
            answer, reason = expected_answer(request, index)
            if request.resumed and answer == resumed:
                delivered.finish_reason = reason
            self.delivered[request.request_id, index] = delivered
        self.check()

    def abort(
        self, request_id: str, index: int | None = None, cause: FinishReason = FinishReason.ABORT
    ) -> list[Progress]:
        progress = self.core.abort(request_id, self._tick(), index, cause)
        if progress:
            self.stopped.add(request_id)
        self._deliver(progress)
        self.check()
        return progress

    def advance(self) -> Decision:
        late = [g.request.request_id for g in self.scheduler.groups() if (g.request.deadline or 1e9) <= self.now]
        before = self.scheduler.num_in_flight
        gangs = self._gangs()
        now = self._tick()
        self.scheduler.refresh(now)
        waiting = list(self.scheduler.waiting)
        decision = self.core.advance(now)
        if not isinstance(decision, Expired):
            self._check_nobody_was_overtaken(waiting)
        if isinstance(decision, Submit):
            assert not late, "work for a request whose deadline has passed"
            self._check_plan(decision.plan)
            ids = {work.seq_id for work in decision.plan.work}
            # Who made way in this very pass may begin again in it, each beam by itself.
            steady = [gang for group, times, gang in gangs if group.num_preemptions == times]
            assert all(gang <= ids or not gang & ids for gang in steady), "beams that could go together did not"
            by_id = self._sequences()
            for new in decision.plan.new:
                self.worker.namespaces[new.seq_id] = Namespace.of(by_id[new.seq_id].request)
            touched = {block for work in decision.plan.work for block in by_id[work.seq_id].table.blocks}
            touched |= {copy.source for copy in decision.plan.copies}
            self.in_flight.append(PlanOut(decision.plan, frozenset(touched)))
        elif isinstance(decision, Expired):
            for end in decision.progress:
                deadline = self.requests[end.request_id].deadline
                assert deadline is not None
                assert deadline <= self.now, "ended before its deadline"
            self._deliver(decision.progress)
        elif isinstance(decision, Collect):
            assert before > 0
        else:
            assert not self.scheduler.groups(), "there is work and nothing in flight, yet core is idle"
        self.check()
        return decision

    def run_next(self, failing: frozenset[int] = frozenset(), code: str = "nan") -> None:
        """The worker runs the oldest plan that it hasn't run."""
        for out in self.in_flight:
            if out.result is None:
                out.result = self.worker.run(out.plan, failing, code)
                return

    def collect(self) -> list[Progress]:
        """The oldest result comes in."""
        if self.in_flight[0].result is None:
            self.run_next()
        out = self.in_flight.popleft()
        assert out.result is not None
        doubtful = self._doubtful_blocks(out.result)
        progress = self.core.update(out.result, self._tick())
        for sequence, blocks in doubtful:
            # Another answer of the request may have ended well in this very iteration.
            if sequence.finish_reason is FinishReason.ERROR:
                assert not any(map(self.scheduler.cache.holds, blocks)), "a failed request's KV is shared"
        self._deliver(progress)
        self.check()
        return progress

    def new_epoch(self, *, kv_lost: bool, half_done: int = 0) -> None:
        """Plans in flight are abandoned; the worker had begun `half_done` units of the first one that it hasn't run."""
        self._run_partly(half_done)
        self.stale += [out.result for out in self.in_flight if out.result is not None]
        self.in_flight.clear()
        if kv_lost:
            self.worker.lose_memory()
        self.core.new_epoch(self._tick(), kv_lost=kv_lost)
        self.check()

    def deliver_stale(self) -> None:
        """A result of an older epoch comes in late."""
        if self.stale:
            assert self.core.update(self.stale.pop(), self._tick()) == []
            self.check()

    # ---- loops

    def step(self) -> Decision:
        """Submit if core can, else collect."""
        decision = self.advance()
        if isinstance(decision, Collect):
            self.collect()
        return decision

    def drain(self, limit: int = 20_000) -> None:
        """Run until nothing is left, then check that nothing is left."""
        for _ in range(limit):
            if not self.scheduler.groups() and not self.in_flight:
                break
            self.step()
        else:
            raise AssertionError("no end in sight")
        self._check_quiescence()

    # ---- checks

    def check(self) -> None:
        self.scheduler.check()
        pool = self.scheduler.pool
        limbo_is_explained = pool.num_limbo == 0 or self.in_flight
        assert limbo_is_explained, "blocks wait for a plan, and none is in flight"
        if self.config.admission == "reserve":
            assert not any(group.num_preemptions for group in self.scheduler.groups())
        idle = {*pool._free, *pool._cached}
        assert not any(out.blocks & idle for out in self.in_flight), "a block could be handed out that a plan may touch"
        self._check_cache()

    def _gangs(self) -> list[tuple[SequenceGroup, int, set[int]]]:
        """Of each search its preemptions and its beams, if each of them lacks its next token and nothing else."""
        gangs = []
        for group in self.scheduler.running:
            beams = [s for s in group.live if s.table.blocks] if group.request.beams is not None else []
            if all(s.num_computed == s.num_tokens - 1 and not s.in_flight for s in beams):
                gangs.append((group, group.num_preemptions, {s.seq_id for s in beams}))
        return gangs

    def _check_cache(self) -> None:
        """Each block that can be found is full, and holds the KV of just the tokens that it is found by."""
        size = self.config.block_size
        for namespace, packed, blocks in self.scheduler.cache.paths():
            assert self.config.enable_prefix_caching
            states = prefix_states(list(unpack_tokens(packed)), first_state(namespace))
            for place, block in enumerate(blocks):
                expected = dict(enumerate(states[place * size : (place + 1) * size]))
                assert self.worker.slots[block] == expected, f"block {block} is found by other tokens than it holds"

    def _doubtful_blocks(self, result: IterationResult) -> list[tuple[Sequence, list[int]]]:
        """Blocks that requests which fail now have computed; or found, where their KV isn't finite."""
        by_id = self._sequences()
        doubtful = []
        for failure in result.failures:
            failed = by_id.get(failure.seq_id)
            group = next((g for g in self.scheduler.groups() if failed in g.live), None)
            for sequence in group.live if group and result.epoch == self.scheduler.epoch else ():
                found = 0 if failure.code == NUMERICAL_ERROR else sequence.num_found_blocks
                doubtful.append((sequence, sequence.table.blocks[found:]))
        return doubtful

    def _sequences(self) -> dict[int, Sequence]:
        return {s.seq_id: s for group in self.scheduler.groups() for s in group.sequences}

    def _is_next_piece(self, seq_id: int, plan: IterationPlan, others: list[Work]) -> bool:
        """All in flight are pieces of one prompt, in a row, one a stage at most."""
        pieces = [*others, *(work for work in plan.work if work.seq_id == seq_id)]
        in_a_row = all(a.start + a.num_tokens == b.start for a, b in pairwise(pieces))
        unsampled = not any(piece.output & Output.SAMPLE for piece in others)
        return self.config.even_plans and in_a_row and unsampled and len(pieces) <= self.config.num_stages

    def _check_plan(self, plan: IterationPlan) -> None:
        config = self.config
        assert plan.epoch == self.scheduler.epoch
        assert plan.work
        assert plan.num_tokens <= config.max_batch_tokens, "the token budget is exceeded"
        assert len(plan.work) <= config.max_batch_size
        ids = [work.seq_id for work in plan.work]
        sequences = self._sequences()
        assert len(set(ids)) == len(ids), "a sequence is twice in one plan"
        for seq_id in ids:
            others = [work for out in self.in_flight for work in out.plan.work if work.seq_id == seq_id]
            ahead = config.lookahead if sequences[seq_id].request.beams is None else 0
            assert len(others) <= ahead or self._is_next_piece(seq_id, plan, others), "plans in flight share a sequence"
        for work in plan.work:
            self._check_writable(sequences[work.seq_id], work)
        copiers = [copy.target for copy in plan.copies]
        assert len(set(copiers)) == len(copiers) <= len(plan.work), "more than one copy a sequence"

    def _check_nobody_was_overtaken(self, waiting: list[SequenceGroup]) -> None:
        """Who starts leaves nobody behind that ranked before it; with fcfs, preempted ones included."""
        left = self.scheduler.waiting
        starters = [group for group in waiting if group not in left]
        # Under these two, who starts changes the ranks of those that are left.
        if self.config.policy not in ("prefix", "fair"):
            assert starters == waiting[: len(starters)], "somebody overtook"
        for starter in starters if self.config.policy == "fcfs" else ():
            for group in left:
                if group.request.service_class == starter.request.service_class:
                    assert self._arrival(starter) < self._arrival(group), "a newcomer overtook"

    def _arrival(self, group: SequenceGroup) -> tuple[float, int]:
        return group.request.arrived_at, list(self.requests).index(group.request.request_id)

    def _check_writable(self, sequence: Sequence, work: Work) -> None:
        size = self.config.block_size
        end = work.start + work.num_tokens
        blocks = sequence.table.blocks
        assert len(blocks) * size >= end, "the block table is too short"
        # An abandoned look-ahead may have left a block for one token that was lost.
        assert len(blocks) <= -(-(sequence.num_tokens + 1) // size), "a block past the tokens"
        for block in blocks[work.start // size : -(-end // size)]:
            assert self.scheduler.pool.references(block) == 1, "a shared block is written"
            assert not self.scheduler.cache.holds(block), "a block that others can find is written"

    def _deliver(self, progress: list[Progress]) -> None:
        for part in progress:
            seen = self.delivered[part.request_id, part.index]
            request = self.requests[part.request_id]
            assert seen.finish_reason is None, "something came after the end"
            seen.tokens += part.tokens
            seen.logprobs += part.logprobs
            seen.prompt_logprobs += part.prompt_logprobs
            seen.finish_reason = part.finish_reason
            seen.stop_token = part.stop_token
            if part.tokens:
                assert seen.cached_tokens in (None, part.cached_tokens), "the count of cached tokens changed"
                assert 0 <= part.cached_tokens <= request.num_prompt_tokens
                seen.cached_tokens = part.cached_tokens
            self._check_answer(request, part, seen)

    def _check_answer(self, request: Request, part: Progress, seen: Delivered) -> None:
        answer, reason = expected_answer(request, part.index)
        if request.pooling is not None and part.finish_reason is FinishReason.STOP and not self._ended_early(part):
            assert part.pooled == closed_form_vector(request.prompt), "a vector was lost or crossed"
        assert seen.tokens == answer[: len(seen.tokens)], "a token was lost, repeated or crossed"
        at = [line.logprob for line in seen.prompt_logprobs]
        assert at == [float(position) for position in range(1, len(at) + 1)], "prompt logprobs out of order"
        resumed = len(request.resumed[part.index]) // 4 if request.resumed else 0
        if request.beams is not None:
            assert len(seen.tokens) == len(part.tokens), "some of a search was told before its end"
            told = list(expected_search(request)[part.index].logprobs) if request.params.logprobs is not None else []
            assert [line.logprob for line in part.logprobs] == (told if part.tokens else [])
        elif request.params.logprobs is not None:
            first = request.num_prompt_tokens + resumed
            assert [line.logprob for line in seen.logprobs] == [first + i for i in range(len(seen.tokens) - resumed)]
        if part.finish_reason in (FinishReason.STOP, FinishReason.LENGTH) and not self._ended_outside(part):
            assert (seen.tokens, part.finish_reason) == (answer, reason)
            assert part.stop_token == (answer[-1] if reason is FinishReason.STOP else None)
            wanted = request.params.prompt_logprobs is not None and part.index == 0 and not request.resumed
            assert len(at) == (request.num_prompt_tokens - 1 if wanted else 0)

    def _ended_early(self, part: Progress) -> bool:
        """Ended by a client with cause `stop`: nothing came along."""
        return part.request_id in self.stopped

    def _ended_outside(self, part: Progress) -> bool:
        """A stop string, found outside core, ended it: `stop` without a token."""
        return part.finish_reason is FinishReason.STOP and not part.tokens

    def _check_quiescence(self) -> None:
        scheduler = self.scheduler
        assert all(seen.finish_reason is not None for seen in self.delivered.values()), "an answer never ended"
        assert scheduler.pool.num_free == self.config.num_blocks, "blocks leaked"
        assert not scheduler.waiting
        assert not scheduler.running
        assert scheduler.num_running == 0
        assert getattr(scheduler.state.admission, "promised", 0) == 0, "a promise was not taken back"

    def _run_partly(self, units: int) -> None:
        """Some of a plan's copies and writes happen, then the worker is fenced."""
        unrun = next((out for out in self.in_flight if out.result is None), None)
        if unrun is None or units == 0:
            return
        self.worker.apply_state(unrun.plan)
        for work in unrun.plan.work[: units - 1]:
            self.worker.write(work)

    def _tick(self) -> float:
        self.now += 0.001
        return self.now
