"""Why a request took as long as it did: its time split into causes, read from the journal.

The spans of a life touch each other, so their sum is the time from its first event to its last, whatever happened.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

import msgspec

from orcinus.core import journal as why


class Cause(StrEnum):
    """What a stretch of a request's time went into."""

    READING = "reading"
    HANDOVER = "handover"
    QUEUE = "queue"
    KV_BLOCKS = "waiting_for_kv_blocks"
    BATCH_SIZE = "waiting_for_batch_size"
    TOKEN_BUDGET = "waiting_for_token_budget"
    IN_FLIGHT = "waiting_for_plans_in_flight"
    PREFIX = "waiting_for_shared_prefix"
    PREFILL = "prefill"
    RECOMPUTE = "recompute"
    DECODE = "decode"
    DECODE_BESIDE_PREFILL = "decode_beside_prefill"
    PASSED_OVER = "passed_over"
    PREEMPTED = "preempted"
    RECOVERY = "recovery"
    LOST = "served_by_lost_engine"
    ENGINE_DOWN = "engine_down"
    UNHEARD = "nobody_listened"
    DELIVERY = "delivery"

    @property
    def text(self) -> str:
        """For people."""
        return _TEXTS[self]


_TEXTS = {
    Cause.READING: "the request was read, laid out and tokenised",
    Cause.HANDOVER: "on its way between front end and engine",
    Cause.QUEUE: "it was not its turn: others were served, or stood before it in line",
    Cause.KV_BLOCKS: "first in line, but there were too few free KV blocks",
    Cause.BATCH_SIZE: "first in line, but the batch was full",
    Cause.TOKEN_BUDGET: "first in line, but the token budget of the iterations was spent",
    Cause.IN_FLIGHT: "first in line, but a plan in flight still used it",
    Cause.PREFIX: "an iteration under way computed what it could share",
    Cause.PREFILL: "iterations that computed its prompt",
    Cause.RECOMPUTE: "iterations that computed again what a preemption had dropped",
    Cause.DECODE: "iterations that gave it a token",
    Cause.DECODE_BESIDE_PREFILL: "iterations that gave it a token and were longer for the prompts of others",
    Cause.PASSED_OVER: "admitted, but iterations ran without it",
    Cause.PREEMPTED: "it had given its KV blocks to others and waited to return",
    Cause.RECOVERY: "its workers were being replaced",
    Cause.LOST: "an engine worked on it that died; its tokens were kept",
    Cause.ENGINE_DOWN: "no engine was there",
    Cause.UNHEARD: "nobody listened, so nobody worked on it",
    Cause.DELIVERY: "its last token was written to the client",
}
_CAUSE_BY_REASON = {
    "kv_blocks": Cause.KV_BLOCKS,
    "batch_size": Cause.BATCH_SIZE,
    "token_budget": Cause.TOKEN_BUDGET,
    "in_flight": Cause.IN_FLIGHT,
    "prefix": Cause.PREFIX,
}


class Span(NamedTuple):
    """From `began_at` to `ended_at`, instants of the engine's clock, over so many iterations."""

    cause: Cause
    began_at: float
    ended_at: float
    iterations: int = 0

    @property
    def seconds(self) -> float:
        """How long."""
        return self.ended_at - self.began_at


class Life(msgspec.Struct, frozen=True):
    """One engine's part in a request.

    Args:
        spans: from its coming to its end there, or to now.
        cached_tokens: prompt tokens whose KV was there already.
    """

    request_id: str
    spans: tuple[Span, ...]
    cached_tokens: int = 0
    num_preemptions: int = 0


def explain(events: Iterable[why.Event], request_id: str, now: float) -> Life | None:
    """What the journal knows of a request; None if it has forgotten its coming. O(events)."""
    reader: _Reader | None = None
    for event in events:
        if isinstance(event, why.Added) and event.request_id == request_id:
            reader = _Reader(event)
        elif reader is not None and not reader.has_ended:
            reader.see(event)
    return None if reader is None else reader.life(now)


