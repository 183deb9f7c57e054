"""A worker: a plan in, sampled tokens out. It decides nothing, and reports a wrong plan instead of repairing it.

One of several that hold a model together does the same with its part: states come from the stage before and go to the
next, and only the first rank of the last stage has something to report.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
import torch

from orcinus.core.plan import STALE_KV, IterationPlan, IterationResult, SequenceFailure, SequenceOutput, TokenLogprobs
from orcinus.errors import RequestFailed
from orcinus.models import Model
from orcinus.parallel import Place
from orcinus.parallel.wiring import Links
from orcinus.worker.fed_back import FedBack
from orcinus.worker.kv import KVCache
from orcinus.worker.pack import Packed, pack, to_device
from orcinus.worker.pooling import pool
from orcinus.worker.sampler import Sampled, Sampler, SampleRow
from orcinus.worker.sequences import SequenceLog, Sequences
from orcinus.worker.steady import Steady
from orcinus.worker.tiers import KVTiers, Missed


@dataclass(frozen=True, slots=True)
class _Found:
    """What an iteration gave, by work item."""

    outputs: dict[int, SequenceOutput]
    failures: dict[int, SequenceFailure]


class _Watch:
    """Counts the seconds of an iteration in which this worker didn't wait for another one."""

    def __init__(self) -> None:
        self._started_at = time.perf_counter()
        self._paused = 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """These don't count."""
        started_at = time.perf_counter()
        yield
        self._paused += time.perf_counter() - started_at

    @property
    def seconds(self) -> float:
        """So far."""
        return time.perf_counter() - self._started_at - self._paused


