"""Bodies without a head, classifiers, and several heads on one body, against Transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import CASES, LABELS
from model_harness import Pool, states
from safetensors.torch import load_file, save_file

from orcinus.errors import CheckpointError
from orcinus.models.config import load_config

TOLERANCE = 1e-4
LENGTHS = (150, 1, 17, 64)
pytestmark = [pytest.mark.usefixtures("one_thread")]


def prompts() -> list[list[int]]:
    """Random tokens without the first few, which may be padding to Transformers."""
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(10, 1003, (length,), generator=generator).tolist() for length in LENGTHS]


@pytest.mark.parametrize("case", CASES)
def test_states_of_a_body_equal_those_of_transformers(case: str, saved: Callable, load: Callable) -> None:
    folder, model = saved(f"{case}-body")
    decoder = load(folder)
    assert (decoder.shape.generates, decoder.shape.labels, decoder.shape.pooling) == (False, (), "last")
    found = states(decoder, prompts())
    for tokens, mine in zip(prompts(), found, strict=True):
        with torch.inference_mode():
            expected = model(torch.tensor([tokens])).last_hidden_state[0]
        assert mine.shape == (len(tokens), decoder.shape.hidden_size)
        torch.testing.assert_close(mine, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_class_scores_of_last_tokens_equal_those_of_transformers(case: str, saved: Callable, load: Callable) -> None:
    folder, model = saved(f"{case}-classifier")
    decoder = load(folder)
    assert decoder.shape.labels == tuple(LABELS.values())
    assert (decoder.shape.generates, decoder.shape.pooling) == (False, "last")
    pooled = torch.stack([mine[-1] for mine in states(decoder, prompts())])
    with torch.inference_mode():
        scores = decoder.class_scores(pooled)
        expected = torch.cat([model(torch.tensor([tokens])).logits for tokens in prompts()])
    assert expected.std() > 0.3
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, atol=TOLERANCE, rtol=0)
    assert torch.equal(decoder.class_scores(pooled[1:2]), scores[1:2])


def with_tensor(folder: Path, target: Path, name: str, tensor: torch.Tensor) -> Path:
    """A copy of a checkpoint with one tensor more."""
    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    save_file({**weights, name: tensor}, target / "model.safetensors")
    return target


@pytest.mark.parametrize("case", ["llama", "gpt2", "opt-post-norm", "gemma2"])
def test_a_generator_with_a_classifier_beside_it_has_both_heads_on_one_body(
    case: str, saved: Callable, load: Callable, tmp_path: Path
) -> None:
    plain = load(saved(case)[0])
    weight = torch.randn(2, plain.shape.hidden_size, generator=torch.Generator().manual_seed(5))
    both = load(with_tensor(saved(case)[0], tmp_path / "both", "score.weight", weight))
    assert (both.shape.generates, both.shape.labels) == (True, ("LABEL_0", "LABEL_1"))
    assert both.num_parameters == plain.num_parameters + weight.numel()
    one, other = Pool(plain), Pool(both)
    work = [(one.add(150), 0, prompts()[0])]
    assert other.add(150) == 0
    assert torch.equal(other.run(work), one.run(work))
    pooled = both.states(other.hidden(work))[-1:]
    torch.testing.assert_close(both.class_scores(pooled), pooled @ weight.t(), atol=TOLERANCE, rtol=0)


def test_a_classifier_with_a_vocabulary_head_beside_it_generates(
    saved: Callable, load: Callable, tmp_path: Path
) -> None:
    weight = torch.randn(1003, 64, generator=torch.Generator().manual_seed(6))
    decoder = load(with_tensor(saved("llama-classifier")[0], tmp_path / "both", "lm_head.weight", weight))
    assert (decoder.shape.generates, len(decoder.shape.labels)) == (True, 12)


def test_products_of_all_heads_are_checked_for_batch_invariance(saved: Callable, load: Callable) -> None:
    decoder = load(saved("opt-post-norm-classifier")[0])
    assert {(32, 12), (32, 64), (64, 32)} <= set(decoder.linear_shapes())
    load(saved("bert-classifier")[0]).check_batch_invariance()


def test_a_classifier_without_its_weights_is_refused(saved: Callable, load: Callable, tmp_path: Path) -> None:
    shutil.copytree(saved("llama-body")[0], tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace("LlamaModel", "LlamaForSequenceClassification"))
    with pytest.raises(CheckpointError, match=r"tensor score\.weight is missing"):
        load(tmp_path / "model")


@pytest.mark.parametrize(
    ("mode", "pooling"),
    [
        ("pooling_mode_cls_token", "cls"),
        ("pooling_mode_mean_tokens", "mean"),
        ("pooling_mode_lasttoken", "last"),
    ],
)
@pytest.mark.parametrize("case", ["bert", "qwen3-body"])
def test_pooling_is_that_of_the_folder(
    case: str, mode: str, pooling: str, saved: Callable, load: Callable, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved(case)[0], tmp_path / "model"))
    write_pooling(folder, **{mode: True})
    assert load(folder).shape.pooling == pooling


def write_pooling(folder: Path, **modes: object) -> None:
    (folder / "1_Pooling").mkdir(exist_ok=True)
    values = {"word_embedding_dimension": 64, "pooling_mode_max_tokens": False, "include_prompt": True, **modes}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("modes", "message"),
    [
        ({"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens is not served"),
        ({"pooling_mode_lastoken": True}, "did you mean 'pooling_mode_lasttoken'"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "one of them is needed"),
        ({"pooling_mode_cls_token": False}, "no pooling mode"),
        ({"pooling_mode_cls_token": "yes"}, "pooling_mode_cls_token is 'yes'"),
    ],
)
def test_pooling_that_is_not_served_is_named(
    modes: dict[str, object], message: str, saved: Callable, tmp_path: Path
) -> None:
    shutil.copy(saved("bert")[0] / "config.json", tmp_path)
    write_pooling(tmp_path, **modes)
    with pytest.raises(CheckpointError, match=rf"1_Pooling/config\.json: .*{message}"):
        load_config(tmp_path)


def test_further_steps_of_sentence_transformers_are_refused_by_name(saved: Callable, tmp_path: Path) -> None:
    shutil.copy(saved("bert")[0] / "config.json", tmp_path)
    kinds = [f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Normalize", "Dense")]
    for served, number in ((True, 3), (False, 4)):
        (tmp_path / "modules.json").write_text(json.dumps([{"type": kind} for kind in kinds[:number]]))
        if served:
            assert load_config(tmp_path).pooling is None
        else:
            with pytest.raises(CheckpointError, match=r"modules\.json: the step Dense"):
                load_config(tmp_path)
    (tmp_path / "modules.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"modules\.json can't be read"):
        load_config(tmp_path)
