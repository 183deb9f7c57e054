"""GET /v1/explain/<response>: where the time of a request went, from its first byte to its last.

The engine's journal tells its part; the front end knows when the request came, when engines were gone, when nobody
listened, and when the last byte left. Histories hold no text.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from http import HTTPStatus

import msgspec

from orcinus.core.clock import Clock
from orcinus.core.explain import Life, Span, whole_story
from orcinus.server.answers import EngineFront
from orcinus.server.errors import MAX_ECHO_CHARACTERS, HttpRefusal
from orcinus.server.history import History

EXPLAIN_PATH = "/v1/explain/{reply_id}"
# Responses of one front end that can be explained: the latest.
MAX_KEPT = 4096


class CauseShare(msgspec.Struct):
    """All the time of a request that went into one thing; `share` of 1."""

    cause: str
    text: str
    seconds: float
    share: float
    iterations: int


class StorySpan(msgspec.Struct):
    """A stretch of a request's time; `began` counts seconds from the first byte."""

    cause: str
    began: float
    seconds: float
    iterations: int


class RequestStory(msgspec.Struct):
    """One prompt's part; the spans touch each other and sum to the wall time."""

    request_id: str
    cached_tokens: int
    num_preemptions: int
    causes: list[CauseShare]
    spans: list[StorySpan]


class Explanation(msgspec.Struct):
    """Where the time of a response went. `is_over`: it has ended."""

    id: str
    wall_seconds: float
    is_over: bool
    requests: list[RequestStory]


class Explainer:
    """The histories of one front end, and the way to the engine's journal."""

    def __init__(self, client: EngineFront, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._histories: OrderedDict[str, History] = OrderedDict()

    def note(self, reply_id: str, history: History) -> None:
        """Keep a history, and forget the eldest if there are too many."""
        self._histories[reply_id] = history
        if len(self._histories) > MAX_KEPT:
            self._histories.popitem(last=False)

    async def explain(self, reply_id: str, key: str) -> Explanation:
        """Where its time went, up to now if it hasn't ended.

        Raises:
            HttpRefusal: unknown, forgotten, or somebody else's.
        """
        history = self._histories.get(reply_id)
        if history is None or history.key != key:
            raise not_explained(reply_id)
        names = {request_id: history.names(request_id) for request_id in history.request_ids}
        lives = await self._client.explain([name for each in names.values() for name in each])
        until = self._clock.now() if history.ended_at is None else history.ended_at
        stories = [
            self._story(history, request_id, [life for life in lives if life.request_id in known], until)
            for request_id, known in names.items()
        ]
        return Explanation(reply_id, until - history.received_at, history.ended_at is not None, stories)

    def _story(self, history: History, request_id: str, lives: Sequence[Life], until: float) -> RequestStory:
        lives = sorted((life for life in lives if life.spans), key=lambda life: life.spans[0].began_at)
        interruptions = [*history.interruptions(until), *self._client.outages]
        spans = whole_story(history.received_at, history.arrived_at, until, lives, interruptions)
        return RequestStory(
            request_id,
            lives[0].cached_tokens if lives else 0,
            sum(life.num_preemptions for life in lives),
            _shares(spans),
            [
                StorySpan(span.cause.value, span.began_at - history.received_at, span.seconds, span.iterations)
                for span in spans
            ],
        )


def _shares(spans: Sequence[Span]) -> list[CauseShare]:
    """The largest first."""
    total = sum(span.seconds for span in spans) or 1.0
    causes = dict.fromkeys(span.cause for span in spans)
    shares = []
    for cause in causes:
        own = [span for span in spans if span.cause is cause]
        seconds = sum(span.seconds for span in own)
        iterations = sum(span.iterations for span in own)
        shares.append(CauseShare(cause.value, cause.text, seconds, seconds / total, iterations))
    return sorted(shares, key=lambda share: -share.seconds)


def not_explained(reply_id: str) -> HttpRefusal:
    """To be raised."""
    return HttpRefusal(
        HTTPStatus.NOT_FOUND,
        f"Nothing is known of {reply_id[:MAX_ECHO_CHARACTERS]!r}; the latest {MAX_KEPT} responses can be explained.",
        code="response_not_found",
    )
