"""Rotary tables of all scalings and ways of writing them, against Transformers' own rotary embeddings."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import LLAMA3_SCALING
from model_harness import teacher_forced
from torch import Tensor
from transformers import (
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    Phi3Config,
    PreTrainedConfig,
)
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from orcinus.errors import CheckpointError
from orcinus.layers.rotary import DynamicScaling
from orcinus.models.config import ModelConfig, load_config

POSITIONS = 300
pytestmark = [pytest.mark.usefixtures("one_thread")]

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
SCALINGS: dict[str, dict[str, object]] = {
    "default": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0},
    "llama3": LLAMA3_SCALING,
    "yarn": YARN,
    "yarn betas": {**YARN, "beta_fast": 6.0, "beta_slow": 2.5},
    "yarn untruncated": {**YARN, "beta_fast": 6.0, "beta_slow": 2.5, "truncate": False},
    "yarn attention factor": {**YARN, "attention_factor": 0.7},
    "yarn mscale": {**YARN, "mscale": 0.8, "mscale_all_dim": 1.3},
    "yarn mscale alone": {**YARN, "mscale": 0.8},
    "yarn factor 1": {**YARN, "factor": 1.0},
    "yarn without a ramp": {**YARN, "beta_fast": 60.0, "beta_slow": 50.0},
    "yarn of the whole context": {"rope_type": "yarn", "rope_theta": 500.0, "factor": 2.0},
}


def written(config: PreTrainedConfig, architecture: str, folder: Path) -> Path:
    """`config` as `save_pretrained` of a model writes it."""
    config.architectures = [architecture]
    config.save_pretrained(folder)
    return folder


def llama(parameters: dict[str, object], **options: object) -> LlamaConfig:
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64}
    return LlamaConfig(**sizes, max_position_embeddings=256, rope_parameters=dict(parameters), **options)


def table(config: ModelConfig, layer: int = 0) -> Tensor:
    rotary = config.rotaries[layer]
    assert rotary is not None
    return rotary.table(POSITIONS, torch.device("cpu"))


def oracle(embedding: torch.nn.Module, **options: object) -> Tensor:
    """The same from a module that gives cosines and sines [1, positions, 2 · half] in which both halves are equal."""
    cos, sin = embedding(torch.zeros(1), torch.arange(POSITIONS)[None], **options)
    half = cos.shape[-1] // 2
    return torch.stack((cos[0, :, :half], sin[0, :, :half]), dim=1)


@pytest.mark.parametrize("case", SCALINGS)
def test_table_has_the_bits_of_transformers(case: str, tmp_path: Path) -> None:
    config = llama(SCALINGS[case])
    found = table(load_config(written(config, "LlamaForCausalLM", tmp_path)))
    assert torch.equal(found, oracle(LlamaRotaryEmbedding(config)))


@pytest.mark.parametrize("case", [case for case in SCALINGS if case != "default"])
def test_older_way_of_writing_a_scaling_means_the_same(case: str, tmp_path: Path) -> None:
    folder = written(llama(SCALINGS[case]), "LlamaForCausalLM", tmp_path)
    new, path = load_config(folder), folder / "config.json"
    values = json.loads(path.read_text())
    parameters = values.pop("rope_parameters")
    values |= {"rope_theta": parameters.pop("rope_theta"), "rope_scaling": parameters}
    path.write_text(json.dumps(values))
    assert load_config(folder) == new
    parameters["type"] = parameters.pop("rope_type")
    path.write_text(json.dumps(values))
    assert load_config(folder) == new


def test_scaling_factor_and_context_may_be_said_by_the_two_contexts(tmp_path: Path) -> None:
    folder = written(llama(YARN), "LlamaForCausalLM", tmp_path)
    expected, path = load_config(folder).rotaries, folder / "config.json"
    values = json.loads(path.read_text())
    values["rope_parameters"] |= {"factor": None, "original_max_position_embeddings": 5}
    path.write_text(json.dumps(values | {"original_max_position_embeddings": 64}))
    assert load_config(folder).rotaries == expected


@pytest.mark.parametrize("share", [0.25, 0.5, 0.35, 1.0])
def test_partly_rotated_heads_have_the_tables_of_transformers(share: float, tmp_path: Path) -> None:
    sizes = {"hidden_size": 160, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 64}
    rope = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": share}
    neox = GPTNeoXConfig(**sizes, rope_parameters=dict(rope))
    phi3 = Phi3Config(**sizes, rope_parameters=dict(rope))
    for config, kind, name in (
        (neox, GPTNeoXRotaryEmbedding, "GPTNeoXForCausalLM"),
        (phi3, Phi3RotaryEmbedding, "Phi3ForCausalLM"),
    ):
        found = table(load_config(written(config, name, tmp_path / name)))
        assert torch.equal(found, oracle(kind(config)))


def test_older_names_of_partial_rotation_mean_the_same(tmp_path: Path) -> None:
    sizes = {"hidden_size": 160, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 64}
    old = {"rotary_pct": 0.4, "rotary_emb_base": 700}
    for given, known in ((old, GPTNeoXConfig(**sizes, **old)), ({}, GPTNeoXConfig(**sizes))):
        config = GPTNeoXConfig(**sizes)
        values = config.to_dict() | {"architectures": ["GPTNeoXForCausalLM"]} | given
        del values["rope_parameters"]
        (tmp_path / "config.json").write_text(json.dumps(values))
        assert torch.equal(table(load_config(tmp_path)), oracle(GPTNeoXRotaryEmbedding(known)))


def gemma3(**options: object) -> Gemma3TextConfig:
    sizes = {
        "hidden_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_hidden_layers": 6,
    }
    return Gemma3TextConfig(**sizes, **options)


def test_windowed_layers_of_gemma3_have_a_table_of_their_own(tmp_path: Path) -> None:
    full = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 8.0}
    rope = {"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": 700.0}}
    config = gemma3(rope_parameters=rope)
    loaded, embedding = load_config(written(config, "Gemma3ForCausalLM", tmp_path)), Gemma3RotaryEmbedding(config)
    for layer, kind in enumerate(config.layer_types):
        assert torch.equal(table(loaded, layer), oracle(embedding, layer_type=kind))
    assert not torch.equal(table(loaded, 4), table(loaded, 5))


def test_older_way_of_writing_gemma3_s_two_tables_means_the_same(tmp_path: Path) -> None:
    config = gemma3()
    values = config.to_dict() | {
        "architectures": ["Gemma3ForCausalLM"],
        "rope_theta": 5000.0,
        "rope_local_base_freq": 700.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 6,
    }
    del values["rope_parameters"], values["layer_types"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    loaded, known = load_config(tmp_path), Gemma3TextConfig.from_pretrained(tmp_path)
    assert loaded.windows == (4096,) * 5 + (None,)
    for layer, kind in enumerate(known.layer_types):
        assert torch.equal(table(loaded, layer), oracle(Gemma3RotaryEmbedding(known), layer_type=kind))


# --- dynamic scaling: a length of its own for each position

DYNAMIC = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0}


def test_dynamic_table_has_the_rows_of_transformers_growing_token_by_token(tmp_path: Path) -> None:
    config = llama(DYNAMIC)
    config.max_position_embeddings = 64
    loaded = load_config(written(config, "LlamaForCausalLM", tmp_path))
    embedding, rows = LlamaRotaryEmbedding(config), []
    for position in range(POSITIONS):
        cos, sin = embedding(torch.zeros(1), torch.tensor([[position]]))
        half = cos.shape[-1] // 2
        rows.append(torch.stack((cos[0, 0, :half], sin[0, 0, :half])))
    # An ulp of a frequency, times the position.
    torch.testing.assert_close(table(loaded), torch.stack(rows), atol=5e-5, rtol=0)
    assert torch.equal(table(loaded)[:64], torch.stack(rows)[:64])


def test_dynamic_sequence_may_be_as_long_as_its_factor_allows(saved: Callable) -> None:
    assert load_config(saved("llama-dynamic")[0]).max_positions == 256


def test_yarn_sequence_may_be_as_long_as_its_factor_allows(tmp_path: Path) -> None:
    config = llama({**YARN, "original_max_position_embeddings": 256})
    assert load_config(written(config, "LlamaForCausalLM", tmp_path)).max_positions == 1024


@pytest.mark.parametrize("cuts", [(0, 150), (0, 64, 150), (0, 1, 40, 101, 102, 150)])
def test_dynamic_logits_in_any_chunks_equal_those_of_transformers_fed_token_by_token(
    cuts: tuple[int, ...], saved: Callable, load: Callable
) -> None:
    folder, model = saved("llama-dynamic")
    tokens = torch.randint(0, 1003, (150,), generator=torch.Generator().manual_seed(8)).tolist()
    expected, past = [], None
    with torch.inference_mode():
        for token in tokens:
            out = model(torch.tensor([[token]]), past_key_values=past, use_cache=True)
            past = out.past_key_values
            expected.append(out.logits[0, 0])
        at_once = model(torch.tensor([tokens])).logits[0]
    pieces = [[(0, start, end)] for start, end in itertools.pairwise(cuts)]
    found = teacher_forced(load(folder), [tokens], pieces)[0]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=0)
    # What the definition avoids: elsewhere the same tokens have other logits when they come at once.
    assert (at_once - torch.stack(expected)).abs().max() > 0.05


def test_dynamic_scaling_reaches_the_model(saved: Callable) -> None:
    scalings = {rotary.scaling for rotary in load_config(saved("llama-dynamic")[0]).rotaries if rotary}
    assert scalings == {DynamicScaling(4.0, 64)}


# --- what isn't served


@pytest.mark.parametrize("kind", ["longrope", "su", "yarn"])
def test_long_contexts_of_phi3_are_refused_by_name(kind: str, saved: Callable, tmp_path: Path) -> None:
    values = json.loads((saved("phi3")[0] / "config.json").read_text())
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    values["rope_parameters"] |= {"rope_type": kind, "original_max_position_embeddings": 64, **factors}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=f"rope type '{kind}' is not served"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_type": "yarm"}, "did you mean 'yarn'"),
        ({"rope_type": "longrope"}, "rope type 'longrope' is not served"),
        ({"factor": "four"}, "factor is 'four'"),
        ({"truncate": "no"}, "truncate is 'no'"),
        ({"beta_fast": []}, r"beta_fast is \[\]"),
        ({"attention_factor": "much"}, "attention_factor is 'much'"),
        ({"original_max_position_embeddings": 0}, "original_max_position_embeddings is 0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; llama models rotate whole heads"),
    ],
)
def test_malformed_scaling_is_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    folder = written(llama(YARN), "LlamaForCausalLM", tmp_path)
    values = json.loads((folder / "config.json").read_text())
    values["rope_parameters"] |= changes
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        load_config(folder)


def test_share_that_rotates_nothing_is_named(saved: Callable, tmp_path: Path) -> None:
    values = json.loads((saved("gpt_neox")[0] / "config.json").read_text())
    values["rope_parameters"]["partial_rotary_factor"] = 0.01
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="0 of a head's 16 dimensions would be rotated"):
        load_config(tmp_path)
