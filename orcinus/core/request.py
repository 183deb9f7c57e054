"""What a client asked, and how its answer is to be sampled. Immutable past the door."""

from __future__ import annotations

from array import array
from enum import IntEnum, StrEnum
from typing import Literal

import msgspec

from orcinus.core import bounds
from orcinus.errors import InvalidRequest

# Token ids are packed as the C type of 4 bytes; core and the wire agree on it by checking once.
TOKEN_TYPECODE = "I"
assert array(TOKEN_TYPECODE).itemsize == 4


def pack_tokens(tokens: list[int] | tuple[int, ...] | array[int]) -> bytes:
    """Token ids as packed uint32, the form they have in core and on the wire."""
    return array(TOKEN_TYPECODE, tokens).tobytes()


def unpack_tokens(packed: bytes) -> array[int]:
    """The inverse of `pack_tokens`."""
    tokens = array(TOKEN_TYPECODE)
    tokens.frombytes(packed)
    return tokens


class ServiceClass(IntEnum):
    """Served in this order, whatever the policy (SYSTEMS.md, G1)."""

    REALTIME = 0
    NORMAL = 1
    BESTEFFORT = 2


class FinishReason(StrEnum):
    """Why a sequence ended. A stop string, found outside core, ends as `stop`."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class SamplingParams(bounds.Checked, frozen=True, kw_only=True, omit_defaults=True):
    """How one request's tokens are chosen. Names and meanings are those of vLLM and OpenAI.

    Args:
        n: answers to the one prompt; they share the prompt's KV blocks.
        temperature: 0 is greedy; else the logits are divided by it before truncation.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches p.
        min_p: keep tokens at least this share as likely as the likeliest.
        repetition_penalty: > 1 divides positive (multiplies negative) logits of tokens seen in prompt or answer.
        presence_penalty: subtracted once from the logit of each token in the answer so far.
        frequency_penalty: subtracted per occurrence in the answer so far.
        logit_bias: added to the logit of a token id.
        allowed_token_ids: nothing else can be sampled.
        banned_token_ids: can't be sampled.
        max_tokens: end after this many tokens; None means as many as the context allows.
        min_tokens: no end-of-sequence and no stop token before this many.
        stop: the answer ends before the first of these strings.
        stop_token_ids: the answer ends after the first of these tokens.
        include_stop_str_in_output: keep the stop string in the text.
        ignore_eos: go on past the end-of-sequence token.
        seed: of this request's draws; the door draws one where it is missing.
        logprobs: log-probabilities of the chosen token and of this many likeliest ones, before truncation.
        prompt_logprobs: the same for each prompt token but the first.
        skip_special_tokens: leave special tokens out of the text.
        detokenize: produce text at all.

    Raises:
        InvalidRequest: a value out of its range; it names the parameter, the value and the bound.
    """

    n: bounds.NumAnswers = 1
    temperature: bounds.Temperature = 1.0
    top_k: bounds.TopK = 0
    top_p: bounds.TopP = 1.0
    min_p: bounds.MinP = 0.0
    repetition_penalty: bounds.RepetitionPenalty = 1.0
    presence_penalty: bounds.Penalty = 0.0
    frequency_penalty: bounds.Penalty = 0.0
    logit_bias: bounds.LogitBias | None = None
    allowed_token_ids: bounds.AllowedTokens | None = None
    banned_token_ids: bounds.ListedTokens | None = None
    max_tokens: bounds.NumTokens | None = 16
    min_tokens: bounds.MinTokens = 0
    stop: bounds.Stop | None = None
    stop_token_ids: bounds.ListedTokens | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    seed: bounds.Seed | None = None
    logprobs: bounds.NumLogprobs | None = None
    prompt_logprobs: bounds.NumLogprobs | None = None
    skip_special_tokens: bool = True
    detokenize: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                f"min_tokens {self.min_tokens} exceeds max_tokens {self.max_tokens}",
                param="min_tokens",
                code="invalid_value",
            )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, whichever form it was given in."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


PoolingType = Literal["cls", "mean", "last"]


class Pooling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Instead of tokens, one vector is wanted: the prompt's states made one, or a classifier's scores of that.

    Args:
        type: the state of the first token, of the last one, or the mean of all.
        classify: the scores of the labels, not the state.
        whole: all tokens in one iteration: an encoder's tokens see each other, and only `last` needs one row alone.
        second_segment: position at which the second text of a pair begins, where the model tells them apart; 0 if
            there is no second one.
    """

    type: PoolingType
    classify: bool = False
    whole: bool = True
    second_segment: int = 0


