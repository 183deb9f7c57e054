"""One token for each row of logits: adjust, truncate, draw. All of it over the whole batch at once.

A row's token and log-probabilities depend on nothing but the row: not on its company, its place, or the number of
threads. Floating-point sums are taken only where torch adds up each row for itself; all else compares, counts,
adds integers, or works on single entries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from orcinus.core.plan import TokenLogprobs
from orcinus.core.request import SamplingParams
from orcinus.worker.adjustments import Adjustments, TokenCounts
from orcinus.worker.gumbel import GumbelNoise, row_keys
from orcinus.worker.logprobs import token_logprobs
from orcinus.worker.sample_row import FailureCode, Sampled, SampleRow
from orcinus.worker.scores import Scores, padded, padded_width
from orcinus.worker.truncation import Limits, Truncation

__all__ = ["FailureCode", "SampleRow", "Sampled", "Sampler"]

# Below this a temperature means greedy, as in vLLM: dividing by it would overflow.
_MIN_TEMPERATURE = 1e-5


class Sampler:
    """Samples for one model on one device."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._width = padded_width(vocab_size)
        self._noise = GumbelNoise(self._width, device)
        self._counts = TokenCounts(device)
        self._composition = _Composition((), self._width, device)

    @torch.inference_mode()
    def sample(self, logits: Tensor, rows: Sequence[SampleRow]) -> list[Sampled]:
        """Sample each row of `logits` (float32 [rows, vocab]), which may be changed in place.

        A row whose logits hold NaN or +inf or nothing finite fails with `numerical_error`, one whose own masks leave
        nothing with `no_candidates`; the others go on.
        """
        assert logits.shape == (len(rows), self._vocab_size), "one row of logits for each row to sample"
        assert logits.dtype == torch.float32, "logits come in float32"
        if not rows:
            return []
        composition = self._composed(rows)
        if composition.is_plainly_greedy and logits.device.type == "cpu":
            return _likeliest(logits)
        scores = Scores(padded(logits))
        raw_best, best_column = scores.best()
        raw = composition.raw(scores)
        best = raw_best
        if composition.adjustments.any:
            composition.adjustments.apply(scores.x, rows, self._counts)
            scores = Scores(scores.x)
            best, best_column = scores.best()
        tokens = self._draw(scores, best, best_column, rows, composition)
        logprobs = composition.logprobs(raw, tokens)
        outcomes = zip(tokens.tolist(), _failures(raw_best, best), strict=True)
        return [
            Sampled(token, None if failure else logprobs.get(i), failure) for i, (token, failure) in enumerate(outcomes)
        ]

    @torch.inference_mode()
    def prompt_logprobs(self, logits: Tensor, targets: Sequence[int], top_n: int) -> list[TokenLogprobs]:
        """Of each row of `logits` (float32 [rows, vocab]): log-probability of its target, and the `top_n` likeliest.

        A row with NaN gives NaN.
        """
        if not targets:
            return []
        rows = torch.arange(len(targets), device=self._device)
        chosen = torch.tensor(targets, dtype=torch.int64, device=self._device)
        return token_logprobs(Scores(padded(logits)), rows, chosen, [top_n] * len(targets))

    def _composed(self, rows: Sequence[SampleRow]) -> _Composition:
        """What follows from the rows' parameters: in steady decoding, the last call's."""
        if not self._composition.fits(rows):
            self._composition = _Composition(rows, self._width, self._device)
        return self._composition

    def _draw(
        self, scores: Scores, best: Tensor, best_column: Tensor, rows: Sequence[SampleRow], composition: _Composition
    ) -> Tensor:
        """The tokens, int64 [rows]: the best column of greedy rows, a draw for the others."""
        if not composition.is_random:
            return best_column
        positions, indices = [len(row.tokens) for row in rows], [row.index for row in rows]
        keys = torch.from_numpy(row_keys(composition.seeds, indices, positions)).to(self._device)
        truncation = Truncation(scores, best, composition.limits)
        shortlists = chain(truncation.whole(composition.whole_rows), truncation.shortlists(composition.truncated_rows))
        contestants = [self._noise.contestants(part.scaled, part.rows, keys, part.tokens) for part in shortlists]
        return torch.where(composition.greedy, best_column, self._noise.draw(contestants, keys))


