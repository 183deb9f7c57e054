"""Transformers is the oracle: the same checkpoint gives the same logits and the same greedy tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from checkpoints import CASES
from model_harness import Pool, teacher_forced
from torch import Tensor
from transformers import PreTrainedModel

from orcinus.layers.rotary import Llama3Scaling, Rotary
from orcinus.models.config import ModelConfig, load_config
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


def drop(config: ModelConfig, *ends: str, **changes: object) -> dict[str, object]:
    """A family altered so that it has no use for the tensors whose names end so."""
    names = replace(config.family.names, ignored=config.family.names.ignored + ends)
    return {"family": replace(config.family, names=names, **changes)}


def rotary(config: ModelConfig) -> Rotary:
    assert config.rotary is not None
    return config.rotary


def scaling(config: ModelConfig, **changes: object) -> dict[str, object]:
    before = rotary(config).scaling
    assert isinstance(before, Llama3Scaling)
    return {"rotary": replace(rotary(config), scaling=replace(before, **changes))}


def renamed(config: ModelConfig, **names: object) -> dict[str, object]:
    return {"family": replace(config.family, names=replace(config.family.names, **names))}


Alter = Callable[[ModelConfig], dict[str, object]]
ALTERATIONS: dict[str, tuple[str, Alter]] = {
    "rope theta": ("llama", lambda c: {"rotary": replace(rotary(c), theta=510.0)}),
    "rope dim": ("llama", lambda c: {"rotary": replace(rotary(c), dim=8)}),
    "linear scaling": ("llama-linear", lambda c: {"rotary": replace(rotary(c), scaling=None)}),
    "llama3 scaling": ("llama-llama3", lambda c: {"rotary": replace(rotary(c), scaling=None)}),
    "llama3 factor": ("llama-llama3", lambda c: scaling(c, factor=7.5)),
    "llama3 low frequency": ("llama-llama3", lambda c: scaling(c, low_freq_factor=1.2)),
    "llama3 high frequency": ("llama-llama3", lambda c: scaling(c, high_freq_factor=3.8)),
    "llama3 original positions": ("llama-llama3", lambda c: scaling(c, original_positions=60)),
    "norm eps": ("llama", lambda c: {"norm_eps": 0.019}),
    "norm eps of a layer norm": ("gpt2", lambda c: {"norm_eps": 0.019}),
    "kind of norm": ("gpt2", lambda c: drop(c, "ln_1.bias", "ln_2.bias", "ln_f.bias", norm="rms")),
    "attention scale": ("llama", lambda c: {"attention_scale": c.attention_scale * 1.01}),
    "soft cap": ("llama", lambda c: {"attention_soft_cap": 20.0}),
    "causal": ("qwen2", lambda c: {"family": replace(c.family, causal=False)}),
    "window": ("qwen2-windowed", lambda c: {"windows": (None, 10, 10)}),
    "windowed layers": ("qwen2-windowed", lambda c: {"windows": (None, None, 9)}),
    "tied": ("llama", lambda c: {"tie_embeddings": True}),
    "tied gpt2": ("gpt2-untied", lambda c: {"tie_embeddings": True}),
    "activation silu": ("llama", lambda c: {"activation": "gelu"}),
    "activation relu": ("llama-relu", lambda c: {"activation": "silu"}),
    "activation gelu_new": ("gpt2", lambda c: {"activation": "gelu"}),
    "activation gelu": ("gpt2-untied", lambda c: {"activation": "gelu_tanh"}),
    "qkv bias": ("qwen2", lambda c: {"qkv_bias": False, **drop(c, "proj.bias")}),
    "qkv bias of qwen3": ("qwen3-bias", lambda c: {"qkv_bias": False, **drop(c, "proj.bias")}),
    "qkv bias of gpt2": ("gpt2", lambda c: {"qkv_bias": False, **drop(c, "c_attn.bias")}),
    "output bias": ("llama-odd", lambda c: {"attention_output_bias": False, **drop(c, "o_proj.bias")}),
    "output bias of qwen3": ("qwen3-bias", lambda c: {"attention_output_bias": False, **drop(c, "o_proj.bias")}),
    "output bias of gpt2": ("gpt2", lambda c: {"attention_output_bias": False, **drop(c, "attn.c_proj.bias")}),
    "mlp bias": ("llama-odd", lambda c: {"mlp_bias": False, **drop(c, "_proj.bias")}),
    "mlp bias of gpt2": ("gpt2", lambda c: {"mlp_bias": False, **drop(c, "mlp.c_proj.bias", "c_fc.bias")}),
    "query and key norm": ("qwen3", lambda c: drop(c, "q_norm.weight", "k_norm.weight", query_key_norm=False)),
    "query norm's name": ("qwen3", lambda c: renamed(c, query_norm="self_attn.k_norm", key_norm="self_attn.q_norm")),
    "learned positions": ("gpt2", lambda c: renamed(c, positions="", ignored=("wpe.weight",))),
    "order of gate and up": ("llama", lambda c: renamed(c, mlp_input=c.family.names.mlp_input[::-1])),
    "order of norms": (
        "llama",
        lambda c: renamed(c, input_norm=c.family.names.mlp_norm, mlp_norm=c.family.names.input_norm),
    ),
}


@pytest.mark.parametrize("mechanism", ALTERATIONS)
def test_parity_fails_when_the_mechanism_is_altered(mechanism: str, saved: Callable, load: Callable) -> None:
    case, alter = ALTERATIONS[mechanism]
    folder, model = saved(case)
    config = load_config(folder)
    altered = load(folder, config=config, **alter(config))
    error = (ours(altered, prompts()) - oracle(model, prompts())).abs().max()
    assert error > 5 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("case", ["llama-llama3", "llama-odd", "qwen2", "qwen2-windowed", "qwen3", "gpt2"])
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


@pytest.mark.parametrize("case", ["llama", "llama-odd", "qwen2", "qwen3", "gpt2"])
def test_bfloat16_errs_at_most_half_as_much_again_as_transformers(case: str, saved: Callable, load: Callable) -> None:
    folder, model = saved(case)
    truth = oracle(model, prompts())
    theirs = oracle(type(model).from_pretrained(folder, dtype=torch.bfloat16), prompts())
    mine = ours(load(folder, dtype=torch.bfloat16), prompts())

    def error(logits: Tensor) -> float:
        return (logits - truth).square().mean().sqrt().item()

    assert 0 < error(mine) <= 1.5 * error(theirs)
