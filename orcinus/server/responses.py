"""What OpenAI's clients receive: whole answers, and chunks of streamed ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from orcinus.core.plan import TokenLogprobs
from orcinus.server.answers import Piece
from orcinus.text.tokenizer import Tokenizer

# JSON has no -inf; vLLM writes this number for a token that can't be.
_IMPOSSIBLE = -9999.0


class PromptTokensDetails(msgspec.Struct):
    """`cached_tokens` of the prompts had their KV already."""

    cached_tokens: int


class Usage(msgspec.Struct):
    """Token counts of one HTTP request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CompletionLogprobs(msgspec.Struct):
    """One entry a token, null for an echoed prompt's first, which nothing predicts; `text_offset` counts characters."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]

    def follow(self, more: CompletionLogprobs | None) -> None:
        """Put an answer's entries after its prompt's."""
        if more is not None:
            self.tokens += more.tokens
            self.token_logprobs += more.token_logprobs
            self.top_logprobs += more.top_logprobs
            self.text_offset += more.text_offset


class PromptLogprob(msgspec.Struct):
    """One token that stands in the prompt, or could; vLLM's shape, by token id."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class CompletionChoice(msgspec.Struct):
    """One answer, or a piece of one."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class TopLogprob(msgspec.Struct):
    """A token that could have stood here."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    """The token that stands here, and the likeliest ones."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    """One entry a token."""

    content: list[ChatLogprob]
    refusal: str | None = None


class ChatText(msgspec.Struct):
    """A message, or what is new of one."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    refusal: str | UnsetType | None = UNSET


class ChatMessageChoice(msgspec.Struct):
    """One whole answer."""

    index: int
    message: ChatText
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    token_ids: list[int] | UnsetType = UNSET


class ChatDeltaChoice(msgspec.Struct):
    """A piece of an answer."""

    index: int
    delta: ChatText
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    token_ids: list[int] | UnsetType = UNSET


class Reply(msgspec.Struct, kw_only=True):
    """The frame around the choices, whole or chunk."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class CompletionReply(Reply, kw_only=True):
    """Of /v1/completions, whole or chunk."""

    choices: list[CompletionChoice]


class ChatReply(Reply, kw_only=True):
    """Of /v1/chat/completions, whole."""

    choices: list[ChatMessageChoice]


class ChatChunk(Reply, kw_only=True):
    """Of /v1/chat/completions, a piece."""

    choices: list[ChatDeltaChoice]


@dataclass(frozen=True, slots=True)
class ReplyFrame:
    """What all chunks of one HTTP request share."""

    id: str
    created: int
    model: str
    fingerprint: str


class Dialect(Protocol):
    """One endpoint's way of putting the same answers."""

    def chunk(self, pieces: Sequence[Piece], usage: Usage | UnsetType | None) -> Sequence[Reply]:
        """Chunks for pieces that arrived together; none for a piece that shows nothing."""

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> Reply:
        """The body, from all pieces."""

    def last(self, usage: Usage) -> Reply:
        """The chunk with the token counts."""


class Joined(NamedTuple):
    """All pieces of one answer."""

    choice: int
    text: str
    tokens: list[int]
    logprobs: list[TokenLogprobs]
    finish_reason: str | None
    prompt_logprobs: list[TokenLogprobs]


def joined(pieces: Sequence[Piece], num_choices: int) -> list[Joined]:
    answers = [Joined(choice, "", [], [], None, []) for choice in range(num_choices)]
    texts: list[list[str]] = [[] for _ in answers]
    for piece in pieces:
        answer = answers[piece.choice]
        texts[piece.choice].append(piece.text)
        answer.tokens.extend(piece.tokens)
        answer.logprobs.extend(piece.logprobs)
        answer.prompt_logprobs.extend(piece.prompt_logprobs)
        if piece.finish_reason is not None:
            answers[piece.choice] = answer._replace(finish_reason=piece.finish_reason)
    return [answer._replace(text="".join(text)) for answer, text in zip(answers, texts, strict=True)]


class Spelling:
    """How tokens are written in log-probabilities."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    def text(self, token: int) -> str:
        """By its text; by its number where there is no tokenizer."""
        return f"token_id:{token}" if self._tokenizer is None else self._tokenizer.token_text(token)

    def bytes(self, token: int) -> list[int]:
        """Its bytes, which needn't be characters."""
        return [] if self._tokenizer is None else list(self._tokenizer.token_bytes(token))

    def shown_length(self, token: int, *, skip_special_tokens: bool) -> int:
        """Characters that it has in an answer's text."""
        hides = self._tokenizer is not None and self._tokenizer.is_silent(
            token, skip_special_tokens=skip_special_tokens
        )
        return 0 if hides else len(self.text(token))

    def completion(
        self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs], offset: int, *, skip_special_tokens: bool
    ) -> CompletionLogprobs | None:
        """As /v1/completions has them. The chosen token is among the top ones, as one more if need be."""
        if not logprobs:
            return None
        out = CompletionLogprobs([], [], [], [])
        for token, entry in zip(tokens, logprobs, strict=True):
            text = self.text(token)
            top = zip(entry.top_ids, entry.top_logprobs, strict=True)
            out.tokens.append(text)
            out.token_logprobs.append(_finite(entry.logprob))
            out.top_logprobs.append({text: _finite(entry.logprob), **{self.text(t): _finite(v) for t, v in top}})
            out.text_offset.append(offset)
            offset += self.shown_length(token, skip_special_tokens=skip_special_tokens)
        return out

    def prompt(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> PromptLogprobs:
        """As vLLM has them; `logprobs` begin at the second token."""
        return [None, *(self._prompt_entry(token, entry) for token, entry in zip(tokens[1:], logprobs, strict=True))]

    def _prompt_entry(self, token: int, entry: TokenLogprobs) -> dict[str, PromptLogprob]:
        likeliest = zip(entry.top_ids, entry.top_logprobs, strict=True)
        found = {
            str(each): PromptLogprob(_finite(value), rank, self.text(each))
            for rank, (each, value) in enumerate(likeliest, start=1)
        }
        found.setdefault(str(token), PromptLogprob(_finite(entry.logprob), entry.rank, self.text(token)))
        return found

    def chat(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> ChatLogprobs | None:
        """As /v1/chat/completions has them."""
        if not logprobs:
            return None
        return ChatLogprobs([self._chat_entry(t, entry) for t, entry in zip(tokens, logprobs, strict=True)])

    def _chat_entry(self, token: int, entry: TokenLogprobs) -> ChatLogprob:
        top = zip(entry.top_ids, entry.top_logprobs, strict=True)
        return ChatLogprob(
            token=self.text(token),
            logprob=_finite(entry.logprob),
            bytes=self.bytes(token),
            top_logprobs=[TopLogprob(self.text(t), _finite(value), self.bytes(t)) for t, value in top],
        )


def _finite(logprob: float) -> float:
    return max(logprob, _IMPOSSIBLE)
