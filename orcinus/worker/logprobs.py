"""Log-probabilities of chosen tokens under the model's raw logits, their ranks, and the likeliest tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from orcinus.core.plan import TokenLogprobs
from orcinus.worker.scores import Scores, tiles


def token_logprobs(scores: Scores, rows: Tensor, targets: Tensor, top_n: Sequence[int]) -> list[TokenLogprobs]:
    """One `TokenLogprobs` for each of `rows` (int64) of `scores`, about the token ids `targets` (int64).

    A logprob is (logit - largest) - log sum exp(logit - largest), the value of torch.log_softmax. The rank is the
    number of tokens whose logit is at least the target's: 1 is the likeliest, and of equals each has the last one's
    place. The likeliest `top_n` (one number a row) come in falling order, of equals the lower id first; a token with
    logit -inf is never among them, so there may be fewer.
    """
    best, column = scores.best()
    best, column = best[rows], column[rows]
    log_sum = _log_sums(scores, rows, column)
    chosen = scores.x[rows, targets]
    ranks = scores.count_at_least(rows, chosen).tolist()
    logprobs = (chosen - best - log_sum).tolist()
    ids, values = _likeliest(scores, rows, top_n)
    tops = (values - best[:, None] - log_sum[:, None]).tolist()
    counts = [min(n, found) for n, found in zip(top_n, torch.isfinite(values).sum(dim=1).tolist(), strict=True)]
    return [
        TokenLogprobs(logprob, rank, tuple(row_ids[:n]), tuple(row_tops[:n]))
        for logprob, rank, row_ids, row_tops, n in zip(logprobs, ranks, ids.tolist(), tops, counts, strict=True)
    ]


def _log_sums(scores: Scores, rows: Tensor, best_column: Tensor) -> Tensor:
    """log sum exp(logit - largest) of each row.

    The likeliest token's log-probability is just its negative. `log_softmax` adds up each row in an order of its own
    size alone; with two threads, `logsumexp` and `sum` change with the number of rows.
    """
    sums = []
    for row, column in zip(tiles(rows, scores.x.shape[1]), tiles(best_column, scores.x.shape[1]), strict=True):
        sums.append(-torch.log_softmax(scores.x.index_select(0, row), dim=1).gather(1, column[:, None]).squeeze(1))
    return torch.cat(sums)


def _likeliest(scores: Scores, rows: Tensor, top_n: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Ids and logits, [rows, n] with n the largest of `top_n`; -inf where a row has no more."""
    n = max(top_n)
    if n == 0:
        return rows.new_zeros(len(rows), 0), scores.x.new_zeros(len(rows), 0)
    wanted = torch.tensor(top_n, device=rows.device).clamp(min=1)
    columns, values = scores.at_least(rows, scores.rank_floor(rows, wanted)).matrix(len(rows))
    values, order = values.sort(dim=1, descending=True, stable=True)
    return columns.gather(1, order)[:, :n], values[:, :n]
