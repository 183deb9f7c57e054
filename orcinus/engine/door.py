"""The door: what every request passes on its way in, from the server and from `LLM` alike. Imports without torch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from orcinus.core.request import BeamSearch, Pooling, Request, SamplingParams, ServiceClass, pack_tokens
from orcinus.engine.messages import EngineDescription
from orcinus.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Door:
    """Bounds every number against the engine at hand, draws a missing seed, sets a missing max_tokens."""

    engine: EngineDescription
    seeds: random.Random

    def admit(
        self,
        request_id: str,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        arrived_at: float = 0.0,
        priority: int = 0,
        service_class: ServiceClass = ServiceClass.NORMAL,
        tenant: str = "",
        deadline: float | None = None,
        cache_salt: str = "",
        resumed: tuple[bytes, ...] = (),
        beams: BeamSearch | None = None,
    ) -> Request:
        """The request as core takes it; see `Request` for the arguments.

        Raises:
            InvalidRequest: it can't be served by this engine, whatever the load; the message gives the bound.
        """
        if not self.engine.generates:
            raise InvalidRequest(
                f"{self.engine.architecture} has no vocabulary head, so it can't generate; ask it for embeddings"
                f"{' or classes' if self.engine.labels else ''}",
                param="model",
                code="unsupported_task",
            )
        self._check_tokens(prompt, "prompt")
        self._check_listed_tokens(params)
        room = self.engine.max_sequence_tokens - len(prompt)
        max_tokens = room if params.max_tokens is None else params.max_tokens
        if room < 1 or max_tokens > room:
            raise InvalidRequest(
                f"This model's maximum context length is {self.engine.max_sequence_tokens} tokens. However, you "
                f"requested {len(prompt) + max(max_tokens, 1)} tokens ({len(prompt)} in the prompt, "
                f"{max(max_tokens, 1)} for the answer). Please reduce the length of either.",
                param="max_tokens" if room >= 1 else "prompt",
                code="context_length_exceeded",
            )
        self._check_answers(len(prompt) + max_tokens, params.n)
        if beams is not None:
            beams.check(params)
            self._check_width(len(prompt) + max_tokens, beams.width, params)
        seed = self.seeds.getrandbits(63) if params.seed is None else params.seed
        return Request(
            request_id=request_id,
            prompt=pack_tokens(list(prompt)),
            params=msgspec.structs.replace(params, max_tokens=max_tokens, seed=seed),
            eos_token_ids=self.engine.eos_token_ids,
            weights_revision=self.engine.weights_revision,
            priority=priority,
            service_class=service_class,
            tenant=tenant,
            deadline=deadline,
            cache_salt=cache_salt,
            arrived_at=arrived_at,
            resumed=resumed,
            beams=beams,
        )

    def admit_pooling(
        self,
        request_id: str,
        prompt: Sequence[int],
        *,
        classify: bool = False,
        second_segment: int = 0,
        arrived_at: float = 0.0,
    ) -> Request:
        """A request for one vector of the prompt: its embedding, or with `classify` the scores of the labels.

        Args:
            second_segment: where the second text of a pair begins; 0 if there is none.

        Raises:
            InvalidRequest: it can't be served by this engine; the message gives the bound.
        """
        engine = self.engine
        if classify and not engine.labels:
            raise InvalidRequest(
                f"{engine.architecture} has no classifier; load a checkpoint for sequence classification",
                param="model",
                code="unsupported_task",
            )
        self._check_tokens(prompt, "input")
        whole = not engine.is_causal or engine.pooling != "last"
        longest = min(engine.max_sequence_tokens, engine.max_batch_tokens if whole else engine.max_sequence_tokens)
        if len(prompt) > longest:
            raise InvalidRequest(
                f"This model takes at most {longest} tokens at once; the input has {len(prompt)}. Please shorten it.",
                param="input",
                code="context_length_exceeded",
            )
        return Request(
            request_id=request_id,
            prompt=pack_tokens(list(prompt)),
            params=SamplingParams(),
            weights_revision=engine.weights_revision,
            arrived_at=arrived_at,
            pooling=Pooling(
                type=engine.pooling,
                classify=classify,
                whole=whole,
                second_segment=second_segment if engine.pair_segments else 0,
            ),
        )

    def _check_tokens(self, tokens: Sequence[int], param: str) -> None:
        """Ids outside the vocabulary would read past the embedding table."""
        vocab_size = self.engine.vocab_size
        if not tokens:
            raise InvalidRequest(f"the {param} is empty; give at least one token", param=param, code="invalid_value")
        if min(tokens) < 0 or max(tokens) >= vocab_size:
            raise _out_of_vocabulary(param, vocab_size)

    def _check_listed_tokens(self, params: SamplingParams) -> None:
        vocab_size = self.engine.vocab_size
        for name in ("allowed_token_ids", "banned_token_ids", "stop_token_ids", "logit_bias"):
            ids = getattr(params, name)
            if ids and max(ids) >= vocab_size:
                raise InvalidRequest(
                    f"{name} names a token id outside 0..{vocab_size - 1}", param=name, code="invalid_value"
                )

    def _check_answers(self, tokens: int, n: int) -> None:
        """n answers run together, so together they must fit an empty engine."""
        if n > self.engine.max_batch_size:
            bound = self.engine.max_batch_size
            raise InvalidRequest(
                f"n is {n}; this engine runs at most {bound} sequences at a time", param="n", code="invalid_value"
            )
        if n * tokens > self.engine.max_request_tokens and n > 1:
            raise InvalidRequest(
                f"{n} answers of up to {tokens} tokens need {n * tokens} tokens of KV memory; this engine has "
                f"{self.engine.max_request_tokens}. Lower n or max_tokens.",
                param="n",
                code="invalid_value",
            )

    def _check_width(self, tokens: int, width: int, params: SamplingParams) -> None:
        """Beams run together, too; and there must be as many tokens to begin with."""
        engine, param = self.engine, "n" if params.n == width else "best_of"
        ends = len({*(params.stop_token_ids or ()), *(() if params.ignore_eos else engine.eos_token_ids)})
        for needed, bound, what in (
            (width, engine.max_batch_size, "sequences at a time"),
            (width, engine.vocab_size - ends, "tokens to go on with"),
            (width * tokens, engine.max_request_tokens, "tokens of KV memory"),
        ):
            if needed > bound:
                raise InvalidRequest(
                    f"{width} beams of up to {tokens} tokens need {needed} {what}; this engine has {bound}",
                    param=param,
                    code="invalid_value",
                )


def _out_of_vocabulary(name: str, vocab_size: int) -> InvalidRequest:
    return InvalidRequest(f"{name} holds a token id outside 0..{vocab_size - 1}", param=name, code="invalid_value")
