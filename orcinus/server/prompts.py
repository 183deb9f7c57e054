"""From what a client wrote to token ids: texts, conversations, and cutting to size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orcinus.errors import InvalidRequest
from orcinus.server.intake import Intake, off_loop
from orcinus.server.protocol import ChatMessage
from orcinus.server.translate import messages_of
from orcinus.text.chat import Scalar


@dataclass(frozen=True, slots=True)
class Prompts:
    """Tokenising and templates of one server."""

    intake: Intake

    async def of_texts(
        self, prompts: list[str] | list[list[int]], *, add_special_tokens: bool = True
    ) -> Sequence[Sequence[int]]:
        """Token ids of texts; ids are passed on.

        Raises:
            InvalidRequest: text, and the model has no tokenizer.
        """
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        if not texts:
            return [prompt for prompt in prompts if not isinstance(prompt, str)]
        tokenizer = self.intake.tokenizer("prompt")
        size = sum(map(len, texts))
        return await off_loop(
            size, lambda: [tokenizer.encode(text, add_special_tokens=add_special_tokens) for text in texts]
        )

    async def of_conversation(
        self,
        messages: list[ChatMessage],
        *,
        add_generation_prompt: bool | None,
        continue_final_message: bool | None,
        variables: Mapping[str, Scalar] | None,
        add_special_tokens: bool = False,
    ) -> list[int]:
        """Token ids of a conversation, laid out by the model's chat template.

        Raises:
            InvalidRequest: no template, or one that refuses the conversation; two ends that contradict each other.
        """
        tokenizer, template = self.intake.tokenizer("messages"), self.intake.context.chat_template
        if template is None:
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
        rendered = messages_of(messages)

        def encode() -> list[int]:
            text = template.render(
                rendered, add_generation_prompt=opens, continue_final_message=continues, variables=variables
            )
            return tokenizer.encode(text, add_special_tokens=add_special_tokens)

        return await off_loop(sum(len(str(message["content"])) for message in rendered), encode)

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
