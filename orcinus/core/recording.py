"""Recording and exact replay: core's inputs in order, each with its instant, and the decisions that followed.

A recording holds no text and no token of a client. Each token is replaced by a surrogate: a keyed hash of itself and
all tokens before it. So equal prefixes stay equal, and nothing else can be read from them: a radix tree runs on
surrogates as on the tokens themselves. End tokens in answers stay what they are, for they decide.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b

import msgspec

from orcinus.core.config import SchedulerConfig
from orcinus.core.core import Core, Decision, Submit
from orcinus.core.plan import IterationPlan, IterationResult, NewSequence, SequenceOutput, TokenLogprobs, Work
from orcinus.core.progress import Progress
from orcinus.core.request import TOKEN_TYPECODE, FinishReason, Request, unpack_tokens
from orcinus.errors import ClientError


class Started(msgspec.Struct, frozen=True, tag="started"):
    """The snapshot at the start."""

    config: SchedulerConfig


class AddInput(msgspec.Struct, frozen=True, tag="add"):
    """`Core.add`, the tokens as surrogates."""

    at: float
    request: Request


class AbortInput(msgspec.Struct, frozen=True, tag="abort"):
    """`Core.abort`."""

    at: float
    request_id: str
    index: int | None
    cause: FinishReason


class ResultInput(msgspec.Struct, frozen=True, tag="result"):
    """`Core.update`, the tokens as surrogates, without log-probabilities."""

    at: float
    result: IterationResult


class EpochInput(msgspec.Struct, frozen=True, tag="epoch"):
    """`Core.new_epoch`."""

    at: float
    kv_lost: bool


class AdvanceInput(msgspec.Struct, frozen=True, tag="advance"):
    """`Core.advance`, and what was decided: the plan without its tokens, or the decision's name."""

    at: float
    decision: str
    plan: IterationPlan | None = None


Record = Started | AddInput | AbortInput | ResultInput | EpochInput | AdvanceInput


class _Surrogates:
    """One line of tokens, hashed token by token."""

    __slots__ = ("_chain", "_key")

    def __init__(self, key: bytes, chain: bytes = b"") -> None:
        self._key = key
        self._chain = chain

    def fork(self) -> _Surrogates:
        return _Surrogates(self._key, self._chain)

    def take(self, tokens: Iterable[int], kept: frozenset[int]) -> array[int]:
        """Surrogates of `tokens`, which follow those taken before; `kept` ones stay what they are."""
        surrogates = array(TOKEN_TYPECODE)
        for token in tokens:
            self._chain = blake2b(self._chain + token.to_bytes(4, "little"), key=self._key, digest_size=16).digest()
            surrogate = int.from_bytes(self._chain[:4], "little") >> 1
            while surrogate in kept:
                surrogate += 1
            surrogates.append(token if token in kept else surrogate)
        return surrogates


