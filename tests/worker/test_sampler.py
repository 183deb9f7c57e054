"""The sampler against transformers' processors, brute-force counters and float64, and each row against its company."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from orcinus.core.request import SamplingParams
from orcinus.worker.sampler import Sampled, Sampler, SampleRow
from orcinus.worker.scores import Scores
from orcinus.worker.truncation import Limits, Truncation

CPU = torch.device("cpu")
VOCAB = 1003
WIDE_VOCAB = 32_000
Options = dict[str, object]


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    """Tests may set the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def random_logits(rows: int, vocab: int = VOCAB, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def sample_row(
    options: Options,
    *,
    index: int = 0,
    prompt: Sequence[int] = (1, 2, 3),
    answer: Sequence[int] = (),
    ends: tuple[int, ...] = (),
) -> SampleRow:
    params = SamplingParams(**{"seed": 0, "temperature": 0.0, **options})  # type: ignore[arg-type]
    return SampleRow(params, index, len(prompt), ends, np.array([*prompt, *answer], dtype=np.uint32))


def sample_one(logits: torch.Tensor, row: SampleRow) -> Sampled:
    return Sampler(logits.shape[-1], CPU).sample(logits.reshape(1, -1).clone(), [row])[0]


def bits(results: Sequence[Sampled]) -> list[str]:
    """Tokens and log-probabilities as text that differs when a bit does."""
    return [repr(result) for result in results]


# Greedy


def test_greedy_takes_the_largest_logit_and_of_equals_the_lowest_id() -> None:
    logits = random_logits(40).round()
    rows = [sample_row({})] * 40
    sampled = Sampler(VOCAB, CPU).sample(logits.clone(), rows)
    lowest = [int((row == row.max()).nonzero()[0]) for row in logits]
    assert [result.token for result in sampled] == lowest


def test_a_temperature_close_to_0_is_greedy() -> None:
    logits = random_logits(1)
    assert sample_one(logits, sample_row({"temperature": 1e-7})).token == int(logits.argmax())


def test_a_low_temperature_does_not_overflow() -> None:
    logits = random_logits(1) * 1e6
    assert sample_one(logits, sample_row({"temperature": 2e-5})).token == int(logits.argmax())


# Masks and bias


def test_only_allowed_tokens_that_are_not_banned_are_sampled() -> None:
    for seed in range(30):
        options: Options = {
            "temperature": 2.0,
            "seed": seed,
            "allowed_token_ids": [5, 6, 7, 6],
            "banned_token_ids": [6],
        }
        assert sample_one(random_logits(1, seed=seed), sample_row(options)).token in {5, 7}


def test_bias_is_added_to_the_logit() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 10] = 5.0
    assert sample_one(logits, sample_row({"logit_bias": {20: 5.5}})).token == 20
    assert sample_one(logits, sample_row({"logit_bias": {20: 4.5}})).token == 10
    assert sample_one(logits, sample_row({"logit_bias": {10: -5.5}})).token == 0


def test_end_tokens_are_masked_until_min_tokens_are_generated() -> None:
    logits = random_logits(1)
    best, second = logits.topk(2).indices[0].tolist()
    for generated in range(5):
        row = sample_row({"min_tokens": 3, "max_tokens": 9}, answer=[9] * generated, ends=(best,))
        assert sample_one(logits, row).token == (second if generated < 3 else best)


def test_token_ids_past_the_vocabulary_are_ignored() -> None:
    logits = random_logits(2)
    options: Options = {"banned_token_ids": [VOCAB + 500], "logit_bias": {VOCAB + 500: 100.0}, "min_tokens": 1}
    rows = [sample_row(options, ends=(VOCAB + 700,)), sample_row({})]
    sampled = Sampler(VOCAB, CPU).sample(logits.clone(), rows)
    assert [result.token for result in sampled] == logits.argmax(dim=1).tolist()


# Failures


