"""Gemma: norms around each half, embeddings scaled up, windows in all but every n-th layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from orcinus.models.families.family import Family, Keys, decoder_architectures
from orcinus.models.families.llama import LLAMA_NAMES

_NAMES = replace(
    LLAMA_NAMES,
    attention_output_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_output_norm="post_feedforward_layernorm",
)

_KEYS = Keys(
    activation="hidden_activation",
    attention_scalar="query_pre_attn_scalar",
    logit_soft_cap="final_logit_softcapping",
)

_DEFAULTS: Mapping[str, object] = {
    "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}

GEMMA2 = Family(
    model_type="gemma2",
    architectures=decoder_architectures("Gemma2"),
    names=_NAMES,
    keys=replace(_KEYS, attention_soft_cap="attn_logit_softcapping"),
    defaults={
        **_DEFAULTS,
        "max_position_embeddings": 8192,
        "rope_theta": 10000.0,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window_pattern": 2,
    },
    only={"use_bidirectional_attention": False},
    residual="sandwich",
    norm="rms_offset",
    scaled_embedding=True,
    qkv_bias="attention_bias",
    attention_output_bias="attention_bias",
    windows="sliding_window_pattern",
)

GEMMA3 = Family(
    model_type="gemma3_text",
    architectures={
        "Gemma3ForCausalLM": "generate",
        "Gemma3TextModel": "embed",
        "Gemma3TextForSequenceClassification": "classify",
    },
    names=replace(_NAMES, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm"),
    keys=replace(_KEYS, local_rope_theta="rope_local_base_freq"),
    defaults={
        **_DEFAULTS,
        "max_position_embeddings": 131072,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "sliding_window_pattern": 6,
    },
    only={"use_bidirectional_attention": False, "attn_logit_softcapping": None},
    residual="sandwich",
    norm="rms_offset",
    scaled_embedding=True,
    qkv_bias="attention_bias",
    attention_output_bias="attention_bias",
    query_key_norm=True,
    windows="sliding_window_pattern",
)