def _failures(raw_best: Tensor, best: Tensor) -> list[FailureCode]:
    """Why each row failed, from its largest logit before and after adjustments; a NaN is larger than all."""
    usable = torch.isfinite(raw_best).tolist()
    left = torch.isfinite(best).tolist()
    return ["numerical_error" if not u else "no_candidates" if not n else "" for u, n in zip(usable, left, strict=True)]


def _likeliest(logits: Tensor) -> list[Sampled]:
    """The best column of each row, the lowest of equals, in one pass and without a word of torch in between."""
    values = logits.numpy()
    columns = values.argmax(axis=1).tolist()
    # A NaN is larger than all to argmax too.
    return [
        Sampled(column, failure="" if math.isfinite(row[column]) else "numerical_error")
        for row, column in zip(values, columns, strict=True)
    ]


class _Composition:
    """A batch's parameters as tensors."""

    def __init__(self, rows: Sequence[SampleRow], width: int, device: torch.device) -> None:
        self._params = [row.params for row in rows]
        self.adjustments = Adjustments(rows, width, device)
        self.seeds = [params.seed or 0 for params in self._params]
        kinds = [_kind(params, width) for params in self._params]
        assert all(p.seed is not None for p, kind in zip(self._params, kinds, strict=True) if kind != _GREEDY), "seeded"

        def where(kind: str) -> Tensor:
            return torch.tensor([i for i, k in enumerate(kinds) if k == kind], dtype=torch.int64, device=device)

        self.whole_rows, self.truncated_rows = where(_WHOLE), where(_TRUNCATED)
        self.greedy = torch.tensor([kind == _GREEDY for kind in kinds], dtype=torch.bool, device=device)
        self.is_random = any(kind != _GREEDY for kind in kinds)
        self.limits = _limits(self._params, width, device)
        self._num_logprobs = [row.num_logprobs for row in rows]
        self._logprobs = [i for i, number in enumerate(self._num_logprobs) if number is not None]
        self.is_plainly_greedy = not (self.is_random or self.adjustments.any or self._logprobs)
        self._logprob_rows = torch.tensor(self._logprobs, dtype=torch.int64, device=device)

    def fits(self, rows: Sequence[SampleRow]) -> bool:
        """Whether these rows have the same parameters in the same order."""
        return len(rows) == len(self._params) and all(
            row.params is params for row, params in zip(rows, self._params, strict=True)
        )

    def raw(self, scores: Scores) -> tuple[Scores, Tensor]:
        """Scores that will still be the model's own after the adjustments, and where in them the logprob rows are."""
        if not (self._logprobs and self.adjustments.any):
            return scores, self._logprob_rows
        kept = Scores(scores.x.index_select(0, self._logprob_rows))
        return kept, torch.arange(len(self._logprobs), device=scores.x.device)

    def logprobs(self, raw: tuple[Scores, Tensor], tokens: Tensor) -> dict[int, TokenLogprobs]:
        """Log-probabilities of the sampled tokens, by row, where asked for."""
        if not self._logprobs:
            return {}
        top_n = [self._num_logprobs[i] or 0 for i in self._logprobs]
        return dict(zip(self._logprobs, token_logprobs(*raw, tokens[self._logprob_rows], top_n), strict=True))


_GREEDY, _WHOLE, _TRUNCATED = "greedy", "whole", "truncated"


def _kind(params: SamplingParams, width: int) -> str:
    """Greedy, drawn from the whole vocabulary, or from what truncation leaves."""
    if params.temperature < _MIN_TEMPERATURE:
        return _GREEDY
    truncated = 0 < params.top_k < width or params.top_p < 1 or params.min_p > 0
    return _TRUNCATED if truncated else _WHOLE


def _limits(params: Sequence[SamplingParams], width: int, device: torch.device) -> Limits:
    temperatures = [max(p.temperature, _MIN_TEMPERATURE) for p in params]
    return Limits(
        temperature=torch.tensor(temperatures, dtype=torch.float32, device=device),
        top_k=torch.tensor([min(p.top_k or width, width) for p in params], dtype=torch.int64, device=device),
        top_p=torch.tensor([p.top_p for p in params], dtype=torch.float64, device=device),
        log_min_p=torch.tensor([p.min_p for p in params], dtype=torch.float64, device=device).log().to(torch.float32),
    )
