"""A worker: a plan in, sampled tokens out. It decides nothing, and reports a wrong plan instead of repairing it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import torch

from orcinus.core.plan import IterationPlan, IterationResult, SequenceFailure, SequenceOutput, TokenLogprobs
from orcinus.errors import RequestFailed
from orcinus.models import Model
from orcinus.worker.kv import KVCache
from orcinus.worker.pack import Packed, pack, to_device
from orcinus.worker.pooling import pool
from orcinus.worker.sampler import Sampled, Sampler, SampleRow
from orcinus.worker.sequences import SequenceLog, Sequences


@dataclass(frozen=True, slots=True)
class _Found:
    """What an iteration gave, by work item."""

    outputs: dict[int, SequenceOutput]
    failures: dict[int, SequenceFailure]


class Worker:
    """One device's model, KV memory and sampler."""

    def __init__(
        self,
        model: Model,
        kv: KVCache,
        *,
        block_size: int,
        max_sequence_tokens: int,
        max_batch_size: int,
        device: torch.device,
    ) -> None:
        self._model = model
        self._kv = kv
        self._block_size = block_size
        self._device = device
        self._sampler = Sampler(model.shape.vocab_size, device)
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
        found = _Found({}, {})
        hidden = self._model.forward(packed.tokens, packed.batch, self._kv.layers, packed.segments)
        if packed.pooled:
            self._pool(plan, logs, packed, hidden, found)
        if len(packed.rows):
            self._sample(plan, logs, packed, self._model.logits(hidden[packed.rows]), found)
        return tuple(found.outputs.values()), tuple(found.failures.values())

    def _pool(
        self, plan: IterationPlan, logs: list[SequenceLog], packed: Packed, hidden: torch.Tensor, found: _Found
    ) -> None:
        """Vectors, by work item."""
        wanted = []
        for i, rows in packed.pooled:
            pooling = logs[i].description.pooling
            assert pooling is not None
            wanted.append((pooling, rows))
        for (i, _), vector in zip(packed.pooled, pool(self._model, hidden, wanted), strict=True):
            seq_id = plan.work[i].seq_id
            if bool(torch.isfinite(vector).all()):
                found.outputs[i] = SequenceOutput(seq_id, (), pooled=vector.cpu().numpy().tobytes())
            else:
                found.failures[i] = SequenceFailure(seq_id, "numerical_error", _EXPLANATIONS["numerical_error"])

    def _sample(
        self, plan: IterationPlan, logs: list[SequenceLog], packed: Packed, logits: torch.Tensor, found: _Found
    ) -> None:
        """Tokens and log-probabilities, by work item. `logits` has the rows of the samples, then the scored ones."""
        scores = dict(self._score_prompts(logits[len(packed.samples) :], logs, packed))
        rows = [_sample_row(logs[i]) for i in packed.samples]
        sampled = self._sampler.sample(logits[: len(rows)], rows) if rows else []
        for i, result in zip(packed.samples, sampled, strict=True):
            seq_id = plan.work[i].seq_id
            if result.failure:
                found.failures[i] = SequenceFailure(seq_id, result.failure, _EXPLANATIONS[result.failure])
            else:
                logs[i].append(result.token)
                found.outputs[i] = _output(seq_id, result)
        for i, score in scores.items():
            if isinstance(score, RequestFailed):
                found.outputs.pop(i, None)
                found.failures[i] = SequenceFailure(plan.work[i].seq_id, score.code, str(score))
            elif i not in found.failures:
                sampled_too = found.outputs.get(i, SequenceOutput(plan.work[i].seq_id, ()))
                found.outputs[i] = msgspec.structs.replace(sampled_too, prompt_logprobs=score)

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
