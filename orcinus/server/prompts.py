"""From what a client wrote to token ids: texts, conversations, and cutting to size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.requests import Request

from orcinus.core.bounds import MAX_TOKEN_ID
from orcinus.errors import InvalidRequest
from orcinus.server.intake import Intake
from orcinus.server.protocol import ChatMessage
from orcinus.server.translate import messages_of
from orcinus.text.chat import Scalar
from orcinus.text.jobs import EncodeConversation, EncodeTexts, TokenLists

# A normaliser may drop characters (BERT's drops surplus spaces), but not nearly all of them.
_MAX_DROPPED = 4


@dataclass(frozen=True, slots=True)
class Prompts:
    """Tokenising and templates of one server."""

    intake: Intake

    async def of_texts(
        self,
        request: Request,
        prompts: list[str] | list[list[int]],
        *,
        add_special_tokens: bool = True,
        longest: int = MAX_TOKEN_ID,
        param: str = "prompt",
    ) -> Sequence[Sequence[int]]:
        """Token ids of texts; ids are passed on.

        Args:
            longest: tokens that each may have; what can't be that short isn't even read.

        Raises:
            InvalidRequest: text, and the model has no tokenizer; or one that takes too long to read.
        """
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        if not texts:
            return [prompt for prompt in prompts if not isinstance(prompt, str)]
        for text in texts:
            self._check_length(len(text), longest, param)
        job = EncodeTexts(texts, add_special_tokens)
        outcome = await self.intake.text_job(job, sum(map(len, texts)), request, param)
        assert isinstance(outcome, TokenLists)
        return outcome.lists

    async def of_conversation(
        self,
        request: Request,
        messages: list[ChatMessage],
        *,
        add_generation_prompt: bool | None,
        continue_final_message: bool | None,
        variables: Mapping[str, Scalar] | None,
        add_special_tokens: bool = False,
        longest: int = MAX_TOKEN_ID,
    ) -> list[int]:
        """Token ids of a conversation, laid out by the model's chat template.

        Raises:
            InvalidRequest: no template, or one that refuses the conversation; two ends that contradict each other.
        """
        self.intake.tokenizer("messages")
        if self.intake.context.chat_template is None:
            raise InvalidRequest(
                "this model has no chat template; use /v1/completions", param="messages", code="unsupported_parameter"
            )
        continues = bool(continue_final_message)
        opens = not continues if add_generation_prompt is None else add_generation_prompt
        if opens and continues:
            raise InvalidRequest(
                "continue_final_message goes on within the last message, add_generation_prompt begins another; use one",
                param="continue_final_message",
                code="invalid_value",
            )
        read = messages_of(messages)
        size = sum(len(str(message["content"])) for message in read)
        self._check_length(size, longest, "messages")
        job = EncodeConversation(read, opens, continues, variables or {}, add_special_tokens)
        outcome = await self.intake.text_job(job, size, request, "messages", is_program=True)
        assert isinstance(outcome, TokenLists)
        return outcome.lists[0]

    def longest(self, keep: int | None) -> int:
        """Tokens that a prompt may have before it is cut to the last `keep`."""
        return self.intake.context.door.engine.max_sequence_tokens if keep is None else MAX_TOKEN_ID

    def cut(self, prompt: Sequence[int], keep: int | None) -> Sequence[int]:
        """The last `keep` tokens; -1 keeps as many as the model takes, one less so that an answer has room.

        Raises:
            InvalidRequest: a number that makes no sense.
        """
        longest = self.intake.context.door.engine.max_sequence_tokens - 1
        if keep is None:
            return prompt
        if keep != -1 and not 1 <= keep <= longest + 1:
            raise InvalidRequest(
                f"truncate_prompt_tokens is {keep}; it must be -1 or between 1 and {longest + 1}",
                param="truncate_prompt_tokens",
                code="invalid_value",
            )
        return prompt[-(longest if keep == -1 else keep) :]

    def _check_length(self, num_characters: int, longest: int, param: str) -> None:
        most = longest * self.intake.tokenizer(param).longest_token * _MAX_DROPPED
        if num_characters > most:
            raise InvalidRequest(
                f"This model's maximum context length is {longest} tokens. However, you sent {num_characters} "
                "characters, which can't be so few tokens. Please shorten them.",
                param=param,
                code="context_length_exceeded",
            )
