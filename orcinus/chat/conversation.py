"""What has been said, what is asked next, and what an answer took."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field

import msgspec

from orcinus.chat.endpoint import Chunk, Endpoint, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How to answer. None leaves a thing to the server."""

    model: str
    system: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None

    def request(self, messages: list[dict[str, str]]) -> bytes:
        """The body that asks for the next answer."""
        chosen = {"temperature": self.temperature, "max_tokens": self.max_tokens, "seed": self.seed}
        opening = [{"role": "system", "content": self.system}] if self.system else []
        return msgspec.json.encode(
            {"model": self.model, "messages": opening + messages, "stream": True}
            | {"stream_options": {"include_usage": True}}
            | {name: value for name, value in chosen.items() if value is not None}
        )


@dataclass(slots=True)
class Answer:
    """One answer as it comes. Instants are seconds of one clock."""

    asked_at: float
    pieces: list[str] = field(default_factory=list)
    first_at: float | None = None
    last_at: float | None = None
    usage: Usage | None = None
    finish_reason: str | None = None
    was_stopped: bool = False

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self.pieces)

    def take(self, chunk: Chunk, now: float) -> str:
        """What a chunk adds to the text."""
        self.usage = chunk.usage or self.usage
        if not chunk.choices:
            return ""
        choice = chunk.choices[0]
        self.finish_reason = choice.finish_reason or self.finish_reason
        piece = choice.delta.content or ""
        if piece or choice.finish_reason:
            # Some servers open with the role alone, before any token.
            self.first_at = now if self.first_at is None else self.first_at
            self.last_at = now
        self.pieces.append(piece)
        return piece

    def took(self) -> str:
        """TTFT, pace and token counts, as this side saw them."""
        parts = ["stopped"] if self.was_stopped else []
        parts += ["cut at the limit of tokens"] if self.finish_reason == "length" else []
        if self.first_at is not None:
            parts.append(f"TTFT {1000 * (self.first_at - self.asked_at):.0f} ms")
        if self.usage is not None:
            parts += self._counts(self.usage)
        return " · ".join(parts)

    def _counts(self, usage: Usage) -> list[str]:
        counts = [f"{usage.completion_tokens} tokens", f"prompt {usage.prompt_tokens}"]
        if self.first_at is not None and self.last_at is not None and self.last_at > self.first_at:
            # The first token came with TTFT; the others took the time after it.
            pace = (usage.completion_tokens - 1) / (self.last_at - self.first_at)
            counts.insert(1, f"{pace:.1f} tokens/s")
        return counts


class Conversation:
    """The turns so far. A turn counts when something of its answer came."""

    def __init__(self, endpoint: Endpoint, manner: Manner) -> None:
        self._endpoint = endpoint
        self._manner = manner
        self._messages: list[dict[str, str]] = []

    def reset(self) -> None:
        """Forget what was said."""
        self._messages.clear()

    def ask(self, text: str, answer: Answer, on_retry: Callable[[], None]) -> Generator[str, None, None]:
        """The answer piece by piece, noted in `answer`. What came of it stays, however the iteration ends.

        Raises:
            OrcinusError: see `Endpoint.chat`.
        """
        question = {"role": "user", "content": text}
        request = self._manner.request([*self._messages, question])
        try:
            with closing(self._endpoint.chat(request, on_retry)) as chunks:
                for chunk in chunks:
                    if piece := answer.take(chunk, time.perf_counter()):
                        yield piece
        finally:
            if answer.text:
                self._messages += [question, {"role": "assistant", "content": answer.text}]
