"""What is asked of an endpoint, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Literal, TypedDict, TypeGuard

EndpointKind = Literal["chat", "completions"]


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


Prompt = list[int] | str | list[Message]


def is_ids(prompt: Prompt) -> TypeGuard[list[int]]:
    """Whether a prompt is token ids."""
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], int)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `max_tokens` None leaves the length to the server."""

    prompt: Prompt
    max_tokens: int | None


class FailureKind(StrEnum):
    """Why an answer doesn't count."""

    CONNECTION = "no connection"
    TIMEOUT = "timeout"
    STATUS = "HTTP"
    ERROR_EVENT = "error in the stream"
    CUT = "stream cut"
    FOREIGN = "not an OpenAI answer"
    EMPTY = "no token"


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong with one request; `detail` in the server's words where it had any."""

    kind: FailureKind
    detail: str
    status: int | None = None

    @property
    def label(self) -> str:
        """By which failures are counted."""
        return self.kind.value if self.status is None else f"{self.kind.value} {self.status}"

    def __str__(self) -> str:
        return f"{self.label}: {self.detail}"


@dataclass(slots=True)
class Observation:
    """One streamed request as its client saw it. Instants are seconds of one clock.

    Args:
        scheduled_at: when it was to arrive.
        released_at: when the generator let it go; later than scheduled only if the generator itself lags.
        sent_at: when it was sent; later than released only under a concurrency limit. Latencies count from here.
        token_instants: arrival of each chunk that brought something of the answer.
        last_at: arrival of the last chunk of the answer, which may bring the reason to end and no text.
        ended_at: end of the stream.
        tokens_seen: tokens of the chunks, counted as one where a chunk doesn't tell.
        prompt_tokens, output_tokens: as the server's usage says; None where it says nothing.
    """

    scheduled_at: float
    released_at: float
    sent_at: float = 0.0
    token_instants: list[float] = field(default_factory=list)
    last_at: float = 0.0
    ended_at: float = 0.0
    tokens_seen: int = 0
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    failure: Failure | None = None

    @property
    def num_output(self) -> int:
        """Output tokens by usage, else by what the chunks showed."""
        return self.tokens_seen if self.output_tokens is None else self.output_tokens

    @property
    def ttft(self) -> float:
        """Sent to first token; only of a request that succeeded."""
        return self.token_instants[0] - self.sent_at

    @property
    def tpot(self) -> float | None:
        """Mean seconds per output token after the first; None where there is no second."""
        if self.num_output < 2:
            return None
        return (self.last_at - self.token_instants[0]) / (self.num_output - 1)

    @property
    def gaps(self) -> list[float]:
        """Seconds between chunks of the answer that brought something: what a reader sees. Never divided by tokens."""
        return [later - earlier for earlier, later in pairwise(self.token_instants)]

    @property
    def e2el(self) -> float:
        """Sent to the end of the stream."""
        return self.ended_at - self.sent_at
