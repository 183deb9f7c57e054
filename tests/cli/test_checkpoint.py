"""What is said against a checkpoint before torch is loaded; the engine's own readers are the oracle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from said import MODEL, Check
from transformers import (
    AutoConfig,
    BertConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3MoeConfig,
)

from orcinus.cli.checkpoint import check_checkpoint, longest_sequence
from orcinus.engine.config import EngineConfig
from orcinus.errors import CheckpointError, SystemFault
from orcinus.models.config import load_config
from orcinus.models.loader import Checkpoint


def write(folder: Path, values: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        (LlamaConfig(max_position_embeddings=777), "LlamaForCausalLM"),
        (MistralConfig(), "MistralForCausalLM"),
        (Qwen2Config(), "Qwen2ForCausalLM"),
        (Qwen3MoeConfig(), "Qwen3MoeForCausalLM"),
        (GPT2Config(n_positions=512), "GPT2LMHeadModel"),
        (GPTNeoXConfig(), "GPTNeoXForCausalLM"),
        (OPTConfig(), "OPTForCausalLM"),
        (Gemma2Config(), "Gemma2ForCausalLM"),
        (BertConfig(), "BertModel"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_longest_sequence_is_the_engines(tmp_path: Path, config: PretrainedConfig, architecture: str) -> None:
    values = {**config.to_dict(), "architectures": [architecture]}
    assert longest_sequence(values) == load_config(write(tmp_path, values)).max_positions


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 4.0},
        {"type": "dynamic", "factor": 3},
        {"rope_type": "yarn", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
        {"rope_type": "yarn", "original_max_position_embeddings": 512},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
    ],
    ids=str,
)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_a_stretched_context_is_never_refused_below_the_engines_bound(
    tmp_path: Path, rope: dict[str, object], key: str
) -> None:
    values = LlamaConfig(max_position_embeddings=1024).to_dict() | {"architectures": ["LlamaForCausalLM"]}
    values.pop("rope_parameters", None)
    values[key] = rope
    longest = longest_sequence(values)
    assert longest is not None
    assert longest >= load_config(write(tmp_path, values)).max_positions


def test_rotations_of_single_layers_are_left_to_the_engine() -> None:
    values = Gemma3TextConfig().to_dict()
    assert isinstance(next(iter(values["rope_parameters"].values())), dict)
    assert longest_sequence(values) is None
    assert longest_sequence({"max_position_embeddings": "x"}) is None
    assert longest_sequence({"max_position_embeddings": 5, "rope_scaling": {"type": "yarn", "factor": "x"}}) is None


def test_the_facts_are_those_of_the_files() -> None:
    facts = check_checkpoint(EngineConfig(str(MODEL)))
    stored = Checkpoint.open(MODEL).tensors
    assert facts.num_tensors == len(stored)
    assert 2 * facts.num_elements == sum(tensor.num_bytes for tensor in stored.values())
    assert facts.architecture == AutoConfig.from_pretrained(MODEL).architectures[0]


# ---- folders that can't be served


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])


def lose(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def put(name: str, content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(content)

    return write


def index(weight_map: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "one.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return write


BROKEN = [
    (lose("config.json"), "config.json is missing"),
    (put("config.json", "{"), "config.json can't be read"),
    (put("config.json", "[]"), "config.json can't be read"),
    (put("config.json", "[" * 100_000), "config.json can't be read"),
    (put("config.json", "{}"), "names neither an architecture nor a model_type"),
    (put("config.json", '{"architectures": [3]}'), "names neither an architecture nor a model_type"),
    (lose("model.safetensors"), "holds neither model.safetensors nor"),
    (truncate, "model.safetensors is damaged"),
    (put("model.safetensors", "x"), "model.safetensors is damaged"),
    (index({}), "weight_map is missing or empty"),
    (index({"a": "one.safetensors", "b": "two.safetensors"}), "names two.safetensors, which isn't beside it"),
    (index({"a": "../one.safetensors"}), "names ../one.safetensors, which isn't beside it"),
]
BROKEN_TEXT_SIDE = [
    (put("tokenizer.json", "{"), "tokenizer.json is not a tokenizer"),
    (put("tokenizer_config.json", "["), "tokenizer_config.json is not"),
    (put("chat_template.jinja", "{% if %}"), "chat template is not a Jinja template"),
    (put("generation_config.json", '{"temperature": "hot"}'), "generation_config.json is not"),
]


@pytest.mark.parametrize(("damage", "complaint"), [*BROKEN, *BROKEN_TEXT_SIDE], ids=lambda value: str(value)[:40])
def test_a_folder_that_cannot_be_served_is_refused_by_name(
    check: Check, tmp_path: Path, damage: Callable[[Path], None], complaint: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    damage(folder)
    said = check(str(folder))
    assert said.code == 2
    assert complaint in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(("damage", "complaint"), BROKEN, ids=lambda value: str(value)[:40])
def test_nothing_is_refused_that_the_engine_would_take(
    tmp_path: Path, damage: Callable[[Path], None], complaint: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    damage(folder)
    with pytest.raises(SystemFault):
        check_checkpoint(EngineConfig(str(folder)))
    with pytest.raises(CheckpointError):
        read_as_the_engine(folder)


def read_as_the_engine(folder: Path) -> None:
    load_config(folder)
    Checkpoint.open(folder)


def test_shards_are_counted_together(check: Check, tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "model")
    index(dict.fromkeys(Checkpoint.open(MODEL).tensors, "one.safetensors"))(tmp_path / "model")
    assert "8.0 M weights in 56 tensors" in check(str(tmp_path / "model")).out


def test_a_checkpoint_without_a_tokenizer_is_served_by_token_ids(check: Check, tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    assert "# tokenizer: none" in check(str(tmp_path / "model")).out


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("org/model", "Orcinus never downloads"),
        ("./nowhere", "doesn't exist"),
        (str(MODEL / "config.json"), "is a file"),
    ],
)
def test_a_name_that_is_no_folder_is_explained(check: Check, name: str, complaint: str) -> None:
    said = check(environment={"ORCINUS_MODEL": name})
    assert said.code == 2
    assert said.err.startswith(f"orcinus: ORCINUS_MODEL: model {name}")
    assert complaint in said.err