@pytest.mark.parametrize("broken", ["nan", "inf", "nothing finite"])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5, "logprobs": 3}])
def test_a_row_with_unusable_logits_fails_and_no_other_row_changes(broken: str, options: Options) -> None:
    logits = random_logits(9)
    rows = [sample_row({**options, "seed": i}) for i in range(9)]
    whole = Sampler(VOCAB, CPU).sample(logits.clone(), rows)
    if broken == "nothing finite":
        logits[4] = -math.inf
    else:
        logits[4, 700] = float(broken)
    sampled = Sampler(VOCAB, CPU).sample(logits, rows)
    assert sampled[4].failure == "numerical_error"
    assert sampled[4].logprobs is None
    assert bits(sampled[:4] + sampled[5:]) == bits(whole[:4] + whole[5:])


def test_unusable_logits_fail_even_where_a_mask_would_hide_them() -> None:
    logits = random_logits(1)
    logits[0, 7] = math.nan
    assert sample_one(logits, sample_row({"allowed_token_ids": [3]})).failure == "numerical_error"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_whose_masks_leave_nothing_fails_alone(temperature: float) -> None:
    logits = random_logits(3)
    common: Options = {"temperature": temperature}
    rows = [
        sample_row(common),
        sample_row({**common, "allowed_token_ids": [4], "min_tokens": 1, "top_k": 5}, ends=(4,)),
        sample_row({**common, "allowed_token_ids": [4]}),
    ]
    sampled = Sampler(VOCAB, CPU).sample(logits, rows)
    assert [result.failure for result in sampled] == ["", "no_candidates", ""]
    assert sampled[2].token == 4


# Penalties: a counter in plain Python, in float32


def penalised(logits: torch.Tensor, row: SampleRow) -> torch.Tensor:
    """The logits of one row after its penalties, token by token."""
    adjusted = logits.clone()
    params = row.params
    tokens = row.tokens.tolist()
    counts = Counter(tokens[row.num_prompt_tokens :])
    f32 = np.float32
    for token in set(tokens):
        value = f32(logits[token].item())
        repetition = f32(params.repetition_penalty)
        value = value / repetition if value > 0 else value * repetition
        value = value - f32(params.frequency_penalty) * f32(counts[token])
        value = value - (f32(params.presence_penalty) if counts[token] else f32(0))
        adjusted[token] = float(value)
    return adjusted


def adjusted_logits(logits: torch.Tensor, rows: Sequence[SampleRow]) -> torch.Tensor:
    """The sampler's own adjusted logits, which it leaves in place where no padding is needed."""
    given_logits = logits.clone()
    Sampler(logits.shape[1], CPU).sample(given_logits, rows)
    return given_logits


