"""The two endpoints' ways of putting the same answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import UnsetType

from orcinus.core.plan import TokenLogprobs
from orcinus.core.request import Request, unpack_tokens
from orcinus.server.answers import Piece
from orcinus.server.responses import (
    ChatChunk,
    ChatDeltaChoice,
    ChatMessageChoice,
    ChatReply,
    ChatText,
    CompletionChoice,
    CompletionLogprobs,
    CompletionReply,
    Joined,
    Reply,
    ReplyFrame,
    Spelling,
    Usage,
    joined,
)
from orcinus.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionForm:
    """What a completion shows.

    Args:
        with_ids: add the token ids (vLLM's `return_token_ids`, and where there is no text).
        num_shown: answers a prompt; of more, those with the best mean log-probability.
        echo: the prompt's text before the answer's.
        hides_answer: only the prompt is wanted.
        logprobs, prompt_logprobs: asked for, and not only made to judge by.
    """

    with_ids: bool = False
    num_shown: int = 1
    echo: bool = False
    hides_answer: bool = False
    logprobs: bool = False
    prompt_logprobs: bool = False


class CompletionDialect:
    """/v1/completions.

    Args:
        requests: one for each prompt.
    """

    def __init__(
        self, frame: ReplyFrame, requests: Sequence[Request], tokenizer: Tokenizer | None, form: CompletionForm
    ) -> None:
        self._frame = frame
        self._requests = [request for request in requests for _ in range(request.params.n)]
        self._spelling = Spelling(tokenizer)
        self._tokenizer = tokenizer
        self._form = form
        self._offsets = [0] * len(self._requests)
        self._unopened = set(range(len(self._requests)))

    def chunk(self, pieces: Sequence[Piece], usage: Usage | UnsetType | None) -> Sequence[Reply]:
        """See `Dialect`."""
        return [self._reply([self._choice(piece)], usage) for piece in pieces if self._shows(piece)]

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> Reply:
        """See `Dialect`."""
        answers = joined(pieces, len(self._requests))
        # They come with one of a prompt's answers.
        of_prompt = {self._requests[a.choice].request_id: a.prompt_logprobs for a in answers if a.prompt_logprobs}
        choices = [
            self._whole_choice(answer, of_prompt.get(self._requests[answer.choice].request_id, []))
            for answer in answers
        ]
        if self._form.hides_answer:
            usage = Usage(usage.prompt_tokens, 0, usage.prompt_tokens, usage.prompt_tokens_details)
        return self._reply(self._best(choices, answers), usage)

    def last(self, usage: Usage) -> Reply:
        """See `Dialect`."""
        return self._reply([], usage)

    def _shows(self, piece: Piece) -> bool:
        opens = self._form.echo and piece.choice in self._unopened
        return bool(
            opens or piece.text or piece.logprobs or piece.finish_reason or (self._form.with_ids and piece.tokens)
        )

    def _choice(self, piece: Piece) -> CompletionChoice:
        """A piece of an answer; the first brings what comes before."""
        index = piece.choice
        opens = index in self._unopened
        self._unopened.discard(index)
        text = self._prompt_text(index) if self._form.echo and opens else ""
        self._offsets[index] += len(text)
        skips = self._requests[index].params.skip_special_tokens
        logprobs = self._spelling.completion(
            piece.tokens, piece.logprobs, self._offsets[index], skip_special_tokens=skips
        )
        if logprobs is not None:
            lengths = (self._spelling.shown_length(token, skip_special_tokens=skips) for token in piece.tokens)
            self._offsets[index] += sum(lengths)
        shown = "" if self._form.hides_answer else piece.text
        choice = CompletionChoice(index, text + shown, logprobs, piece.finish_reason)
        if self._form.with_ids:
            choice.token_ids = list(piece.tokens)
            if opens:
                choice.prompt_token_ids = self._prompt_ids(index)
        return choice

    def _whole_choice(self, answer: Joined, prompt_logprobs: Sequence[TokenLogprobs]) -> CompletionChoice:
        form, index = self._form, answer.choice
        tokens = [] if form.hides_answer else answer.tokens
        text = "" if form.hides_answer else answer.text
        reason = "length" if form.hides_answer else answer.finish_reason
        prompt = self._prompt_text(index) if form.echo else ""
        logprobs = self._logprobs(answer, tokens, prompt, prompt_logprobs)
        choice = CompletionChoice(index, prompt + text, logprobs, reason)
        if form.prompt_logprobs:
            choice.prompt_logprobs = self._spelling.prompt(self._prompt_ids(index), prompt_logprobs)
        if form.with_ids:
            choice.token_ids = list(tokens)
            choice.prompt_token_ids = self._prompt_ids(index)
        return choice

    def _logprobs(
        self, answer: Joined, tokens: Sequence[int], prompt: str, prompt_logprobs: Sequence[TokenLogprobs]
    ) -> CompletionLogprobs | None:
        """Of the answer, and before it of an echoed prompt."""
        if not self._form.logprobs:
            return None
        skips = self._requests[answer.choice].params.skip_special_tokens
        given = answer.logprobs[: len(tokens)]
        own = self._spelling.completion(tokens, given, len(prompt), skip_special_tokens=skips)
        if not self._form.echo:
            return own
        ids = self._prompt_ids(answer.choice)
        first = self._spelling.text(ids[0])
        whole = CompletionLogprobs([first], [None], [None], [0])
        begin = self._spelling.shown_length(ids[0], skip_special_tokens=True)
        whole.follow(self._spelling.completion(ids[1:], prompt_logprobs, begin, skip_special_tokens=True))
        whole.follow(own)
        return whole

    def _best(self, choices: list[CompletionChoice], answers: Sequence[Joined]) -> list[CompletionChoice]:
        """Of each prompt the best answers, numbered anew."""
        made, shown = self._requests[0].params.n, self._form.num_shown
        if made <= shown:
            return choices

        def quality(choice: CompletionChoice) -> float:
            logprobs = answers[choice.index].logprobs
            return sum(entry.logprob for entry in logprobs) / max(1, len(logprobs))

        best = []
        for start in range(0, len(choices), made):
            best += sorted(choices[start : start + made], key=quality, reverse=True)[:shown]
        for index, choice in enumerate(best):
            choice.index = index
        return best

    def _prompt_ids(self, index: int) -> list[int]:
        return unpack_tokens(self._requests[index].prompt).tolist()

    def _prompt_text(self, index: int) -> str:
        ids = self._prompt_ids(index)
        return "" if self._tokenizer is None else self._tokenizer.decode(ids, skip_special_tokens=True)

    def _reply(self, choices: list[CompletionChoice], usage: Usage | UnsetType | None) -> Reply:
        frame = self._frame
        return CompletionReply(
            id=frame.id,
            object="text_completion",
            created=frame.created,
            model=frame.model,
            choices=choices,
            system_fingerprint=frame.fingerprint,
            usage=usage,
        )


class ChatDialect:
    """/v1/chat/completions.

    Args:
        with_ids, prompt_logprobs: as in `CompletionForm`.
    """

    def __init__(
        self,
        frame: ReplyFrame,
        request: Request,
        tokenizer: Tokenizer | None,
        *,
        with_ids: bool = False,
        prompt_logprobs: bool = False,
    ) -> None:
        self._frame = frame
        self._request = request
        self._spelling = Spelling(tokenizer)
        self._with_ids = with_ids
        self._with_prompt_logprobs = prompt_logprobs
        self._unopened = set(range(request.params.n))

    def chunk(self, pieces: Sequence[Piece], usage: Usage | UnsetType | None) -> Sequence[Reply]:
        """See `Dialect`. The first chunk of each answer says who speaks."""
        replies = []
        for piece in pieces:
            opens = piece.choice in self._unopened
            if opens or piece.text or piece.logprobs or piece.finish_reason or (self._with_ids and piece.tokens):
                replies.append(self._chunk([self._delta(piece, opens)], usage))
                if opens and self._with_ids:
                    replies[-1].prompt_token_ids = unpack_tokens(self._request.prompt).tolist()
        return replies

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> Reply:
        """See `Dialect`."""
        answers = joined(pieces, self._request.params.n)
        reply = ChatReply(
            id=self._frame.id,
            object="chat.completion",
            created=self._frame.created,
            model=self._frame.model,
            choices=[self._message(answer) for answer in answers],
            system_fingerprint=self._frame.fingerprint,
            usage=usage,
        )
        ids = unpack_tokens(self._request.prompt).tolist()
        if self._with_ids:
            reply.prompt_token_ids = ids
        if self._with_prompt_logprobs:
            reply.prompt_logprobs = self._spelling.prompt(ids, answers[0].prompt_logprobs)
        return reply

    def last(self, usage: Usage) -> Reply:
        """See `Dialect`."""
        return self._chunk([], usage)

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

    def _message(self, answer: Joined) -> ChatMessageChoice:
        message = ChatText(role="assistant", content=answer.text, refusal=None)
        logprobs = self._spelling.chat(answer.tokens, answer.logprobs)
        choice = ChatMessageChoice(answer.choice, message, logprobs, answer.finish_reason)
        if self._with_ids:
            choice.token_ids = answer.tokens
        return choice

    def _chunk(self, choices: list[ChatDeltaChoice], usage: Usage | UnsetType | None) -> ChatChunk:
        frame = self._frame
        return ChatChunk(
            id=frame.id,
            object="chat.completion.chunk",
            created=frame.created,
            model=frame.model,
            choices=choices,
            system_fingerprint=frame.fingerprint,
            usage=usage,
        )
