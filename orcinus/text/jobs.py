"""Work on text that a client can make long, as messages: done here, or in a process of its own (`text.worker`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from orcinus.core.request import pack_tokens, unpack_tokens
from orcinus.errors import InvalidRequest
from orcinus.text.chat import ChatTemplate, Scalar
from orcinus.text.strict_json import check_json
from orcinus.text.tokenizer import Tokenizer


class EncodeTexts(msgspec.Struct, frozen=True, tag="texts"):
    """Token ids of each text."""

    texts: list[str]
    add_special_tokens: bool


class EncodePairs(msgspec.Struct, frozen=True, tag="pairs"):
    """Token ids of each two texts as one input."""

    pairs: list[tuple[str, str]]


class EncodeConversation(msgspec.Struct, frozen=True, tag="conversation"):
    """Token ids of a conversation, laid out by the chat template; see `ChatTemplate.render`."""

    messages: list[dict[str, object]]
    add_generation_prompt: bool
    continue_final_message: bool
    variables: Mapping[str, Scalar]
    add_special_tokens: bool


class DecodeTokens(msgspec.Struct, frozen=True, tag="decode"):
    """The text of packed token ids, special ones included."""

    tokens: bytes


class CheckJson(msgspec.Struct, frozen=True, tag="check_json"):
    """Whether a body is JSON that all readers read alike; see `strict_json`."""

    body: bytes


TextJob = EncodeTexts | EncodePairs | EncodeConversation | DecodeTokens
Job = CheckJson | TextJob


class TokenLists(msgspec.Struct, frozen=True, tag="tokens"):
    """Packed token ids of each input; of pairs also where the second text begins, or 0."""

    packed: list[bytes]
    second_segments: list[int] = []

    @property
    def lists(self) -> list[list[int]]:
        """Unpacked."""
        return [unpack_tokens(tokens).tolist() for tokens in self.packed]


class Checked(msgspec.Struct, frozen=True, tag="checked"):
    """Nothing is wrong with it."""


class Decoded(msgspec.Struct, frozen=True, tag="decoded"):
    """A text."""

    text: str


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """An `InvalidRequest`, on its way between processes."""

    message: str
    param: str | None
    code: str | None

    def error(self) -> InvalidRequest:
        """As it was raised."""
        return InvalidRequest(self.message, param=self.param, code=self.code)


Outcome = Checked | TokenLists | Decoded | Refused


@dataclass(frozen=True, slots=True)
class TextSide:
    """What a checkpoint brings for text: a tokenizer, and a chat template; one without serves token ids only."""

    tokenizer: Tokenizer | None
    template: ChatTemplate | None

    @classmethod
    def load(cls, model: Path) -> TextSide:
        """Of a checkpoint.

        Raises:
            CheckpointError: files that can't be used.
        """
        tokenizer = Tokenizer.load(model)
        return cls(tokenizer, ChatTemplate.of(tokenizer))

    def do(self, job: Job) -> Outcome:
        """The outcome of one job."""
        try:
            return self._do(job)
        except InvalidRequest as error:
            return Refused(error.message, error.param, error.code)

    def _do(self, job: Job) -> Outcome:
        if isinstance(job, CheckJson):
            check_json(job.body)
            return Checked()
        assert self.tokenizer is not None, "text needs a tokenizer; the caller has checked"
        return self._read(job, self.tokenizer)

    def _read(self, job: TextJob, tokenizer: Tokenizer) -> Outcome:
        match job:
            case EncodeTexts():
                special = job.add_special_tokens
                return TokenLists(
                    [pack_tokens(tokenizer.encode(text, add_special_tokens=special)) for text in job.texts]
                )
            case EncodePairs():
                inputs = [tokenizer.encode_pair(*pair) for pair in job.pairs]
                return TokenLists([pack_tokens(tokens) for tokens, _ in inputs], [second for _, second in inputs])
            case EncodeConversation():
                text = self._render(job)
                return TokenLists([pack_tokens(tokenizer.encode(text, add_special_tokens=job.add_special_tokens))])
            case DecodeTokens():
                tokens = unpack_tokens(job.tokens)
                return Decoded(tokenizer.decode(tokens.tolist(), skip_special_tokens=False))

    def _render(self, job: EncodeConversation) -> str:
        assert self.template is not None, "conversations need a chat template; the caller has checked"
        return self.template.render(
            job.messages,
            add_generation_prompt=job.add_generation_prompt,
            continue_final_message=job.continue_final_message,
            variables=job.variables,
        )
