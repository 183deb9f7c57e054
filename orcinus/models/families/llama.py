"""Llama and the families that kept its shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from orcinus.models.families.family import Family, TensorNames, decoder_architectures

LLAMA_NAMES = TensorNames(
    prefixes=("model.", ""),
    embedding="embed_tokens",
    layer="layers.{}.",
    attention_norm="input_layernorm",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attention_output="self_attn.o_proj",
    mlp_norm="post_attention_layernorm",
    mlp_input=("mlp.gate_proj", "mlp.up_proj"),
    mlp_output="mlp.down_proj",
    final_norm="norm",
    ignored=("rotary_emb.inv_freq",),
)

LLAMA_DEFAULTS: Mapping[str, object] = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}

LLAMA = Family(
    model_type="llama",
    architectures=decoder_architectures("Llama"),
    names=LLAMA_NAMES,
    defaults={**LLAMA_DEFAULTS, "max_position_embeddings": 2048},
    qkv_bias="attention_bias",
    attention_output_bias="attention_bias",
    mlp_bias="mlp_bias",
)

MISTRAL = Family(
    model_type="mistral",
    architectures=decoder_architectures("Mistral"),
    names=LLAMA_NAMES,
    defaults={**LLAMA_DEFAULTS, "max_position_embeddings": 131072, "sliding_window": 4096},
    windows="all",
)

PHI3 = Family(
    model_type="phi3",
    architectures=decoder_architectures("Phi3"),
    names=replace(LLAMA_NAMES, qkv=("self_attn.qkv_proj",), mlp_input=("mlp.gate_up_proj",)),
    defaults={**LLAMA_DEFAULTS, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
    # Under the names `su` and `yarn` too its long contexts mean longrope.
    rope_types=("default",),
    partial_rotary=True,
    windows="all",
)

QWEN2 = Family(
    model_type="qwen2",
    architectures=decoder_architectures("Qwen2"),
    names=LLAMA_NAMES,
    defaults={**LLAMA_DEFAULTS, "max_position_embeddings": 32768, "use_sliding_window": False},
    qkv_bias=True,
    windows="from_max_window_layers",
)

QWEN3 = Family(
    model_type="qwen3",
    architectures=decoder_architectures("Qwen3"),
    names=replace(LLAMA_NAMES, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm"),
    defaults={
        **LLAMA_DEFAULTS,
        "max_position_embeddings": 32768,
        "head_dim": 128,
        "use_sliding_window": False,
    },
    qkv_bias="attention_bias",
    attention_output_bias="attention_bias",
    query_key_norm=True,
    windows="from_max_window_layers",
)
