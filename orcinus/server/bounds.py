"""The bounds of what HTTP alone knows: texts, lists, conversations. Those of sampling are in `core.bounds`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from orcinus.core.bounds import MAX_TOKEN_ID, TokenId

# No text can be longer than the largest body.
Text = Annotated[str, Meta(max_length=16 * 2**20)]
Name = Annotated[str, Meta(max_length=256)]
Word = Annotated[str, Meta(max_length=64)]
ShortText = Annotated[str, Meta(max_length=1024)]
Role = Literal["system", "developer", "user", "assistant", "tool"]
# Without the look-ahead, `$` would let a final line feed pass.
Salt = Annotated[str, Meta(pattern="^[A-Za-z0-9._-]{0,64}(?!\\n)$", max_length=64)]
Priority = Annotated[int, Meta(ge=-(2**31), le=2**31)]
# vLLM's word for "off" besides 0.
TopK = Annotated[int, Meta(ge=-1, le=MAX_TOKEN_ID)]
# -1 keeps as many as the model takes; which positive ones it takes is for the endpoint to say.
KeptTokens = Annotated[int, Meta(ge=-1, le=MAX_TOKEN_ID)]
# 0 with `echo` wants nothing but the prompt back.
NumTokensBesideEcho = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]

# Longer ones don't fit any context.
_MAX_PROMPT_TOKENS = 2**20
TokenIds = Annotated[list[TokenId], Meta(max_length=_MAX_PROMPT_TOKENS)]
MAX_PROMPTS = 256
# One list type for texts, token ids and lists of them; `MAX_PROMPTS` bounds texts and lists of ids.
Prompt = Text | Annotated[list[Text | TokenId | TokenIds], Meta(max_length=_MAX_PROMPT_TOKENS)]
# OpenAI's bound.
MAX_INPUTS = 2048
Texts = Annotated[list[Text], Meta(max_length=MAX_INPUTS)]
Dimensions = Annotated[int, Meta(ge=1, le=2**20)]
NumBest = Annotated[int, Meta(ge=0, le=MAX_INPUTS)]

Scalar = (
    ShortText
    | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
    | Annotated[float, Meta(ge=-1e308, le=1e308)]
    | bool
    | None
)
TemplateVariables = Annotated[dict[Word, Scalar], Meta(max_length=32)]
# Of what is only refused.
Refused = Annotated[list[object], Meta(max_length=128)]