class Recorder:
    """A `Core` that writes down what it is told. `key` is the installation's secret; `write` takes one JSON line."""

    def __init__(self, core: Core, key: bytes, write: Callable[[bytes], None]) -> None:
        self.core = core
        self._key = key
        self._write = write
        self._encode = msgspec.json.Encoder().encode
        self._lines: dict[int, tuple[_Surrogates, NewSequence]] = {}
        self._put(Started(core.config))

    @property
    def config(self) -> SchedulerConfig:
        """The core's."""
        return self.core.config

    def add(self, request: Request, now: float) -> None:
        """`Core.add`, written down before it is tried: a refusal replays as well."""
        self._put(AddInput(now, self._disguise(request)))
        self.core.add(request, now)

    def abort(
        self, request_id: str, now: float, index: int | None = None, cause: FinishReason = FinishReason.ABORT
    ) -> list[Progress]:
        """`Core.abort`, written down."""
        self._put(AbortInput(now, request_id, index, cause))
        return self.core.abort(request_id, now, index, cause)

    def advance(self, now: float) -> Decision:
        """`Core.advance`, written down with its decision."""
        decision = self.core.advance(now)
        self._put(advance_input(decision, now))
        if isinstance(decision, Submit):
            self._follow(decision.plan)
        return decision

    def update(self, result: IterationResult, now: float) -> list[Progress]:
        """`Core.update`, written down."""
        is_stale = result.epoch != self.core.scheduler.epoch
        outputs = tuple(
            SequenceOutput(output.seq_id, ()) if is_stale else self._disguise_output(output)
            for output in result.outputs
        )
        self._put(ResultInput(now, msgspec.structs.replace(result, outputs=outputs)))
        return self.core.update(result, now)

    def new_epoch(self, now: float, *, kv_lost: bool) -> None:
        """`Core.new_epoch`, written down."""
        self._put(EpochInput(now, kv_lost))
        self.core.new_epoch(now, kv_lost=kv_lost)

    def _put(self, record: Record) -> None:
        self._write(self._encode(record))

    def _disguise(self, request: Request) -> Request:
        """The request without its text: surrogate tokens, and no stop strings (they act through `abort`).

        A salt is a secret among those who share it; that two are equal is all that decides.
        """
        kept = request.end_token_ids
        prompt = _Surrogates(self._key)
        # In a prompt an end token decides nothing, and kept it would part requests that share all but their stops.
        tokens = prompt.take(unpack_tokens(request.prompt), frozenset())
        resumed = tuple(prompt.fork().take(unpack_tokens(line), kept).tobytes() for line in request.resumed)
        params = msgspec.structs.replace(
            request.params, stop=None, logit_bias=None, allowed_token_ids=None, banned_token_ids=None
        )
        salt = request.cache_salt and blake2b(request.cache_salt.encode(), key=self._key, digest_size=16).hexdigest()
        return msgspec.structs.replace(
            request, prompt=tokens.tobytes(), resumed=resumed, params=params, cache_salt=salt
        )

    def _disguise_output(self, output: SequenceOutput) -> SequenceOutput:
        """Neither log-probabilities nor vectors decide anything, but for those that a search chooses by."""
        candidates = tuple(self._candidates(output.seq_id, each) for each in output.logprobs)
        return SequenceOutput(
            output.seq_id,
            tuple(self._take(output.seq_id, output.tokens)),
            tuple(each for each in candidates if each is not None),
        )

    def _candidates(self, seq_id: int, found: TokenLogprobs) -> TokenLogprobs | None:
        """The likeliest tokens as the surrogates that they would have behind this sequence; None where none chooses."""
        if seq_id not in self._lines or not self._lines[seq_id][1].num_candidates:
            return None
        line, new = self._lines[seq_id]
        kept = frozenset(new.end_token_ids)
        ids = tuple(line.fork().take((token,), kept)[0] for token in found.top_ids)
        return msgspec.structs.replace(found, top_ids=ids)

    def _follow(self, plan: IterationPlan) -> None:
        """Keep a chain for each live sequence that the workers have known; a restated one starts again."""
        if plan.finished:
            # Forgotten by the workers isn't ended: one preempted in flight still gets the token of that plan.
            live = {sequence.seq_id for group in self.core.scheduler.groups() for sequence in group.live}
            self._lines = {seq_id: line for seq_id, line in self._lines.items() if seq_id in live}
        for new in plan.new:
            line = _Surrogates(self._key)
            line.take(unpack_tokens(new.tokens), frozenset())
            self._lines[new.seq_id] = (line, msgspec.structs.replace(new, tokens=b"", blocks=b""))

    def _take(self, seq_id: int, tokens: tuple[int, ...]) -> Iterable[int]:
        """Surrogates of newly sampled tokens. A sequence that has ended gets zeros: they can't decide."""
        if seq_id not in self._lines:
            return (0,) * len(tokens)
        line, new = self._lines[seq_id]
        return line.take(tokens, frozenset(new.end_token_ids))


def advance_input(decision: Decision, now: float) -> AdvanceInput:
    """The decision as it is written down."""
    plan = _without_tokens(decision.plan) if isinstance(decision, Submit) else None
    return AdvanceInput(now, type(decision).__name__, plan)


def _without_tokens(plan: IterationPlan) -> IterationPlan:
    """The same plan, token ids and sampling parameters left out."""
    work = tuple(Work(w.seq_id, w.start, w.num_tokens, b"", w.output) for w in plan.work)
    new = tuple(
        NewSequence(n.seq_id, n.index, n.num_prompt_tokens, b"", n.blocks, type(n.params)(), (), n.adapter)
        for n in plan.new
    )
    return msgspec.structs.replace(plan, work=work, new=new)


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a replay left the recording: the line, and the two decisions."""

    line: int
    recorded: AdvanceInput
    replayed: AdvanceInput


def read(lines: Iterable[bytes]) -> Iterator[Record]:
    """Decode a recording, one record a line. The last one may be cut off: the engine died while it was written."""
    decoder, left = msgspec.json.Decoder(Record), iter(lines)
    for line in left:
        if not line.strip():
            continue
        try:
            record = decoder.decode(line)
        except msgspec.DecodeError:
            if line.endswith(b"\n") or next(left, None) is not None:
                raise
            return
        yield record


def replay(lines: Iterable[bytes]) -> tuple[Core, Difference | None]:
    """Run a recording again; the core that ran it, and the first decision that differs, if any does.

    Raises:
        ValueError: the recording doesn't begin with a snapshot.
    """
    records = read(lines)
    first = next(records, None)
    if not isinstance(first, Started):
        raise ValueError("this is no recording: its first line is not a snapshot of the start")
    core = Core(first.config)
    for number, record in enumerate(records, start=2):
        difference = _repeat(core, record, number)
        if difference is not None:
            return core, difference
    return core, None


def _repeat(core: Core, record: Record, number: int) -> Difference | None:
    match record:
        case AddInput(at=at, request=request):
            # What the recorded core refused, this one refuses too, and goes on as it did.
            with suppress(ClientError):
                core.add(request, at)
        case AbortInput(at=at, request_id=request_id, index=index, cause=cause):
            core.abort(request_id, at, index, cause)
        case ResultInput(at=at, result=result):
            core.update(result, at)
        case EpochInput(at=at, kv_lost=kv_lost):
            core.new_epoch(at, kv_lost=kv_lost)
        case AdvanceInput(at=at):
            replayed = advance_input(core.advance(at), at)
            return None if replayed == record else Difference(number, record, replayed)
        case _:
            raise ValueError(f"line {number} is a second snapshot; one recording is one run")
    return None
