"""Promise 2 at the level of a model: a row's logits are the same bits in any company, chunking and thread count."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from model_harness import Pool, teacher_forced
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from orcinus.kernels.reference import ReferenceKernels
from orcinus.models.decoder import Decoder

DTYPES = [torch.float32, torch.bfloat16]
LENGTHS = (150, 1, 17, 64, 33, 5, 100)


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


def random_tokens(lengths: tuple[int, ...], vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, vocab_size, (length,), generator=generator).tolist() for length in lengths]


def alone(decoder: Decoder, sequences: list[list[int]]) -> list[Tensor]:
    """Each sequence whole, in a pool of its own."""
    return [teacher_forced(decoder, [tokens], [[(0, 0, len(tokens))]], num_blocks=128)[0] for tokens in sequences]


def crowd(sequences: list[list[int]]) -> list[list[tuple[int, int, int]]]:
    """All of them whole in one iteration."""
    return [[(index, 0, len(tokens)) for index, tokens in enumerate(sequences)]]


def random_chunks(sequences: list[list[int]], seed: int, largest: int) -> list[list[tuple[int, int, int]]]:
    """Iterations of random company, order and cuts until every token has run."""
    generator = torch.Generator().manual_seed(seed)

    def below(bound: int) -> int:
        return int(torch.randint(0, bound, (), generator=generator))

    done, iterations = [0] * len(sequences), []
    while missing := [index for index, tokens in enumerate(sequences) if done[index] < len(tokens)]:
        order = [missing[place] for place in torch.randperm(len(missing), generator=generator).tolist()]
        iteration = []
        for index in order[: 1 + below(len(order))]:
            start = done[index]
            # Half of the pieces are single tokens, as in decoding.
            done[index] = min(len(sequences[index]), start + (1 + below(largest) if below(2) else 1))
            iteration.append((index, start, done[index]))
        iterations.append(iteration)
    return iterations


def assert_same_bits(found: list[Tensor], expected: list[Tensor]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case",
    [
        *("llama", "llama-odd", "mistral", "phi3", "qwen3", "qwen2-windowed", "gemma2", "gemma3"),
        *("gpt2", "gpt2-untied", "opt", "opt-post-norm", "gpt_neox"),
    ],
)
def test_logits_have_the_same_bits_alone_crowded_and_in_chunks(
    case: str, dtype: torch.dtype, saved: Callable, load: Callable
) -> None:
    decoder = load(saved(case)[0], dtype=dtype)
    sequences = random_tokens(LENGTHS, 1003)
    with threads(1):
        expected = alone(decoder, sequences)
        assert_same_bits(teacher_forced(decoder, sequences, crowd(sequences)), expected)
        assert_same_bits(teacher_forced(decoder, sequences, random_chunks(sequences, 0, 60)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ["llama-odd", "gpt2", "gemma2", "gpt_neox"])
def test_two_threads_give_the_bits_of_one(case: str, dtype: torch.dtype, saved: Callable, load: Callable) -> None:
    decoder = load(saved(case)[0], dtype=dtype)
    sequences = random_tokens(LENGTHS, 1003)
    with threads(1):
        expected = teacher_forced(decoder, sequences, crowd(sequences))
    with threads(2):
        assert_same_bits(teacher_forced(decoder, sequences, crowd(sequences)), expected)
        assert_same_bits(teacher_forced(decoder, sequences, random_chunks(sequences, 1, 90)), expected)
        assert_same_bits(alone(decoder, sequences[:3]), expected[:3])


def test_nothing_depends_on_which_blocks_a_sequence_has(saved: Callable, load: Callable) -> None:
    decoder = load(saved("llama")[0])
    sequences = random_tokens(LENGTHS, 1003)
    runs = [teacher_forced(decoder, sequences, crowd(sequences), seed=seed) for seed in (0, 1)]
    assert_same_bits(*runs)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The widths of bench-160m in two layers, and a vocabulary of 128k."""
    torch.manual_seed(3)
    config = LlamaConfig(
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=2,
        num_attention_heads=12,
        num_key_value_heads=4,
        vocab_size=128_256,
        max_position_embeddings=2048,
        initializer_range=0.05,
    )
    folder = tmp_path_factory.mktemp("wide")
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_model_with_long_context_and_many_rows_keeps_its_bits(
    dtype: torch.dtype, wide: Path, load: Callable
) -> None:
    decoder = load(wide, dtype=dtype)
    # 1100 tokens of context, then 72 sequences at once.
    sequences = random_tokens((1100, *[3] * 71), 128_256)
    last = [(index, len(tokens) - 1, len(tokens)) for index, tokens in enumerate(sequences)]
    before = [(index, 0, len(tokens) - 1) for index, tokens in enumerate(sequences)]
    cuts = [[(0, start, min(start + 330, 1099))] for start in range(0, 1099, 330)]
    with threads(1):
        crowded = run_last(decoder, sequences, [before], last)
        for index in (0, 1, 71):
            assert torch.equal(run_last(decoder, sequences, [[before[index]]], [last[index]])[0], crowded[index])
    with threads(2):
        assert torch.equal(run_last(decoder, sequences, [*cuts, before[1:]], last), crowded)
        assert torch.equal(run_last(decoder, sequences, [[before[1]]], [last[1]])[0], crowded[1])


def run_last(
    decoder: Decoder,
    sequences: list[list[int]],
    iterations: list[list[tuple[int, int, int]]],
    last: list[tuple[int, int, int]],
) -> Tensor:
    """Logits of the last iteration only: 1100 rows of a 128k vocabulary are 0.5 GiB."""
    pool = Pool(decoder, num_blocks=160)
    numbers = [pool.add(len(tokens)) for tokens in sequences]
    logits = torch.empty(0)
    for iteration in [*iterations, last]:
        work = [(numbers[index], start, sequences[index][start:end]) for index, start, end in iteration]
        ends = torch.tensor([end - start for _, start, end in iteration]).cumsum(0) - 1
        logits = pool.run(work, ends.tolist())
    return logits


@pytest.mark.slow
@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="without AMX the library's product keeps its bits")
def test_the_same_comparison_fails_when_the_row_tile_is_widened(wide: Path, load: Callable) -> None:
    decoder = load(wide, dtype=torch.bfloat16, kernels=ReferenceKernels(row_tile=4096))
    sequences = random_tokens((20, 60), 128_256)
    with threads(1):
        crowded = teacher_forced(decoder, sequences, crowd(sequences))
        assert not torch.equal(alone(decoder, sequences)[0], crowded[0])