class _Reader:
    """Follows one request through the journal."""

    def __init__(self, added: why.Added) -> None:
        self.has_ended = False
        self._request_id = added.request_id
        self._own = range(added.first_seq_id, added.first_seq_id + added.n)
        self._num_prompt_tokens = added.prompt_tokens
        self._num_open = added.n
        self._computed: dict[int, int] = {}
        self._spans: list[Span] = []
        self._cause, self._since, self._iterations = Cause.QUEUE, added.at, 0
        self._is_waiting = True
        self._cached_tokens = 0
        self._num_preemptions = 0

    def life(self, now: float) -> Life:
        """What was seen; a request that lives on goes on to `now`."""
        if not self.has_ended:
            self._turn(self._cause, now)
        return Life(self._request_id, tuple(self._spans), self._cached_tokens, self._num_preemptions)

    def see(self, event: why.Event) -> None:
        """The next event, whoever it is about."""
        match event:
            case why.Scheduled():
                self._see_plan(event)
            case why.EpochStarted():
                self._turn(Cause.RECOVERY, event.at)
            case why.Evicted() | why.Spilled():
                pass
            case _ if event.request_id == self._request_id:
                self._see_own(event)

    def _see_own(self, event: why.Event) -> None:
        match event:
            case why.Blocked() if self._cause is not Cause.PREEMPTED:
                self._turn(_CAUSE_BY_REASON[event.reason], event.at)
            case why.Admitted():
                self._is_waiting = False
            case why.CacheHit() | why.Restored() if not self._computed:
                # Later ones, after a preemption, find what it has computed itself.
                self._cached_tokens = max(self._cached_tokens, min(event.tokens, self._num_prompt_tokens))
            case why.Preempted():
                self._is_waiting = True
                self._num_preemptions += 1
                self._turn(Cause.PREEMPTED, event.at)
            case why.Finished():
                self._num_open -= 1
                if self._num_open == 0:
                    self._turn(self._cause, event.at)
                    self.has_ended = True

    def _see_plan(self, plan: why.Scheduled) -> None:
        if self._is_waiting:
            return
        work = plan.work
        own = [part for part in work if part[0] in self._own]
        missed = Cause.PREFIX if self._cause is Cause.PREFIX else Cause.PASSED_OVER
        self._turn(self._cause_of(own, work) if own else missed, plan.at)
        self._iterations += 1
        for seq_id, start, num_tokens in own:
            self._computed[seq_id] = max(self._computed.get(seq_id, 0), start + num_tokens)

    def _cause_of(self, own: Sequence[why.Part], work: Sequence[why.Part]) -> Cause:
        if any(start < self._computed.get(seq_id, 0) for seq_id, start, _ in own):
            return Cause.RECOMPUTE
        if any(num_tokens > 1 or start < self._num_prompt_tokens for _, start, num_tokens in own):
            return Cause.PREFILL
        beside = any(num_tokens > 1 for seq_id, _, num_tokens in work if seq_id not in self._own)
        return Cause.DECODE_BESIDE_PREFILL if beside else Cause.DECODE

    def _turn(self, cause: Cause, at: float) -> None:
        """What went on until `at` ends there, unless it goes on."""
        if at > self._since or self._iterations:
            self._spans = _joined(self._spans, Span(self._cause, self._since, at, self._iterations))
        self._cause, self._since, self._iterations = cause, at, 0


def _joined(spans: list[Span], span: Span) -> list[Span]:
    """One span more, in place; the last one grows if it has the same cause."""
    if spans and spans[-1].cause is span.cause and spans[-1].ended_at == span.began_at:
        last = spans.pop()
        span = Span(span.cause, last.began_at, span.ended_at, last.iterations + span.iterations)
    spans.append(span)
    return spans


class Interval(NamedTuple):
    """What the front end knows of a stretch of time."""

    cause: Cause
    began_at: float
    ended_at: float


def whole_story(
    received_at: float, arrived_at: float, ended_at: float, lives: Sequence[Life], interruptions: Sequence[Interval]
) -> list[Span]:
    """The spans of a request from its first byte to its last, of which the engines' lives are the middle.

    Args:
        arrived_at: it was read, and sent to the engine.
        lives: of the engines that can still tell, in order.
        interruptions: outages, and times in which nobody listened.
    """
    first = lives[0].spans[0].began_at if lives else ended_at
    outages = [each.began_at for each in interruptions if each.cause is Cause.ENGINE_DOWN and each.ended_at <= first]
    around = [
        Interval(Cause.READING, received_at, arrived_at),
        *interruptions,
        Interval(Cause.LOST, arrived_at, max(outages, default=arrived_at)),
    ]
    story: list[Span] = []
    at = received_at
    for life in lives:
        story += _fill(at, life.spans[0].began_at, around)
        story += life.spans
        at = life.spans[-1].ended_at
    return story + _fill(at, ended_at, [*interruptions, Interval(Cause.DELIVERY, at, ended_at)] if lives else around)


def _fill(begin: float, end: float, intervals: Sequence[Interval]) -> list[Span]:
    """One cause for each moment: of the earliest interval in the list that covers it, or the way between processes."""
    spans: list[Span] = []
    while begin < end:
        covering = next((each for each in intervals if each.began_at <= begin < each.ended_at), None)
        later = [each.began_at for each in intervals if each.began_at > begin]
        until = min([end, *later, *([covering.ended_at] if covering else [])])
        spans = _joined(spans, Span(covering.cause if covering else Cause.HANDOVER, begin, until))
        begin = until
    return spans
