"""Whatever is wrong with a checkpoint is told at once, with the file's name and a remedy; what is right loads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import LABELS, SMALL, save
from safetensors.torch import load_file, save_file
from transformers import Gemma2Config, Gemma2ForCausalLM

from orcinus.errors import CheckpointError
from orcinus.kernels.reference import ReferenceKernels
from orcinus.models.config import find_folder, load_config
from orcinus.models.decoder import Decoder
from orcinus.models.generation import load_eos_token_ids
from orcinus.models.loader import Checkpoint, resolve_dtype

CPU = torch.device("cpu")
pytestmark = [pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def folder(saved: Callable, tmp_path: Path) -> Path:
    """A sound checkpoint in one file, to be spoilt."""
    return Path(shutil.copytree(saved("llama")[0], tmp_path / "model"))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """The same in several files."""
    save("llama", tmp_path / "sharded", max_shard_size="300KB")
    return tmp_path / "sharded"


# Writes a null, where None takes a key out.
NULL = object()


def edit(path: Path, **changes: object) -> None:
    """Change keys of a JSON file; None takes a key out."""
    values = json.loads(path.read_text()) | changes
    kept = {key: None if value is NULL else value for key, value in values.items() if value is not None}
    path.write_text(json.dumps(kept))


def load_fails(load: Callable, folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_sharded_checkpoint_has_the_weights_of_the_single_file(sharded: Path, folder: Path, load: Callable) -> None:
    assert len(list(sharded.glob("*.safetensors"))) > 2
    one, many = load(folder).body, load(sharded).body
    assert torch.equal(one.embedding.words, many.embedding.words)
    assert torch.equal(one.head.data.to_dense(), many.head.data.to_dense())


def test_sizes_and_progress_are_those_of_the_files(folder: Path, saved: Callable) -> None:
    seen: list[tuple[int, int]] = []
    decoder = Decoder.load(
        folder,
        load_config(folder),
        dtype=torch.float32,
        device=CPU,
        kernels=ReferenceKernels(),
        progress=lambda done, total: seen.append((done, total)),
    )
    num_parameters = sum(weight.numel() for weight in saved("llama")[1].parameters())
    assert decoder.num_parameters == num_parameters
    assert seen[-1] == (4 * num_parameters, 4 * num_parameters)
    assert seen == sorted(seen)
    assert len(seen) == 3 + 9 * decoder.config.num_layers
    table = decoder.config.max_positions * decoder.config.head_dim * 4
    assert decoder.weight_bytes == 4 * num_parameters + table
    assert decoder.linear_shapes() == [(64, 64), (64, 128), (64, 320), (64, 1003), (160, 64)]


def test_tied_head_that_is_packed_counts_its_own_bytes(saved: Callable, load: Callable) -> None:
    decoder = load(saved("llama-llama3")[0])
    shared = decoder.body.head.data is decoder.body.embedding.words
    once = 4 * decoder.num_parameters + decoder.config.max_positions * decoder.config.head_dim * 4
    assert decoder.weight_bytes == once + (0 if shared else decoder.body.embedding.words.nbytes)


def test_gpt2_loads_without_its_prefix_and_with_old_buffers(saved: Callable, tmp_path: Path, load: Callable) -> None:
    folder, _ = saved("gpt2")
    shutil.copy(folder / "config.json", tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    save_file(weights | {"h.0.attn.bias": torch.ones(1, 1, 4, 4)}, tmp_path / "model.safetensors")
    assert torch.equal(load(tmp_path).body.embedding.words, load(folder).body.embedding.words)


def test_revision_changes_with_weights_files_and_configuration(folder: Path, sharded: Path) -> None:
    rewrite(folder, lambda weights: None)
    before = Checkpoint.open(folder).revision
    rewrite(folder, lambda weights: None)
    assert Checkpoint.open(folder).revision == before
    assert Checkpoint.open(sharded).revision != before
    rewrite(folder, lambda weights: weights["model.norm.weight"].add_(0.5))
    assert Checkpoint.open(folder).revision != before
    rewrite(folder, lambda weights: weights["model.norm.weight"].sub_(0.5))
    edit(folder / "config.json", rms_norm_eps=1e-5)
    assert Checkpoint.open(folder).revision != before


@pytest.mark.parametrize("case", ["gemma2", "gemma3"])
def test_norms_stored_as_offsets_from_1_keep_all_bits_in_bfloat16(case: str, saved: Callable, load: Callable) -> None:
    folder, model = saved(case)
    layer, theirs = load(folder, dtype=torch.bfloat16).body.layers[1], model.model.layers[1]
    weight = theirs.pre_feedforward_layernorm.weight.detach()
    assert layer.mlp_norm.weight.dtype == torch.float32
    assert torch.equal(layer.mlp_norm.weight, 1 + weight.bfloat16().float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaled_embeddings_have_the_bits_of_transformers(
    dtype: torch.dtype, saved: Callable, load: Callable, tmp_path: Path
) -> None:
    # The root of this width is no whole number, so it is rounded.
    model = Gemma2ForCausalLM(Gemma2Config(**{**SMALL, "hidden_size": 80, "head_dim": 16}))
    model.save_pretrained(tmp_path)
    embedding, tokens = load(tmp_path, dtype=dtype).body.embedding, torch.arange(1003)
    assert torch.equal(embedding(tokens, tokens, None), model.to(dtype).model.embed_tokens(tokens))


LOAD = """
import pathlib, sys, torch
from orcinus.kernels.reference import ReferenceKernels
from orcinus.models.config import load_config
from orcinus.models.decoder import Decoder
for folder in map(pathlib.Path, sys.argv[1:]):
    config = load_config(folder)
    Decoder.load(folder, config, dtype=torch.bfloat16, device=torch.device("cpu"), kernels=ReferenceKernels())
