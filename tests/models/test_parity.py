"""Transformers is the oracle: the same checkpoint gives the same logits and the same greedy tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from alterations import ALTERATIONS
from checkpoints import CASES
from model_harness import Pool, teacher_forced
from torch import Tensor
from transformers import PreTrainedModel

from orcinus.models.config import load_config
from orcinus.models.decoder import Decoder

TOLERANCE = 1e-4
pytestmark = [pytest.mark.usefixtures("one_thread")]


def prompts(lengths: tuple[int, ...] = (150, 1, 17, 64)) -> list[list[int]]:
    """Random tokens of the tests' vocabulary."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 1003, (length,), generator=generator).tolist() for length in lengths]


def oracle(model: PreTrainedModel, sequences: list[list[int]]) -> Tensor:
    """Logits at every position, each sequence alone, in float32."""
    with torch.inference_mode():
        return torch.cat([model(torch.tensor([tokens])).logits[0].float() for tokens in sequences])


def ours(decoder: Decoder, sequences: list[list[int]]) -> Tensor:
    """The same from two ragged iterations: the first halves, then the rest."""
    halves = [(index, 0, (len(tokens) + 1) // 2) for index, tokens in enumerate(sequences)]
    rests = [(index, end, len(sequences[index])) for index, _, end in halves if end < len(sequences[index])]
    return torch.cat(teacher_forced(decoder, sequences, [halves, rests]))


@pytest.mark.parametrize("case", CASES)
def test_logits_of_every_position_equal_those_of_transformers(case: str, saved: Callable, load: Callable) -> None:
    folder, model = saved(case)
    expected = oracle(model, prompts())
    assert expected.std() > 0.3
    torch.testing.assert_close(ours(load(folder), prompts()), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("mechanism", ALTERATIONS)
def test_parity_fails_when_the_mechanism_is_altered(mechanism: str, saved: Callable, load: Callable) -> None:
    case, alter = ALTERATIONS[mechanism]
    folder, model = saved(case)
    config = load_config(folder)
    altered = load(folder, config=config, **alter(config))
    error = (ours(altered, prompts()) - oracle(model, prompts())).abs().max()
    assert error > 5 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        *("llama-llama3", "llama-odd", "llama-yarn", "mistral", "phi3", "qwen2", "qwen2-windowed", "qwen3"),
        *("gemma2", "gemma3", "gpt2", "opt", "opt-post-norm", "gpt_neox"),
    ],
)
def test_64_greedy_tokens_over_a_ragged_batch_equal_those_of_transformers(
    case: str, saved: Callable, load: Callable
) -> None:
    folder, model = saved(case)
    starts = prompts((40, 3, 1, 90, 17))
    with torch.inference_mode():
        expected = [
            model.generate(
                torch.tensor([tokens]), max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
            )[0].tolist()
            for tokens in starts
        ]
    pool = Pool(load(folder))
    sequences = [list(tokens) for tokens in starts]
    numbers = [pool.add(len(tokens) + 64) for tokens in sequences]
    done = [0] * len(sequences)
    for _ in range(64):
        work = [(number, start, tokens[start:]) for number, start, tokens in zip(numbers, done, sequences, strict=True)]
        ends = torch.tensor([len(piece) for _, _, piece in work]).cumsum(0) - 1
        done = [len(tokens) for tokens in sequences]
        for tokens, chosen in zip(sequences, pool.run(work, ends.tolist()).argmax(-1).tolist(), strict=True):
            tokens.append(chosen)
    assert sequences == expected


@pytest.mark.parametrize(
    "case",
    [
        *("llama", "llama-odd", "mistral", "phi3", "qwen2", "qwen3", "gemma2", "gemma3"),
        *("gpt2", "opt", "opt-post-norm", "gpt_neox"),
    ],
)
def test_bfloat16_errs_at_most_half_as_much_again_as_transformers(case: str, saved: Callable, load: Callable) -> None:
    folder, model = saved(case)
    truth = oracle(model, prompts())
    theirs = oracle(type(model).from_pretrained(folder, dtype=torch.bfloat16), prompts())
    mine = ours(load(folder, dtype=torch.bfloat16), prompts())

    def error(logits: Tensor) -> float:
        return (logits - truth).square().mean().sqrt().item()

    assert 0 < error(mine) <= 1.5 * error(theirs)