class Worker:
    """One device's model or part of one, its KV memory, and a sampler.

    Args:
        place: among the workers that hold the model together.
        links: to the others.
        on_progress: called whenever a layer is done.
    """

    def __init__(
        self,
        model: Model,
        kv: KVCache,
        tiers: KVTiers | None = None,
        *,
        block_size: int,
        max_sequence_tokens: int,
        max_batch_size: int,
        device: torch.device,
        place: Place | None = None,
        links: Links | None = None,
        on_progress: Callable[[], None] | None = None,
    ) -> None:
        self._place = place or Place()
        self._links = links or Links()
        self._on_progress = on_progress
        self._model = model
        self._kv = kv
        self._tiers = tiers or KVTiers(kv, 0, None)
        self._block_size = block_size
        self._device = device
        self._sampler = Sampler(model.shape.vocab_size, device)
        self._sequences = Sequences(-(-max_sequence_tokens // block_size), max_batch_size)
        receiver = self._links.tokens_in
        self._steady = Steady(block_size, embeds=self._place.is_first)
        self._fed_back = None if receiver is None else FedBack(receiver, self._sequences)
        self._epoch = 0

    @torch.inference_mode()
    def execute(self, plan: IterationPlan) -> IterationResult:
        """Run one plan. Plans come in order; the first one of a new epoch makes the worker forget all sequences.

        Returns:
            What it gave, if this worker `answers`; else nothing came out here.

        Raises:
            PlanError: the plan contradicts the worker's state.
            PeerLost: another worker is gone, or stands still.
        """
        watch = _Watch()
        if plan.epoch != self._epoch:
            self._sequences.clear()
            self._epoch = plan.epoch
        self._sequences.apply(plan)
        missed = self._tiers.apply(plan.swaps)
        self._kv.copy(plan.copies)
        logs = [self._sequences[item.seq_id] for item in plan.work]
        if self._fed_back is not None:
            with watch.paused():
                self._fed_back.catch_up(plan)
        packed = to_device(self._packed(plan, logs), self._device)
        self._tiers.begin_ahead(plan.ahead)
        try:
            return self._run(plan, logs, packed, watch, missed)
        finally:
            self._tiers.end_ahead()

    def close(self) -> None:
        """No plan will come any more."""
        self._tiers.close()

    def _packed(self, plan: IterationPlan, logs: list[SequenceLog]) -> Packed:
        packed = self._steady.next(plan, logs)
        if packed is None:
            packed = pack(plan.work, logs, self._sequences, self._block_size, embeds=self._place.is_first)
            self._steady.keep(plan.work, logs, packed)
        return packed

    def _run(
        self, plan: IterationPlan, logs: list[SequenceLog], packed: Packed, watch: _Watch, missed: Missed
    ) -> IterationResult:
        """Through the layers, and on: to the next stage, or to the heads."""
        before, times = self._states_before(plan, packed, watch)
        hidden = self._model.forward(
            packed.tokens, packed.batch, self._kv.layers, packed.segments, before, self._on_progress
        )
        if self._fed_back is not None and packed.samples:
            self._fed_back.expect()
        if self._links.outlet is not None:
            self._links.outlet.send(plan.epoch, plan.iteration, hidden, (*times, watch.seconds))
            return IterationResult(plan.epoch, plan.iteration, ())
        found = self._heads(plan, logs, packed, hidden)
        _leave_out(plan, found, missed)
        self._tiers.end_ahead()
        return IterationResult(
            plan.epoch,
            plan.iteration,
            tuple(found.outputs.values()),
            tuple(found.failures.values()),
            stage_times=(*times, watch.seconds),
            lost=self._tiers.lost(),
        )

    def _states_before(
        self, plan: IterationPlan, packed: Packed, watch: _Watch
    ) -> tuple[torch.Tensor | None, tuple[float, ...]]:
        """What the stage before gave, and how long each stage took for it."""
        if self._links.inlet is None:
            return None, ()
        rows, width = len(packed.batch.positions), self._model.shape.width
        with watch.paused():
            return self._links.inlet.receive(plan.epoch, plan.iteration, rows, width, self._kv.dtype)

    def _heads(self, plan: IterationPlan, logs: list[SequenceLog], packed: Packed, hidden: torch.Tensor) -> _Found:
        """What comes out of the last layer. Ranks that don't answer only give their part of the logits."""
        found = _Found({}, {})
        if packed.pooled and self._place.answers:
            self._pool(plan, logs, packed, hidden, found)
        if len(packed.rows):
            # In a steady decode they are all rows, in their order.
            every = len(packed.samples) == len(hidden)
            logits = self._model.logits(hidden if every else hidden[packed.rows])
            if self._place.answers:
                self._sample(plan, logs, packed, logits, found)
        return found

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
        self._feed_back(plan, logs, packed, sampled)
        for i, result in zip(packed.samples, sampled, strict=True):
            seq_id = plan.work[i].seq_id
            if result.failure:
                found.failures[i] = SequenceFailure(seq_id, result.failure, _EXPLANATIONS[result.failure])
            else:
                found.outputs[i] = _output(seq_id, result)
        for i, score in scores.items():
            if isinstance(score, RequestFailed):
                found.outputs.pop(i, None)
                found.failures[i] = SequenceFailure(plan.work[i].seq_id, score.code, str(score))
            elif i not in found.failures:
                sampled_too = found.outputs.get(i, SequenceOutput(plan.work[i].seq_id, ()))
                found.outputs[i] = msgspec.structs.replace(sampled_too, prompt_logprobs=score)

    def _feed_back(
        self, plan: IterationPlan, logs: list[SequenceLog], packed: Packed, sampled: Sequence[Sampled]
    ) -> None:
        """Keep the tokens for the next plan, here and where they are embedded, before core hears of them.

        A failed sequence gets one too: under look-ahead a plan that goes on with it may be on its way.
        """
        fed = []
        for i, result in zip(packed.samples, sampled, strict=True):
            token = 0 if result.failure else result.token
            fed.append((plan.work[i].seq_id, logs[i].length, token))
            logs[i].append(token)
        if fed and self._links.tokens_out is not None:
            self._links.tokens_out.send(plan.epoch, fed)

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
    STALE_KV: "the KV cache in the host's memory was about to give this request another's; other requests were not "
    "affected",
    "no_candidates": "no token was left to choose from: allowed_token_ids, banned_token_ids, logit_bias and min_tokens "
    "exclude all",
}


def _leave_out(plan: IterationPlan, found: _Found, missed: Missed) -> None:
    """Whose KV isn't there has no output: it was made of nothing."""
    for i, work in enumerate(plan.work):
        if work.seq_id in missed.stale | missed.lost:
            found.outputs.pop(i, None)
            found.failures.pop(i, None)
        if work.seq_id in missed.stale:
            found.failures[i] = SequenceFailure(work.seq_id, STALE_KV, _EXPLANATIONS[STALE_KV])


def _sample_row(log: SequenceLog) -> SampleRow:
    description = log.description
    return SampleRow(
        params=description.params,
        index=description.index,
        num_prompt_tokens=description.num_prompt_tokens,
        end_token_ids=description.end_token_ids,
        tokens=log.tokens,
        num_candidates=description.num_candidates,
    )


def _output(seq_id: int, sampled: Sampled) -> SequenceOutput:
    logprobs = (sampled.logprobs,) if sampled.logprobs is not None else ()
    return SequenceOutput(seq_id, (sampled.token,), logprobs)
