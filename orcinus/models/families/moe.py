"""Families with a mixture of experts in place of the dense MLP."""

from __future__ import annotations

from dataclasses import replace

from orcinus.models.families.experts import Experts
from orcinus.models.families.family import Family, decoder_architectures
from orcinus.models.families.llama import LLAMA_DEFAULTS, LLAMA_NAMES

_NORMED_NAMES = replace(LLAMA_NAMES, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")

MIXTRAL = Family(
    model_type="mixtral",
    architectures=decoder_architectures("Mixtral"),
    names=LLAMA_NAMES,
    defaults={
        **LLAMA_DEFAULTS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "max_position_embeddings": 131072,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    experts=Experts(
        gate="block_sparse_moe.gate",
        input=("block_sparse_moe.experts.{}.w1", "block_sparse_moe.experts.{}.w3"),
        output="block_sparse_moe.experts.{}.w2",
        normalise_weights=True,
    ),
    windows="all",
)

QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architectures=decoder_architectures("Qwen3Moe"),
    names=_NORMED_NAMES,
    defaults={
        **LLAMA_DEFAULTS,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "num_local_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
    },
    # With windows it would be all layers, whatever max_window_layers says; no published model has them.
    only={"use_sliding_window": False},
    experts=Experts(
        intermediate_size="moe_intermediate_size", dense_layers="mlp_only_layers", sparse_step="decoder_sparse_step"
    ),
    qkv_bias="attention_bias",
    attention_output_bias="attention_bias",
    query_key_norm=True,
)

OLMOE = Family(
    model_type="olmoe",
    architectures={"OlmoeForCausalLM": "generate", "OlmoeModel": "embed"},
    names=_NORMED_NAMES,
    defaults={
        **LLAMA_DEFAULTS,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "num_local_experts": 64,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
    },
    only={"clip_qkv": None},
    experts=Experts(),
    qkv_bias="attention_bias",
    attention_output_bias="attention_bias",
    query_key_norm=True,
    norm_across_heads=True,
)