# What doesn't alter the model's probabilities, and what is known before a search ends. A stop string ends a text in
# which the tokens behind it have been searched already: a stop token does what is wanted.
_PLAIN_IN_SEARCH: dict[str, object] = {
    "temperature": 0,
    "top_k": 0,
    "top_p": 1,
    "min_p": 0,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": None,
    "allowed_token_ids": None,
    "banned_token_ids": None,
    "prompt_logprobs": None,
    "stop": None,
}


class BeamSearch(bounds.Checked, frozen=True, kw_only=True, omit_defaults=True):
    """The likeliest answers are searched for, by keeping the `width` likeliest beginnings. Meanings as in transformers.

    Args:
        width: sequences that run at a time; of the answers found, the best `params.n` are told.
        length_penalty: an answer's score is its log-probability divided by its length to this power.
        early_stopping: True ends the search once `width` answers are found, False once no beginning that is left would
            beat the worst of them if it ended now, "never" once none can at any length.

    Raises:
        InvalidRequest: a value out of its range.
    """

    width: bounds.NumAnswers
    length_penalty: bounds.LengthPenalty = 1.0
    early_stopping: bounds.EarlyStopping = False

    def check(self, params: SamplingParams) -> None:
        """Nothing is drawn in a search, and its answers are compared as the model sees them.

        Raises:
            InvalidRequest: `params` ask for what would need another search.
        """
        for name, plain in _PLAIN_IN_SEARCH.items():
            # An empty list or map asks for nothing.
            if (value := getattr(params, name)) != plain and value not in ([], (), {}):
                raise InvalidRequest(
                    f"{name} can't be combined with beam search; leave it out", param=name, code="invalid_value"
                )
        if params.n > self.width:
            raise InvalidRequest(
                f"n is {params.n}, more than the {self.width} beams of the search", param="n", code="invalid_value"
            )


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One prompt past the door: bounded, seeded, complete.

    Args:
        request_id: unique among live requests.
        prompt: packed uint32 token ids, at least one.
        params: `seed` and `max_tokens` are set.
        eos_token_ids: end-of-sequence tokens of the model; they count only unless `params.ignore_eos`.
        weights_revision: identifies the weights that the answer is made with.
        adapter: content hash of a LoRA adapter; empty for the base model.
        priority: lower is sooner, for the `priority` policy.
        deadline: instant after which nobody wants the answer.
        cache_salt: narrows who may share this request's KV blocks.
        arrived_at: seconds of the engine's clock.
        pooling: a vector is wanted instead of tokens; then `params` say nothing and `n` is 1.
        beams: the answers are searched for; they come at the end, all at once, the best first.
        resumed: packed tokens already generated, one entry per sequence index (all, or none). They count as
            generated for penalties, limits, random position and stops: continuation after a failure is this field.
    """

    request_id: str
    prompt: bytes
    params: SamplingParams
    eos_token_ids: tuple[int, ...] = ()
    weights_revision: str = ""
    adapter: str = ""
    priority: int = 0
    service_class: ServiceClass = ServiceClass.NORMAL
    tenant: str = ""
    deadline: float | None = None
    cache_salt: str = ""
    arrived_at: float = 0.0
    resumed: tuple[bytes, ...] = ()
    pooling: Pooling | None = None
    beams: BeamSearch | None = None

    @property
    def num_sequences(self) -> int:
        """That run at a time: one for each answer, or for each beam."""
        return self.params.n if self.beams is None else self.beams.width

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt) // 4

    @property
    def max_tokens(self) -> int:
        """Most tokens an answer may have; the door has set it. None are sampled where a vector is wanted."""
        if self.pooling is not None:
            return 0
        assert self.params.max_tokens is not None
        return self.params.max_tokens

    @property
    def num_candidates(self) -> int:
        """Likeliest tokens that a search needs of each beam; 0 without one.

        End tokens don't go on. Without them at least as many are left as the search is wide: no other can be chosen.
        """
        if self.beams is None:
            return 0
        return max(self.beams.width + len(self.end_token_ids), self.params.logprobs or 0)

    @property
    def is_whole(self) -> bool:
        """The prompt can't be cut into chunks."""
        return self.pooling is not None and self.pooling.whole

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer once `min_tokens` are reached."""
        eos = () if self.params.ignore_eos else self.eos_token_ids
        return frozenset(eos) | frozenset(self.params.stop_token_ids or ())
