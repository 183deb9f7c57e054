"""GGUF files of llama-like models: equal to what transformers makes of them, and served from the one file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_model_company import alone, random_tokens
from transformers import AutoModelForCausalLM

from orcinus import LLM
from orcinus.errors import CheckpointError
from orcinus.kernels.reference import ReferenceKernels
from orcinus.models.config import load_config
from orcinus.models.decoder import Decoder
from orcinus.text.gguf import with_folder

gguf = pytest.importorskip("gguf")

TINY = Path(__file__).parents[2] / "models" / "orcinus-tiny"
IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def write_gguf(folder: Path, target: Path, kind: str) -> None:
    """A llama checkpoint as llama.cpp's converter writes it: rows of queries and keys in its own order."""
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    writer, heads = gguf.GGUFWriter(target, "llama"), config["num_attention_heads"]
    writer.add_name("tiny")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    if (folder / "tokenizer.json").exists():
        add_tokenizer(writer, folder, config)
    type_ = gguf.GGMLQuantizationType[kind]

    def put(name: str, source: str) -> None:
        values = weights[f"{source}.weight"].float()
        if name.endswith(("attn_q", "attn_k")):
            count = heads if name.endswith("q") else config["num_key_value_heads"]
            values = values.view(count, 2, -1, values.shape[1]).transpose(1, 2).reshape(values.shape)
        if values.dim() == 1:
            writer.add_tensor(f"{name}.weight", values.numpy())
        else:
            writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values.numpy(), type_), raw_dtype=type_)

    put("token_embd", "model.embed_tokens")
    put("output_norm", "model.norm")
    if not config["tie_word_embeddings"]:
        put("output", "lm_head")
    for layer in range(config["num_hidden_layers"]):
        for name, source in IN_LAYER.items():
            put(f"blk.{layer}.{name}", f"model.layers.{layer}.{source}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: object, folder: Path, config: dict[str, int]) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    vocabulary = tokenizer["model"]["vocab"] | special
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    template = json.loads((folder / "tokenizer_config.json").read_text()).get("chat_template")
    writer.add_tokenizer_model("gpt2")  # type: ignore[attr-defined]
    writer.add_tokenizer_pre("gpt-2")  # type: ignore[attr-defined]
    writer.add_token_list(words)  # type: ignore[attr-defined]
    writer.add_token_types([3 if word in special else 1 for word in words])  # type: ignore[attr-defined]
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in tokenizer["model"]["merges"]]
    writer.add_token_merges(merges)  # type: ignore[attr-defined]
    writer.add_bos_token_id(config["bos_token_id"])  # type: ignore[attr-defined]
    writer.add_eos_token_id(config["eos_token_id"])  # type: ignore[attr-defined]
    if template:
        writer.add_chat_template(template)  # type: ignore[attr-defined]


def folder_of(source: Path, target: Path, kind: str) -> Path:
    """A folder with a GGUF file and the config.json that belongs to it."""
    target.mkdir()
    write_gguf(source, target / "model.gguf", kind)
    values = json.loads((source / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "gguf"}
    (target / "config.json").write_text(json.dumps(values))
    return target


def decoder_of(folder: Path) -> Decoder:
    config, cpu = load_config(folder), torch.device("cpu")
    return Decoder.load(folder, config, dtype=torch.float32, device=cpu, kernels=ReferenceKernels())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "tolerance"), [("F16", 1e-4), ("Q8_0", 1e-4), ("Q4_0", 1e-4), ("Q5_1", 0.05)])
def test_logits_are_those_of_transformers_on_the_same_file(kind: str, tolerance: float, tmp_path: Path) -> None:
    folder = folder_of(TINY, tmp_path / kind, kind)
    theirs = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32).eval()
    tokens = random_tokens((40,), theirs.config.vocab_size)
    with torch.inference_mode():
        expected = theirs(torch.tensor(tokens)).logits[0]
    decoder = decoder_of(folder)
    found = alone(decoder, tokens)[0]
    # Types without a product of ours become 8 bits, which costs a little.
    assert float((found - expected).norm() / expected.norm()) < tolerance
    assert decoder.num_parameters == sum(parameter.numel() for parameter in theirs.parameters())


def test_a_damaged_file_and_an_unknown_tensor_are_explained(saved: Callable, tmp_path: Path) -> None:
    folder = folder_of(saved("llama")[0], tmp_path / "copy", "Q8_0")
    file = folder / "model.gguf"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"blk.0.ffn_up", b"blk.0.ffn_xy"))
    with pytest.raises(CheckpointError, match=r"tensor blk\.0\.ffn_xy\.weight is none of"):
        decoder_of(folder)
    file.write_bytes(b"GGML" + whole[4:])
    with pytest.raises(CheckpointError, match="damaged"):
        decoder_of(folder)


def test_any_other_model_is_left_as_it_is(tmp_path: Path) -> None:
    assert with_folder(str(tmp_path)) == str(tmp_path)
    assert with_folder("missing.gguf") == "missing.gguf"


@pytest.mark.slow
def test_one_file_is_served_with_its_tokenizer_and_chat_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_gguf(TINY, tmp_path / "tiny.gguf", "Q8_0")
    question = [{"role": "user", "content": "What is 12 + 7?"}]
    with (
        LLM(tmp_path / "tiny.gguf", threads=1, kv_cache_gib=0.05) as llm,
        LLM(TINY, threads=1, kv_cache_gib=0.05) as own,
    ):
        assert llm.engine_description.model.endswith("/tiny")
        assert llm.chat(question)[0].outputs[0].text == own.chat(question)[0].outputs[0].text
    assert with_folder(str(tmp_path / "tiny.gguf")) == with_folder(str(tmp_path / "tiny.gguf"))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF, but no more")
    with pytest.raises(CheckpointError, match="can't be unpacked"):
        with_folder(str(tmp_path / "broken.gguf"))