def test_penalties_equal_a_counter_per_row() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(24):
        options: Options = {
            "repetition_penalty": [1.0, 1.3, 0.7][i % 3],
            "presence_penalty": [0.0, 0.6, -1.0][i // 3 % 3],
            "frequency_penalty": [0.0, 0.25][i % 2],
        }
        prompt, answer = rng.integers(0, 64, i + 1), rng.integers(0, 64, 3 * (i % 5))
        rows.append(sample_row(options, prompt=prompt.tolist(), answer=answer.tolist()))
    logits = random_logits(24, vocab=1024)
    expected = torch.stack([penalised(logits[i], row) for i, row in enumerate(rows)])
    assert torch.equal(adjusted_logits(logits, rows), expected)
    assert torch.equal(adjusted_logits(logits.flip(0), rows[::-1]), expected.flip(0))


def test_the_count_table_is_clean_between_calls() -> None:
    sampler = Sampler(1024, CPU)
    row = sample_row({"frequency_penalty": 1.0}, answer=[5, 5, 6])
    logits = random_logits(1, vocab=1024)
    first, second = logits.clone(), logits.clone()
    sampler.sample(first, [row])
    sampler.sample(second, [row])
    assert torch.equal(first, second)


def test_repetition_penalty_equals_that_of_transformers() -> None:
    row = sample_row({"repetition_penalty": 1.7}, prompt=[4, 8, 8], answer=[15, 4])
    logits = random_logits(1, vocab=1024)
    ids = torch.from_numpy(row.tokens.astype(np.int64))[None]
    assert torch.equal(adjusted_logits(logits, [row]), RepetitionPenaltyLogitsProcessor(1.7)(ids, logits.clone()))


# Truncation: transformers' warpers in vLLM's order


def truncated(logits: torch.Tensor, options: Options) -> torch.Tensor:
    """Scores after truncation as a full row, -inf where a token is out."""
    rows, vocab = logits.shape
    limits = Limits(
        torch.full((rows,), float(options.get("temperature", 1.0))),  # type: ignore[arg-type]
        torch.full((rows,), int(options.get("top_k", 0)) or vocab),  # type: ignore[call-overload]
        torch.full((rows,), float(options.get("top_p", 1.0)), dtype=torch.float64),  # type: ignore[arg-type]
        torch.full((rows,), float(options.get("min_p", 0.0))).double().log().float(),  # type: ignore[arg-type]
    )
    scores = Scores(logits)
    result = torch.full_like(logits, -math.inf)
    for part in Truncation(scores, scores.best()[0], limits).shortlists(torch.arange(rows)):
        for i, row in enumerate(part.rows.tolist()):
            left = torch.isfinite(part.scaled[i])
            columns = left.nonzero().squeeze(1) if part.tokens is None else part.tokens[i, left]
            assert len(columns) == len(set(columns.tolist()))
            result[row, columns] = part.scaled[i, left]
    return result


def warped(logits: torch.Tensor, options: Options) -> torch.Tensor:
    """The same by transformers."""
    scores = TemperatureLogitsWarper(float(options.get("temperature", 1.0)))(None, logits.clone())  # type: ignore[arg-type]
    if "min_p" in options:
        scores = MinPLogitsWarper(options["min_p"])(None, scores)  # type: ignore[arg-type]
    if "top_k" in options:
        scores = TopKLogitsWarper(options["top_k"])(None, scores)  # type: ignore[arg-type]
    if "top_p" in options:
        scores = TopPLogitsWarper(options["top_p"])(None, scores)  # type: ignore[arg-type]
    return scores


TRUNCATIONS: list[Options] = [
    {"top_k": 1},
    {"top_k": 50},
    {"top_k": 50, "top_p": 0.9, "temperature": 0.7},
    {"top_k": 1500, "top_p": 0.9},
    {"top_p": 0.9},
    {"top_p": 0.001},
    {"top_p": 0.5, "temperature": 0.6},
    {"top_p": 0.95, "temperature": 2.0},
    {"min_p": 0.05},
    {"min_p": 0.001, "top_p": 0.8},
    {"min_p": 0.02, "top_k": 20, "top_p": 0.7, "temperature": 1.4},
    {"min_p": 1.0},
]


@pytest.mark.parametrize("options", TRUNCATIONS, ids=str)
@pytest.mark.parametrize("scale", [0.5, 3.0])
@pytest.mark.parametrize("vocab", [1024, WIDE_VOCAB])
def test_truncation_leaves_what_transformers_leaves(options: Options, scale: float, vocab: int) -> None:
    logits = random_logits(6, vocab, scale=scale)
    ours, theirs = truncated(logits, options), warped(logits, options)
    for row in range(len(logits)):
        differs = torch.isfinite(ours[row]) != torch.isfinite(theirs[row])
        # Their sums are in float32, from the unlikely end: where top-p ends they may be off by a token or a few.
        slack = 0.001 * int(torch.isfinite(theirs[row]).sum()) if "top_p" in options else 0
        assert int(differs.sum()) <= math.ceil(slack)
        kept = torch.isfinite(ours[row]) & ~differs
        shifted = theirs[row, kept] - theirs[row, kept].max()
        assert torch.allclose(ours[row, kept], shifted, atol=1e-4)


@pytest.mark.parametrize(
    ("vocab", "scale", "top_p"), [(1024, 2.0, 0.9), (WIDE_VOCAB, 0.3, 0.9), (WIDE_VOCAB, 3.0, 0.999)]
)
def test_top_p_is_the_smallest_sufficient_set_in_float64(vocab: int, scale: float, top_p: float) -> None:
    logits = random_logits(5, vocab, seed=7, scale=scale)
    kept = torch.isfinite(truncated(logits, {"top_p": top_p}))
    for row in range(5):
        p = torch.softmax(logits[row].double(), dim=0)
        inside, outside = p[kept[row]], p[~kept[row]]
        assert inside.min() >= outside.max()
        assert inside.sum() >= top_p - 1e-6
        assert inside.sum() - inside.min() < top_p + 1e-6


@pytest.mark.parametrize("vocab", [1024, WIDE_VOCAB])
def test_top_p_takes_the_lower_ids_of_equal_tokens(vocab: int) -> None:
    kept = torch.isfinite(truncated(torch.zeros(2, vocab), {"top_p": 0.25}))
    assert kept[0].nonzero().squeeze(1).tolist() == list(range(vocab // 4))
    assert torch.equal(kept[0], kept[1])


def test_top_p_takes_the_lower_ids_of_equal_tokens_also_past_the_likeliest_hundred() -> None:
    logits = torch.zeros(1, WIDE_VOCAB)
    likelier = torch.randperm(WIDE_VOCAB, generator=torch.Generator().manual_seed(0))[:2000]
    logits[0, likelier] = torch.linspace(1.0, 2.0, 2000)
    p = torch.softmax(logits.double(), dim=1)[0]
    kept = torch.isfinite(truncated(logits, {"top_p": 0.5}))[0]
    assert kept[likelier].all()
    equal = (logits[0] == 0).nonzero().squeeze(1)
    missing = float((0.5 - p[likelier].sum()) / p[equal[0]])
    assert kept[equal].nonzero().squeeze(1).tolist() == list(range(math.ceil(missing)))


def test_top_k_keeps_all_that_equal_the_kth() -> None:
    logits = torch.zeros(1, 1024)
    logits[0, [3, 900]] = 2.0
    logits[0, [5, 77, 500]] = 1.0
    assert torch.isfinite(truncated(logits, {"top_k": 3}))[0].nonzero().squeeze(1).tolist() == [3, 5, 77, 500, 900]


def test_top_k_larger_than_the_number_of_allowed_tokens_keeps_them_all() -> None:
    drawn = {
        sample_one(
            torch.zeros(1, VOCAB),
            sample_row({"temperature": 1.0, "seed": seed, "allowed_token_ids": [1, 2, 3], "top_k": 40, "top_p": 0.99}),
        ).token
        for seed in range(60)
    }
    assert drawn == {1, 2, 3}


# Draws


def draw_positions(logits: torch.Tensor, options: Options, positions: range, index: int = 0) -> list[int]:
    """One token for each position, all in one batch."""
    params = SamplingParams(**{"seed": 12, **options})  # type: ignore[arg-type]
    rows = [SampleRow(params, index, 1, (), np.zeros(n, dtype=np.uint32)) for n in positions]
    sampled = Sampler(logits.shape[-1], CPU).sample(logits.expand(len(rows), -1).clone(), rows)
    return [result.token for result in sampled]


@pytest.mark.parametrize("options", [{}, {"top_k": 12}, {"top_p": 0.8}, {"min_p": 0.1, "temperature": 1.7}], ids=str)
def test_draws_follow_the_truncated_softmax(options: Options) -> None:
    logits = random_logits(1, vocab=128, seed=4, scale=1.0)
    draws = 4000
    counts = np.bincount(draw_positions(logits, options, range(1, draws + 1)), minlength=128)
    expected = torch.softmax(warped(logits, options).double(), dim=1)[0].numpy() * draws
    assert counts[expected == 0].sum() == 0
    common = expected >= 5
    rest_seen, rest = counts[~common].sum(), expected[~common].sum()
    statistic = ((counts[common] - expected[common]) ** 2 / expected[common]).sum()
    statistic += (rest_seen - rest) ** 2 / rest if rest > 5 else 0
    freedom = int(common.sum())
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


def test_equal_seed_index_and_position_draw_the_same_token_and_any_other_draws_its_own() -> None:
    logits = random_logits(1, scale=0.5)
    reference = draw_positions(logits, {}, range(1, 41))
    assert draw_positions(logits, {}, range(1, 41)) == reference
    for other in (
        draw_positions(logits, {"seed": 13}, range(1, 41)),
        draw_positions(logits, {}, range(1, 41), index=1),
        draw_positions(logits, {}, range(2, 42)),
    ):
        assert sum(a == b for a, b in zip(other, reference, strict=True)) < 10


def test_the_position_counts_prompt_and_answer_together() -> None:
    logits = random_logits(1, scale=0.5)
    drawn = {
        sample_one(logits, sample_row({"temperature": 1.0}, prompt=range(split), answer=range(20 - split))).token
        for split in (1, 7, 20)
    }
    assert len(drawn) == 1


# Log-probabilities


@pytest.mark.parametrize("vocab", [VOCAB, WIDE_VOCAB])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logprobs_and_ranks_are_those_of_the_raw_logits(vocab: int, temperature: float) -> None:
    logits = random_logits(12, vocab)
    options: Options = {"temperature": temperature, "repetition_penalty": 2.0, "logit_bias": {7: 30.0}, "top_k": 500}
    rows = [sample_row({**options, "seed": i, "logprobs": i % 6}, prompt=range(100)) for i in range(12)]
    exact = torch.log_softmax(logits.double(), dim=1)
    for i, result in enumerate(Sampler(vocab, CPU).sample(logits.clone(), rows)):
        assert result.logprobs is not None
        assert abs(result.logprobs.logprob - exact[i, result.token].item()) < 1e-5
        assert result.logprobs.rank == int((logits[i] >= logits[i, result.token]).sum())
        values, ids = exact[i].topk(i % 6)
        assert result.logprobs.top_ids == tuple(ids.tolist())
        assert np.allclose(result.logprobs.top_logprobs, values, atol=1e-5)


def test_rows_that_did_not_ask_get_no_logprobs() -> None:
    sampled = Sampler(VOCAB, CPU).sample(random_logits(2), [sample_row({}), sample_row({"logprobs": 0})])
    assert sampled[0].logprobs is None
    assert sampled[1].logprobs is not None
    assert sampled[1].logprobs.top_ids == ()


def test_equal_tokens_rank_together_and_are_listed_by_id() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, [40, 30, 20]] = 1.0
    logprobs = sample_one(logits, sample_row({"logprobs": 5})).logprobs
    assert logprobs is not None
    assert logprobs.rank == 3
    assert logprobs.top_ids == (20, 30, 40, 0, 1)


def test_a_token_the_model_excludes_is_not_listed() -> None:
    logits = torch.full((1, VOCAB), -math.inf)
    logits[0, [9, 4]] = torch.tensor([1.0, 2.0])
    logprobs = sample_one(logits, sample_row({"logprobs": 5})).logprobs
    assert logprobs is not None
    assert logprobs.top_ids == (4, 9)


@pytest.mark.parametrize("vocab", [VOCAB, WIDE_VOCAB])
def test_prompt_logprobs_equal_log_softmax(vocab: int) -> None:
    logits = random_logits(30, vocab)
    targets = torch.randint(0, vocab, (30,), generator=torch.Generator().manual_seed(1)).tolist()
    exact = torch.log_softmax(logits.double(), dim=1)
    results = Sampler(vocab, CPU).prompt_logprobs(logits, targets, 3)
    for i, (target, result) in enumerate(zip(targets, results, strict=True)):
        assert abs(result.logprob - exact[i, target].item()) < 1e-5
        assert result.rank == int((logits[i] >= logits[i, target]).sum())
        assert result.top_ids == tuple(exact[i].topk(3).indices.tolist())


def test_prompt_logprobs_of_a_row_do_not_depend_on_the_chunk() -> None:
    logits = random_logits(50, WIDE_VOCAB)
    sampler = Sampler(WIDE_VOCAB, CPU)
    together = sampler.prompt_logprobs(logits, list(range(50)), 2)
    assert together == [sampler.prompt_logprobs(logits[i : i + 1], [i], 2)[0] for i in range(50)]
    assert sampler.prompt_logprobs(logits[:0], [], 2) == []


# Company


def some_options(seed: int) -> Options:
    """Any mixture of parameters, each absent half of the time."""
    rng = np.random.default_rng(seed)
    choices: dict[str, list[object]] = {
        "temperature": [0.3, 1.0, 2.0],
        "top_k": [1, 5, 300, 1100],
        "top_p": [0.1, 0.9, 0.999],
        "min_p": [0.001, 0.3],
        "repetition_penalty": [0.8, 1.5],
        "presence_penalty": [1.0],
        "frequency_penalty": [-0.5],
        "logit_bias": [{3: 4.0, 900: -2.0}],
        "allowed_token_ids": [list(range(0, 1000, 7))],
        "banned_token_ids": [[0, 1, 5, 999]],
        "min_tokens": [6],
        "logprobs": [0, 1, 20],
    }
    options = {name: values[rng.integers(len(values))] for name, values in choices.items() if rng.random() < 0.35}
    return {"seed": int(rng.integers(2**63)), **options}


def some_row(seed: int, vocab: int) -> SampleRow:
    rng = np.random.default_rng(seed)
    prompt, answer = (rng.integers(0, vocab, rng.integers(1, 30)).tolist() for _ in range(2))
    return sample_row(some_options(seed), index=int(rng.integers(4)), prompt=prompt, answer=answer, ends=(2, 900))


def some_logits(seed: int, vocab: int) -> torch.Tensor:
    """One row: flat, peaked, with ties, or unusable."""
    logits = random_logits(1, vocab, seed, scale=[0.2, 3.0, 8.0][seed % 3])[0]
    if seed % 4 == 0:
        logits = logits.bfloat16().float()
    if seed % 11 == 0:
        logits[seed % vocab] = math.nan
    return logits


def assert_company_changes_nothing(seeds: Sequence[int], vocab: int, threads: Sequence[int] = (1,)) -> None:
    logits = torch.stack([some_logits(seed, vocab) for seed in seeds])
    rows = [some_row(seed, vocab) for seed in seeds]
    torch.set_num_threads(1)
    alone = [Sampler(vocab, CPU).sample(logits[i : i + 1].clone(), [row])[0] for i, row in enumerate(rows)]
    sampler = Sampler(vocab, CPU)
    for count in threads:
        torch.set_num_threads(count)
        assert bits(sampler.sample(logits.clone(), rows)) == bits(alone)
        assert bits(sampler.sample(logits.flip(0), rows[::-1])) == bits(alone[::-1])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seeds=st.lists(st.integers(0, 10**6), min_size=1, max_size=24))
def test_a_row_is_sampled_to_the_same_bits_alone_and_in_any_company(seeds: list[int]) -> None:
    assert_company_changes_nothing(seeds, VOCAB)


@pytest.mark.slow
@pytest.mark.parametrize("vocab", [VOCAB, WIDE_VOCAB, 128_256])
def test_a_hundred_rows_are_sampled_to_the_same_bits_alone_and_together_with_one_and_two_threads(vocab: int) -> None:
    assert_company_changes_nothing(range(1000, 1100), vocab, threads=(1, 2))


def test_the_same_parameters_in_another_order_are_not_mistaken_for_the_last_batch() -> None:
    logits = random_logits(2)
    greedy, only = sample_row({}), sample_row({"allowed_token_ids": [8]})
    sampler = Sampler(VOCAB, CPU)
    first = sampler.sample(logits.clone(), [greedy, only])
    second = sampler.sample(logits.flip(0), [only, greedy])
    third = sampler.sample(logits[:1].clone(), [greedy])
    assert [first[1].token, second[0].token] == [8, 8]
    assert first[0] == second[1] == third[0]


def test_no_rows_are_no_work() -> None:
    assert Sampler(VOCAB, CPU).sample(torch.empty(0, VOCAB), []) == []
