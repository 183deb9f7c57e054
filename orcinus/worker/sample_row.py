"""What the sampler is told about a sequence, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from orcinus.core.plan import TokenLogprobs
from orcinus.core.request import SamplingParams

# The model gave NaN, +inf or nothing finite; or the request's own masks left nothing.
FailureCode = Literal["", "numerical_error", "no_candidates"]


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One sequence that samples in this iteration.

    Args:
        params: `seed` is set unless `temperature` is 0.
        index: which of the request's answers; part of the random key.
        num_prompt_tokens: how many of `tokens` are prompt.
        end_token_ids: masked until `params.min_tokens` are generated.
        tokens: prompt and generated so far; its length is the position of the token to be sampled.
        num_candidates: so many of the likeliest tokens are wanted, whatever `params` say.
    """

    params: SamplingParams
    index: int
    num_prompt_tokens: int
    end_token_ids: tuple[int, ...]
    tokens: NDArray[np.uint32]
    num_candidates: int = 0

    @property
    def num_logprobs(self) -> int | None:
        """Likeliest tokens to come with the sampled one; None if not even its own log-probability is wanted."""
        return self.num_candidates or self.params.logprobs

    @property
    def num_generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.num_prompt_tokens


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token drawn for one row, with log-probabilities if asked for; `failure` is empty unless the row failed.

    The token of a failed row means nothing.
    """

    token: int
    logprobs: TokenLogprobs | None = None
    failure: FailureCode = ""
