"""Small random checkpoints written by Transformers, scaled so that every mechanism shows in the logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1003,
    "max_position_embeddings": 256,
    # Large, so that it matters.
    "rms_norm_eps": 0.02,
}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
WINDOWED = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}


def _llama(**options: object) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**{**SMALL, **options}))


def _gpt2(**options: object) -> PreTrainedModel:
    sizes = {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 1003, "n_positions": 256}
    return GPT2LMHeadModel(GPT2Config(**{**sizes, "layer_norm_epsilon": 0.02, **options}))


CASES: Mapping[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: _llama(rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
    "llama-llama3": lambda: _llama(rope_parameters=LLAMA3_SCALING, tie_word_embeddings=True),
    "llama-linear": lambda: _llama(rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}),
    "llama-odd": lambda: _llama(
        hidden_size=560,
        intermediate_size=301,
        num_attention_heads=7,
        num_key_value_heads=1,
        attention_bias=True,
        mlp_bias=True,
    ),
    "llama-head-dim": lambda: _llama(head_dim=80, num_attention_heads=7, num_key_value_heads=7, hidden_size=112),
    "llama-relu": lambda: _llama(hidden_act="relu", num_key_value_heads=4),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, tie_word_embeddings=True)),
    "qwen2-windowed": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, **WINDOWED)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=48)),
    "qwen3-bias": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=16, attention_bias=True)),
    "gpt2": _gpt2,
    "gpt2-untied": lambda: _gpt2(tie_word_embeddings=False, n_inner=100, activation_function="gelu"),
}


def make_model(case: str) -> PreTrainedModel:
    """The model of a case, float32, with weights drawn from a fixed seed."""
    torch.manual_seed(0)
    model = CASES[case]().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            _scale(name, weight)
    model.tie_weights()
    return model


def _scale(name: str, weight: torch.Tensor) -> None:
    """Default initialisation gives near-uniform attention, unit norms and zero biases, which hide mistakes."""
    if name.endswith("bias"):
        weight.normal_(0, 0.3)
    elif weight.dim() == 1:
        weight.normal_(1, 0.3)
    elif any(part in name for part in ("embed_tokens", "wte", "wpe")):
        weight.normal_(0, 0.5)
    else:
        peaked = 2.0 if any(part in name for part in ("q_proj", "k_proj", "c_attn")) else 1.0
        inputs = weight.shape[0] if ".c_" in name else weight.shape[1]
        weight.normal_(0, peaked * inputs**-0.5)


def save(case: str, folder: Path, **options: object) -> PreTrainedModel:
    """Write a case's checkpoint to `folder`."""
    model = make_model(case)
    model.save_pretrained(folder, **options)
    return model