sys.exit("torch._dynamo" in sys.modules)
"""


@pytest.mark.slow
def test_loading_does_not_import_the_compiler(saved: Callable) -> None:
    folders = [saved(case)[0] for case in ("llama", "qwen3", "gemma2", "gpt2", "opt-post-norm", "gpt_neox", "bert")]
    assert subprocess.run([sys.executable, "-c", LOAD, *map(str, folders)], check=False).returncode == 0


# --- what is wrong with a folder


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere doesn't exist"):
        load_config(tmp_path / "nowhere")


def test_hub_name_is_explained_and_nothing_downloaded() -> None:
    with pytest.raises(CheckpointError, match=r"never downloads.*hf download qwen/Qwen3-0\.6B"):
        find_folder("qwen/Qwen3-0.6B")


def test_file_instead_of_a_folder_is_named(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is a file"):
        load_config(folder / "config.json")


def test_missing_config_is_named(folder: Path, load: Callable) -> None:
    (folder / "config.json").unlink()
    load_fails(load, folder, r"config\.json is missing.*save_pretrained")


@pytest.mark.parametrize("text", ["{", "[1]", "", '{"a": \xff}'])
def test_malformed_config_is_named(folder: Path, load: Callable, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    load_fails(load, folder, r"config\.json can't be read")


def test_no_weights_at_all_are_named(folder: Path, load: Callable) -> None:
    (folder / "model.safetensors").unlink()
    load_fails(load, folder, "holds neither")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused(folder: Path, load: Callable, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    load_fails(load, folder, f"{name}.*never loaded.*save_pretrained")


def test_missing_shard_is_named(sharded: Path, load: Callable) -> None:
    gone = sorted(sharded.glob("*.safetensors"))[1]
    gone.unlink()
    load_fails(load, sharded, f"{gone.name} is missing")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_shard_outside_the_folder_is_refused(sharded: Path, load: Callable, name: str) -> None:
    edit(sharded / "model.safetensors.index.json", weight_map={"x": name})
    load_fails(load, sharded, "outside its folder")


def test_index_without_a_map_is_named(sharded: Path, load: Callable) -> None:
    edit(sharded / "model.safetensors.index.json", weight_map=None)
    load_fails(load, sharded, "weight_map is missing or empty")


# --- what is wrong with a file


@pytest.mark.parametrize("keep", [0, 5, 100, 50_000])
def test_truncated_file_is_named(folder: Path, load: Callable, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    load_fails(load, folder, r"model\.safetensors is damaged.*download or copy it again")


@pytest.mark.parametrize("header", [b"\xff" * 8, (40).to_bytes(8, "little") + b"no json"])
def test_corrupt_header_is_named(folder: Path, load: Callable, header: bytes) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(header + path.read_bytes()[len(header) :])
    load_fails(load, folder, r"model\.safetensors is damaged")


def test_header_that_contradicts_itself_is_named(folder: Path, load: Callable) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"shape":[1003,64]', b'"shape":[1002,64]'))
    load_fails(load, folder, "bytes for the shape")


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def test_missing_tensor_is_named(folder: Path, load: Callable) -> None:
    rewrite(folder, lambda weights: weights.pop("model.layers.2.mlp.down_proj.weight"))
    load_fails(load, folder, r"tensor model\.layers\.2\.mlp\.down_proj\.weight is missing.*incomplete")


def test_surplus_tensor_is_named(folder: Path, load: Callable) -> None:
    rewrite(folder, lambda weights: weights.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}))
    load_fails(load, folder, r"no place in the model.*q_proj\.bias")


def test_unexpected_shape_is_named_before_a_weight_is_read(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.update({"lm_head.weight": torch.zeros(1002, 64)}))
    seen: list[int] = []
    with pytest.raises(
        CheckpointError, match=r"lm_head\.weight has shape \[1002, 64\], config\.json asks for \[1003, 64\]"
    ):
        Decoder.load(
            folder,
            load_config(folder),
            dtype=torch.float32,
            device=CPU,
            kernels=ReferenceKernels(),
            progress=lambda done, _: seen.append(done),
        )
    assert seen == []


def test_quantised_tensor_is_named(folder: Path, load: Callable) -> None:
    rewrite(folder, lambda weights: weights.update({"lm_head.weight": torch.zeros(1003, 64, dtype=torch.int8)}))
    load_fails(load, folder, r"lm_head\.weight is stored as I8")


# --- what is wrong with a configuration

WRONG: dict[str, tuple[dict[str, object], str]] = {
    "unknown architecture": ({"architectures": ["LlamaForCausalLn"]}, "did you mean 'LlamaForCausalLM'"),
    "unknown model type": ({"architectures": None, "model_type": "lama"}, "did you mean 'llama'"),
    "another head": ({"architectures": ["LlamaForQuestionAnswering"]}, "not a model that Orcinus serves"),
    "unknown activation": ({"hidden_act": "gelu_nwe"}, "did you mean 'gelu_new'"),
    "unknown rope type": ({"rope_parameters": {"rope_type": "lama3", "rope_theta": 1e4}}, "did you mean 'llama3'"),
    "missing rope factor": ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "factor is missing"),
    "partial rotation": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "missing key": ({"hidden_size": None}, "hidden_size is missing"),
    "text for a number": ({"num_hidden_layers": "three"}, "num_hidden_layers is 'three'"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    "text for a flag": ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
    "heads that don't divide": ({"num_key_value_heads": 3}, "don't divide"),
    "quantised": ({"quantization_config": {"bits": 4}}, "weights quantised by 'none'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_configuration_that_cannot_be_served_is_explained(case: str, folder: Path) -> None:
    changes, message = WRONG[case]
    edit(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        load_config(folder)


WRONG_ELSEWHERE: list[tuple[str, dict[str, object], str]] = [
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True; only False"),
    ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine is False; only True"),
    ("opt", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm is True; only False"),
    ("opt", {"do_layer_norm_before": "no"}, "do_layer_norm_before is 'no'"),
    ("opt", {"word_embed_proj_dim": "small"}, "word_embed_proj_dim is 'small'"),
    ("opt", {"enable_bias": 1}, "enable_bias is 1"),
    ("gpt_neox", {"use_parallel_residual": "yes"}, "use_parallel_residual is 'yes'"),
    ("mistral", {"sliding_window": 0}, "sliding_window is 0"),
    ("phi3", {"sliding_window": "wide"}, "sliding_window is 'wide'"),
    ("qwen2-windowed", {"use_sliding_window": "yes"}, "use_sliding_window is 'yes'"),
    ("qwen2-windowed", {"layer_types": ["full_attention"]}, "layer_types has 1 entries for 3 layers"),
    ("gemma2", {"layer_types": ["chunked_attention"] * 3}, "layer_types names 'chunked_attention'"),
    ("gemma2", {"layer_types": None, "sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
    ("gemma2", {"sliding_window": NULL}, "sliding_window is missing"),
    ("gemma2", {"attn_logit_softcapping": 0}, r"attn_logit_softcapping is 0\.0"),
    ("gemma2", {"final_logit_softcapping": "high"}, "final_logit_softcapping is 'high'"),
    ("gemma2", {"query_pre_attn_scalar": -1}, r"query_pre_attn_scalar is -1\.0"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True; only False"),
    ("gemma2", {"hidden_activation": "gelu_pytorch_tan"}, "did you mean 'gelu_pytorch_tanh'"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping is 50\.0; only None"),
    ("gemma3", {"rope_parameters": {"full_attention": 5}}, "full_attention is 5"),
    ("gemma3", {"architectures": ["Gemma3ForConditionalGeneration"]}, "not a model that Orcinus serves"),
    ("bert", {"is_decoder": True}, "is_decoder is True; only False"),
    ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'; only 'absolute'"),
    ("bert", {"type_vocab_size": 0}, "type_vocab_size is 0"),
    ("bert", {"architectures": ["BertForSequenceClasification"]}, "did you mean 'BertForSequenceClassification'"),
    ("bert-classifier", {"id2label": {"0": "no", "2": "yes"}}, "id2label has the ids 0, 2; those from 0 to 1"),
    ("bert-classifier", {"id2label": ["no", "yes"]}, "id2label is .'no', 'yes'.; an object"),
]


@pytest.mark.parametrize(("case", "changes", "message"), WRONG_ELSEWHERE)
def test_option_of_a_family_that_cannot_be_served_is_explained(
    case: str, changes: dict[str, object], message: str, saved: Callable, tmp_path: Path
) -> None:
    shutil.copy(saved(case)[0] / "config.json", tmp_path)
    edit(tmp_path / "config.json", **changes)
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        load_config(tmp_path)


def test_missing_windows_and_caps_are_the_family_s_and_null_ones_are_none(saved: Callable, tmp_path: Path) -> None:
    for case, key, found, default in (
        ("mistral", "sliding_window", lambda config: config.windows[0], 4096),
        ("phi3", "sliding_window", lambda config: config.windows[0], None),
        ("gemma2", "attn_logit_softcapping", lambda config: config.attention_soft_cap, 50.0),
        ("gemma2", "final_logit_softcapping", lambda config: config.logit_soft_cap, 30.0),
        ("gemma3", "final_logit_softcapping", lambda config: config.logit_soft_cap, None),
    ):
        shutil.copy(saved(case)[0] / "config.json", tmp_path)
        edit(tmp_path / "config.json", **{key: None})
        assert found(load_config(tmp_path)) == default
        edit(tmp_path / "config.json", **{key: NULL})
        assert found(load_config(tmp_path)) is None


def test_gemma2_without_layer_types_windows_every_other_layer(saved: Callable, tmp_path: Path) -> None:
    shutil.copy(saved("gemma2")[0] / "config.json", tmp_path)
    edit(tmp_path / "config.json", layer_types=None)
    assert load_config(tmp_path).windows == (9, None, 9)


def test_labels_are_in_the_order_of_their_ids(saved: Callable) -> None:
    assert load_config(saved("bert-classifier")[0]).labels == tuple(LABELS.values())
    assert load_config(saved("bert")[0]).labels == ("LABEL_0", "LABEL_1")


def test_both_names_of_gpt_neox_s_head_and_its_old_buffers_load(
    saved: Callable, tmp_path: Path, load: Callable
) -> None:
    folder, _ = saved("gpt_neox")
    shutil.copy(folder / "config.json", tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("embed_out.weight")
    save_file(weights | {"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 4, 4)}, tmp_path / "model.safetensors")
    assert torch.equal(load(tmp_path).body.head.data.to_dense(), load(folder).body.head.data.to_dense())


def test_older_names_of_bert_s_norms_and_buffers_load(saved: Callable, tmp_path: Path, load: Callable) -> None:
    folder, _ = saved("bert-masked")
    shutil.copy(folder / "config.json", tmp_path)
    weights = load_file(folder / "model.safetensors")
    older = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for new, old in older.items():
        weights = {name.replace(new, old): tensor for name, tensor in weights.items()}
    save_file(weights | {"bert.embeddings.position_ids": torch.ones(1, 256)}, tmp_path / "model.safetensors")
    for mine, other in zip(load(tmp_path).body.layers, load(folder).body.layers, strict=True):
        assert torch.equal(mine.mlp_norm.weight, other.mlp_norm.weight)
        assert torch.equal(mine.mlp_norm.bias, other.mlp_norm.bias)


def test_old_and_new_ways_of_writing_rotary_scaling_mean_the_same(saved: Callable, tmp_path: Path) -> None:
    shutil.copy(saved("llama-llama3")[0] / "config.json", tmp_path)
    new = load_config(tmp_path)
    parameters = json.loads((tmp_path / "config.json").read_text())["rope_parameters"]
    theta, kind = parameters.pop("rope_theta"), parameters.pop("rope_type")
    for name in ("type", "rope_type"):
        edit(tmp_path / "config.json", rope_parameters=None, rope_theta=theta, rope_scaling={**parameters, name: kind})
        assert load_config(tmp_path) == new


def test_old_configuration_with_its_keys_left_out_has_the_family_s_defaults(folder: Path) -> None:
    left_out = (
        "rope_parameters",
        "rms_norm_eps",
        "hidden_act",
        "tie_word_embeddings",
        "num_key_value_heads",
        "head_dim",
    )
    edit(folder / "config.json", **dict.fromkeys(left_out))
    config = load_config(folder)
    rotary = config.rotaries[0]
    assert rotary is not None
    assert (rotary.theta, config.norm_eps, config.activation, config.tie_embeddings) == (
        1e4,
        1e-6,
        "silu",
        False,
    )
    assert (config.num_kv_heads, config.head_dim) == (4, 16)


def test_windows_follow_the_layers_that_the_configuration_names(saved: Callable, tmp_path: Path) -> None:
    shutil.copy(saved("qwen2-windowed")[0] / "config.json", tmp_path)
    assert load_config(tmp_path).windows == (None, 9, 9)
    edit(tmp_path / "config.json", layer_types=None)
    assert load_config(tmp_path).windows == (None, 9, 9)
    edit(tmp_path / "config.json", use_sliding_window=False)
    assert load_config(tmp_path).windows == (None, None, None)


@pytest.mark.parametrize(
    ("stored", "requested", "expected", "notice"),
    [
        ("float32", "auto", torch.float32, None),
        ("bfloat16", "auto", torch.bfloat16, None),
        ("bfloat16", "float32", torch.float32, None),
        ("float16", "auto", torch.bfloat16, "float16 checkpoint: computing in bfloat16 on cpu"),
        ("float16", "float32", torch.float32, "float16 checkpoint: computing in float32 on cpu"),
        (None, "auto", torch.float32, None),
    ],
)
def test_dtype_is_resolved_and_float16_said_aloud(
    folder: Path, stored: str | None, requested: str, expected: torch.dtype, notice: str | None
) -> None:
    for key in ("dtype", "torch_dtype"):
        edit(folder / "config.json", dtype=None, torch_dtype=None)
        edit(folder / "config.json", **{key: stored})
        dtype, said = resolve_dtype(requested, load_config(folder).dtype, CPU)
        assert dtype == expected
        assert (said or "").startswith(notice or "")
        assert (said is None) == (notice is None)


def test_unknown_dtype_names_the_nearest(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="did you mean 'bfloat16'"):
        resolve_dtype("bfloat", load_config(folder).dtype, CPU)


def test_float16_checkpoint_loads(folder: Path, load: Callable) -> None:
    rewrite(folder, lambda weights: weights.update({name: tensor.half() for name, tensor in weights.items()}))
    assert load(folder, dtype=torch.bfloat16).body.embedding.words.dtype == torch.bfloat16


# --- where answers end


def test_generation_config_names_the_end_tokens(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert load_eos_token_ids(folder) == (7, 9)


@pytest.mark.parametrize(("stored", "expected"), [(5, (5,)), ([5, 6], (5, 6)), (None, ()), (-1, ())])
def test_config_stands_in_for_missing_end_tokens(folder: Path, stored: object, expected: tuple[int, ...]) -> None:
    (folder / "generation_config.json").unlink(missing_ok=True)
    edit(folder / "config.json", eos_token_id=stored)
    assert load_eos_token_ids(folder) == expected


def test_malformed_end_tokens_are_named(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": "end"}')
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id is 'end'"):
        load_eos_token_ids(folder)
