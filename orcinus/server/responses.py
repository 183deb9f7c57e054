"""What OpenAI's clients receive: whole answers, and chunks of streamed ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from orcinus.core.plan import TokenLogprobs
from orcinus.core.request import Request, unpack_tokens
from orcinus.server.answers import Piece
from orcinus.text.tokenizer import Tokenizer

# JSON has no -inf; vLLM writes this number for a token that can't be.
_IMPOSSIBLE = -9999.0


class Usage(msgspec.Struct):
    """Token counts of one HTTP request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(msgspec.Struct):
    """One entry a token; `text_offset` counts characters of the answer."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct):
    """One answer, or a piece of one."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


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


class Reply(msgspec.Struct):
    """The frame around the choices, whole or chunk."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice] | list[ChatMessageChoice] | list[ChatDeltaChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


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


class _Joined(NamedTuple):
    """All pieces of one answer."""

    choice: int
    text: str
    tokens: list[int]
    logprobs: list[TokenLogprobs]
    finish_reason: str | None


def _joined(pieces: Sequence[Piece], num_choices: int) -> list[_Joined]:
    answers = [_Joined(choice, "", [], [], None) for choice in range(num_choices)]
    texts: list[list[str]] = [[] for _ in answers]
    for piece in pieces:
        answer = answers[piece.choice]
        texts[piece.choice].append(piece.text)
        answer.tokens.extend(piece.tokens)
        answer.logprobs.extend(piece.logprobs)
        if piece.finish_reason is not None:
            answers[piece.choice] = answer._replace(finish_reason=piece.finish_reason)
    return [answer._replace(text="".join(text)) for answer, text in zip(answers, texts, strict=True)]


class _Spelling:
    """How tokens are written in log-probabilities."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    def text(self, token: int) -> str:
        """By its text; by its number where there is no tokenizer."""
        return f"token_id:{token}" if self._tokenizer is None else self._tokenizer.token_text(token)

    def bytes(self, token: int) -> list[int]:
        """Its bytes, which needn't be characters."""
        return [] if self._tokenizer is None else list(self._tokenizer.token_bytes(token))

    def completion(
        self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs], offset: int
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
            offset += len(text)
        return out

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


class CompletionDialect:
    """/v1/completions.

    Args:
        requests: one for each prompt.
        with_ids: add the token ids (vLLM's `return_token_ids`, and where there is no text).
    """

    def __init__(
        self, frame: ReplyFrame, requests: Sequence[Request], tokenizer: Tokenizer | None, with_ids: bool
    ) -> None:
        self._frame = frame
        self._requests = [request for request in requests for _ in range(request.params.n)]
        self._spelling = _Spelling(tokenizer)
        self._with_ids = with_ids
        self._offsets = [0] * len(self._requests)
        self._unopened = set(range(len(self._requests))) if with_ids else set()

    def chunk(self, pieces: Sequence[Piece], usage: Usage | UnsetType | None) -> Sequence[Reply]:
        """See `Dialect`."""
        return [self._reply([self._choice(piece)], usage) for piece in pieces if self._shows(piece)]

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> Reply:
        """See `Dialect`."""
        joined = _joined(pieces, len(self._requests))
        return self._reply([self._choice(answer) for answer in joined], usage)

    def last(self, usage: Usage) -> Reply:
        """See `Dialect`."""
        return self._reply([], usage)

    def _shows(self, piece: Piece) -> bool:
        return bool(piece.text or piece.logprobs or piece.finish_reason or (self._with_ids and piece.tokens))

    def _choice(self, answer: Piece | _Joined) -> CompletionChoice:
        index = answer.choice
        logprobs = self._spelling.completion(answer.tokens, answer.logprobs, self._offsets[index])
        if logprobs is not None:
            self._offsets[index] += sum(map(len, logprobs.tokens))
        choice = CompletionChoice(index, answer.text, logprobs, answer.finish_reason)
        if self._with_ids:
            choice.token_ids = list(answer.tokens)
        if index in self._unopened:
            self._unopened.remove(index)
            choice.prompt_token_ids = unpack_tokens(self._requests[index].prompt).tolist()
        return choice

    def _reply(self, choices: list[CompletionChoice], usage: Usage | UnsetType | None) -> Reply:
        frame = self._frame
        return Reply(frame.id, "text_completion", frame.created, frame.model, choices, frame.fingerprint, usage)


class ChatDialect:
    """/v1/chat/completions; arguments as for `CompletionDialect`, but for the one prompt."""

    def __init__(self, frame: ReplyFrame, request: Request, tokenizer: Tokenizer | None, with_ids: bool) -> None:
        self._frame = frame
        self._request = request
        self._spelling = _Spelling(tokenizer)
        self._with_ids = with_ids
        self._unopened = set(range(request.params.n))

    def chunk(self, pieces: Sequence[Piece], usage: Usage | UnsetType | None) -> Sequence[Reply]:
        """See `Dialect`. The first chunk of each answer says who speaks."""
        replies = []
        for piece in pieces:
            opens = piece.choice in self._unopened
            if opens or piece.text or piece.logprobs or piece.finish_reason or (self._with_ids and piece.tokens):
                replies.append(self._reply("chat.completion.chunk", [self._delta(piece, opens)], usage))
                if opens and self._with_ids:
                    replies[-1].prompt_token_ids = unpack_tokens(self._request.prompt).tolist()
        return replies

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> Reply:
        """See `Dialect`."""
        choices = [self._message(answer) for answer in _joined(pieces, self._request.params.n)]
        reply = self._reply("chat.completion", choices, usage)
        if self._with_ids:
            reply.prompt_token_ids = unpack_tokens(self._request.prompt).tolist()
        return reply

    def last(self, usage: Usage) -> Reply:
        """See `Dialect`."""
        choices: list[ChatDeltaChoice] = []
        return self._reply("chat.completion.chunk", choices, usage)

    def _delta(self, piece: Piece, opens: bool) -> ChatDeltaChoice:
        delta = ChatText(content=piece.text) if piece.text or opens else ChatText()
        if opens:
            self._unopened.remove(piece.choice)
            delta.role = "assistant"
        logprobs = self._spelling.chat(piece.tokens, piece.logprobs)
        choice = ChatDeltaChoice(piece.choice, delta, logprobs, piece.finish_reason)
        if self._with_ids:
            choice.token_ids = list(piece.tokens)
        return choice

    def _message(self, answer: _Joined) -> ChatMessageChoice:
        message = ChatText(role="assistant", content=answer.text, refusal=None)
        logprobs = self._spelling.chat(answer.tokens, answer.logprobs)
        choice = ChatMessageChoice(answer.choice, message, logprobs, answer.finish_reason)
        if self._with_ids:
            choice.token_ids = answer.tokens
        return choice

    def _reply(
        self, kind: str, choices: list[ChatMessageChoice] | list[ChatDeltaChoice], usage: Usage | UnsetType | None
    ) -> Reply:
        frame = self._frame
        return Reply(frame.id, kind, frame.created, frame.model, choices, frame.fingerprint, usage)
