"""A worker: a plan in, sampled tokens out. It decides nothing, and reports a wrong plan instead of repairing it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from orcinus.core.plan import IterationPlan, IterationResult, SequenceFailure, SequenceOutput, TokenLogprobs
from orcinus.errors import RequestFailed
from orcinus.models.decoder import Decoder
from orcinus.worker.kv import KVCache
from orcinus.worker.pack import Packed, pack, to_device
from orcinus.worker.sampler import Sampled, Sampler, SampleRow
from orcinus.worker.sequences import SequenceLog, Sequences


class Worker:
    """One device's model, KV memory and sampler."""

    def __init__(
        self,
        decoder: Decoder,
        kv: KVCache,
        *,
        block_size: int,
        max_sequence_tokens: int,
        max_batch_size: int,
        device: torch.device,
    ) -> None:
        self._decoder = decoder
        self._kv = kv
        self._block_size = block_size
        self._device = device
        self._sampler = Sampler(decoder.config.vocab_size, device)
        self._sequences = Sequences(-(-max_sequence_tokens // block_size), max_batch_size)
        self._epoch = 0

    @torch.inference_mode()
    def execute(self, plan: IterationPlan) -> IterationResult:
        """Run one plan. Plans come in order; the first one of a new epoch makes the worker forget all sequences.

        Raises:
            PlanError: the plan contradicts the worker's state.
        """
        started_at = time.perf_counter()
        if plan.epoch != self._epoch:
            self._sequences.clear()
            self._epoch = plan.epoch
        self._sequences.apply(plan)
        self._kv.copy(plan.copies)
        logs = [self._sequences[item.seq_id] for item in plan.work]
        packed = to_device(pack(plan.work, logs, self._sequences, self._block_size), self._device)
        outputs, failures = self._run(plan, logs, packed)
        return IterationResult(
            plan.epoch, plan.iteration, outputs, failures, stage_times=(time.perf_counter() - started_at,)
        )

    def _run(
        self, plan: IterationPlan, logs: list[SequenceLog], packed: Packed
    ) -> tuple[tuple[SequenceOutput, ...], tuple[SequenceFailure, ...]]:
        logits = self._decoder.forward(packed.tokens, packed.batch, self._kv.layers, packed.rows)
        scores = dict(self._score_prompts(logits[len(packed.samples) :], logs, packed))
        rows = [_sample_row(logs[i]) for i in packed.samples]
        sampled = self._sampler.sample(logits[: len(rows)], rows) if rows else []
        outputs: dict[int, SequenceOutput] = {}
        failures: dict[int, SequenceFailure] = {}
        for i, result in zip(packed.samples, sampled, strict=True):
            seq_id = plan.work[i].seq_id
            if result.failure:
                failures[i] = SequenceFailure(seq_id, result.failure, _EXPLANATIONS[result.failure])
            else:
                logs[i].append(result.token)
                outputs[i] = _output(seq_id, result)
        for i, score in scores.items():
            if isinstance(score, RequestFailed):
                outputs.pop(i, None)
                failures[i] = SequenceFailure(plan.work[i].seq_id, score.code, str(score))
            elif i not in failures:
                tokens, logprobs = (outputs[i].tokens, outputs[i].logprobs) if i in outputs else ((), ())
                outputs[i] = SequenceOutput(plan.work[i].seq_id, tokens, logprobs, score)
        return tuple(outputs.values()), tuple(failures.values())

    def _score_prompts(
        self, logits: torch.Tensor, logs: list[SequenceLog], packed: Packed
    ) -> Iterator[tuple[int, tuple[TokenLogprobs, ...] | RequestFailed]]:
        """Log-probabilities of prompt tokens: one row of `logits` for each position of `packed.scored`, in order."""
        first = 0
        for i, positions in packed.scored:
            rows = logits[first : first + len(positions)]
            first += len(positions)
            top_n = logs[i].description.params.prompt_logprobs
            assert top_n is not None
            if not bool(torch.isfinite(rows.amax(dim=-1)).all()):
                yield i, RequestFailed(_EXPLANATIONS["numerical_error"], code="numerical_error")
                continue
            targets = logs[i].tokens[positions.start : positions.stop].tolist()
            yield i, tuple(self._sampler.prompt_logprobs(rows, targets, top_n))


_EXPLANATIONS = {
    "numerical_error": "the model's output for this request was not a number; other requests were not affected",
    "no_candidates": "no token was left to choose from: allowed_token_ids, banned_token_ids, logit_bias and min_tokens "
    "exclude all",
}


def _sample_row(log: SequenceLog) -> SampleRow:
    description = log.description
    return SampleRow(
        params=description.params,
        index=description.index,
        num_prompt_tokens=description.num_prompt_tokens,
        end_token_ids=description.end_token_ids,
        tokens=log.tokens,
    )


def _output(seq_id: int, sampled: Sampled) -> SequenceOutput:
    logprobs = (sampled.logprobs,) if sampled.logprobs is not None else ()
    return SequenceOutput(seq_id, (sampled.token,), logprobs)
