"""What core tells the front end about a sequence."""

from __future__ import annotations

import msgspec

from orcinus.core.plan import TokenLogprobs
from orcinus.core.request import FinishReason


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """New tokens of one answer, or its end, or both.

    Args:
        index: which of the request's n answers.
        tokens: sampled since the last progress; the last one may be an end token.
        logprobs: one for each of `tokens`, if asked for.
        prompt_logprobs: for prompt positions 1.., in order, as they are computed; index 0 only.
        finish_reason: set exactly once for each index.
        error_code, error_message: set with `FinishReason.ERROR`.
        stop_token: the end token that ended it (also the last of `tokens`), if one did.
        pooled: the vector, packed float32, where the request wants one instead of tokens.
        cached_tokens: of the prompt, found in the prefix cache when the request first began; the same each time.
    """

    request_id: str
    index: int
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    error_code: str = ""
    error_message: str = ""
    stop_token: int | None = None
    pooled: bytes = b""
    cached_tokens: int = 0
