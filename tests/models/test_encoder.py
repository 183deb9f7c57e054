"""Encoders against Transformers: states, pooled vectors, class scores, pairs, and bits that company doesn't change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from alterations import drop, family, renamed
from checkpoints import LABELS
from model_harness import Pool, states
from torch import Tensor
from transformers import PreTrainedModel

from orcinus.models.config import ModelConfig, load_config
from orcinus.models.decoder import Decoder

TOLERANCE = 1e-4
LENGTHS = (150, 1, 17, 64, 33, 5, 100)
BODIES = ("bert", "bert-masked", "bert-pretraining")
pytestmark = [pytest.mark.usefixtures("one_thread")]


def texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(0, 1003, (length,), generator=generator).tolist() for length in LENGTHS]


def pair_segments() -> list[list[int]]:
    """The second text of each pair is its last third."""
    return [[0] * (length - length // 3) + [1] * (length // 3) for length in LENGTHS]


def oracle(model: PreTrainedModel, segments: list[list[int]] | None) -> list[Tensor]:
    """Last hidden states of each text alone."""
    body, found = model.base_model, []
    for index, tokens in enumerate(texts()):
        marks = None if segments is None else torch.tensor([segments[index]])
        with torch.inference_mode():
            found.append(body(torch.tensor([tokens]), token_type_ids=marks).last_hidden_state[0].float())
    return found


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", [*BODIES, "bert-classifier"])
def test_states_of_a_ragged_batch_equal_those_of_transformers(case: str, saved: Callable, load: Callable) -> None:
    folder, model = saved(case)
    decoder = load(folder)
    assert (decoder.shape.is_causal, decoder.shape.generates) == (False, False)
    assert decoder.shape.pooling == ("cls" if case == "bert-classifier" else "mean")
    expected = oracle(model, None)
    assert torch.cat(expected).std() > 0.3
    assert_close(states(decoder, texts()), expected)


@pytest.mark.parametrize("case", ["bert", "bert-classifier"])
def test_states_of_pairs_equal_those_of_transformers(case: str, saved: Callable, load: Callable) -> None:
    folder, model = saved(case)
    decoder = load(folder)
    assert decoder.shape.pair_segments
    found = states(decoder, texts(), pair_segments())
    assert_close(found, oracle(model, pair_segments()))
    assert not torch.equal(found[0], states(decoder, texts())[0])


def test_segments_of_zeros_are_the_same_bits_as_none(saved: Callable, load: Callable) -> None:
    decoder = load(saved("bert")[0])
    zeros = [[0] * length for length in LENGTHS]
    for mine, other in zip(states(decoder, texts()), states(decoder, texts(), zeros), strict=True):
        assert torch.equal(mine, other)


def test_a_model_with_one_kind_of_segment_marks_no_pairs(saved: Callable, load: Callable) -> None:
    assert not load(saved("bert-pretraining")[0]).shape.pair_segments


@pytest.mark.parametrize("case", BODIES)
def test_first_and_mean_states_equal_those_of_transformers(case: str, saved: Callable, load: Callable) -> None:
    folder, model = saved(case)
    found, expected = states(load(folder), texts()), oracle(model, None)
    assert_close([mine[0] for mine in found], [theirs[0] for theirs in expected])
    assert_close([mine.mean(0) for mine in found], [theirs.mean(0) for theirs in expected])


@pytest.mark.parametrize("paired", [False, True])
def test_class_scores_equal_those_of_transformers(paired: bool, saved: Callable, load: Callable) -> None:
    folder, model = saved("bert-classifier")
    decoder = load(folder)
    assert decoder.shape.labels == tuple(LABELS.values())
    scores = class_scores(decoder, pair_segments() if paired else None)
    expected = class_oracle(model, pair_segments() if paired else None)
    assert expected.std() > 0.3
    torch.testing.assert_close(scores, expected, atol=TOLERANCE, rtol=0)


def class_scores(decoder: Decoder, segments: list[list[int]] | None) -> Tensor:
    with torch.inference_mode():
        return decoder.class_scores(torch.stack([mine[0] for mine in states(decoder, texts(), segments)]))


def class_oracle(model: PreTrainedModel, segments: list[list[int]] | None) -> Tensor:
    scores = []
    for index, tokens in enumerate(texts()):
        marks = None if segments is None else torch.tensor([segments[index]])
        with torch.inference_mode():
            scores.append(model(torch.tensor([tokens]), token_type_ids=marks).logits)
    return torch.cat(scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_text_has_the_same_bits_alone_and_in_a_crowd(dtype: torch.dtype, saved: Callable, load: Callable) -> None:
    decoder = load(saved("bert-classifier")[0], dtype=dtype)
    crowded, scores = states(decoder, texts(), pair_segments()), class_scores(decoder, pair_segments())
    for index, (tokens, marks) in enumerate(zip(texts(), pair_segments(), strict=True)):
        alone = states(decoder, [tokens], [marks])[0]
        assert torch.equal(alone, crowded[index])
        assert torch.equal(decoder.class_scores(alone[:1])[0], scores[index])


def test_nothing_depends_on_which_blocks_a_text_has(saved: Callable, load: Callable) -> None:
    decoder = load(saved("bert")[0])
    found = []
    for seed in (0, 1):
        pool = Pool(decoder, seed=seed)
        found.append(pool.hidden([(pool.add(len(tokens)), 0, tokens) for tokens in texts()]))
    assert torch.equal(*found)


def test_bfloat16_errs_at_most_half_as_much_again_as_transformers(saved: Callable, load: Callable) -> None:
    folder, model = saved("bert-classifier")
    truth = class_oracle(model, pair_segments())
    theirs = class_oracle(type(model).from_pretrained(folder, dtype=torch.bfloat16), pair_segments()).float()
    mine = class_scores(load(folder, dtype=torch.bfloat16), pair_segments())
    assert 0 < (mine - truth).square().mean().sqrt() <= 1.5 * (theirs - truth).square().mean().sqrt()


Alter = Callable[[ModelConfig], dict[str, object]]
ALTERATIONS: dict[str, Alter] = {
    "bidirectional": lambda c: family(c, causal=True),
    "post-norm": lambda c: {"residual": "pre_norm"},
    "embedding norm": lambda c: drop_name(c, "embedding_norm"),
    "segments": lambda c: drop_name(c, "segments"),
    "positions": lambda c: drop_name(c, "positions"),
    "position offset": lambda c: {"max_positions": 255, **family(c, position_offset=1)},
    "order of norms": lambda c: renamed(
        c, attention_norm=c.family.names.mlp_norm, mlp_norm=c.family.names.attention_norm
    ),
    "norm eps": lambda c: {"norm_eps": 0.019},
    "activation": lambda c: {"activation": "relu"},
    "tanh's gelu": lambda c: {"activation": "gelu_tanh"},
    "qkv bias": lambda c: {"qkv_bias": False, **drop(c, "query.bias", "key.bias", "value.bias")},
    "output bias": lambda c: {"attention_output_bias": False, **drop(c, "attention.output.dense.bias")},
    "mlp bias": lambda c: {"mlp_bias": False, **drop(c, "intermediate.dense.bias", "output.dense.bias")},
    "pooler": lambda c: renamed(c, pooler=""),
    "classifier's bias": lambda c: drop(c, "classifier.bias", classifier_bias=False),
}


def drop_name(config: ModelConfig, name: str) -> dict[str, object]:
    """Alter the family so that it has no such part."""
    names = config.family.names
    ends = tuple(f"{getattr(names, name)}.{part}" for part in ("weight", "bias"))
    return {"family": replace(config.family, names=replace(names, **{name: ""}, ignored=names.ignored + ends))}


@pytest.mark.parametrize("mechanism", ALTERATIONS)
def test_parity_fails_when_the_mechanism_is_altered(mechanism: str, saved: Callable, load: Callable) -> None:
    folder, model = saved("bert-classifier")
    config = load_config(folder)
    altered = load(folder, config=config, **ALTERATIONS[mechanism](config))
    errors = class_scores(altered, pair_segments()) - class_oracle(model, pair_segments())
    inner = torch.cat(states(altered, texts(), pair_segments())) - torch.cat(oracle(model, pair_segments()))
    assert max(errors.abs().max(), inner.abs().max()) > 5 * TOLERANCE
