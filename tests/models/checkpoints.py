"""Small random checkpoints written by Transformers, scaled so that every mechanism shows in the logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
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
YARN_SCALING = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "beta_fast": 8.0,
    "original_max_position_embeddings": 64,
}
# Not in the order of the alphabet, and more than ten, so that ids as text have another order than as numbers.
LABELS = {number: f"label {13 * number % 12}" for number in range(12)}
WINDOWED = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}


def _llama(**options: object) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**{**SMALL, **options}))


def _gpt2(**options: object) -> PreTrainedModel:
    sizes = {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 1003, "n_positions": 256}
    return GPT2LMHeadModel(GPT2Config(**{**sizes, "layer_norm_epsilon": 0.02, **options}))


def _opt(**options: object) -> PreTrainedModel:
    sizes = {key: value for key, value in SMALL.items() if key not in ("intermediate_size", "num_key_value_heads")}
    return OPTForCausalLM(OPTConfig(**{**sizes, "ffn_dim": 160, **options}))


def _neox(**options: object) -> PreTrainedModel:
    sizes = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
    rope = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**{**sizes, "layer_norm_eps": 0.02, "rope_parameters": rope, **options}))


def _phi3(**options: object) -> PreTrainedModel:
    rope = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
    ends = {"pad_token_id": 0, "eos_token_id": 1}
    return Phi3ForCausalLM(Phi3Config(**{**SMALL, **ends, "rope_parameters": rope, "sliding_window": 11, **options}))


def _gemma2(**options: object) -> PreTrainedModel:
    caps = {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 3.0}
    sizes = {"head_dim": 24, "query_pre_attn_scalar": 10, "sliding_window": 9}
    return Gemma2ForCausalLM(Gemma2Config(**{**SMALL, **sizes, **caps, **options}))


def _gemma3(**options: object) -> PreTrainedModel:
    rope = {
        "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 3.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    }
    sizes = {"head_dim": 24, "query_pre_attn_scalar": 20, "sliding_window": 9, "sliding_window_pattern": 3}
    return Gemma3ForCausalLM(Gemma3TextConfig(**{**SMALL, **sizes, "rope_parameters": rope, **options}))


def _sibling(case: str, kind: type[AutoModel]) -> PreTrainedModel:
    """Another head's model of the same shape."""
    config = CASES[case]().config
    config.id2label = LABELS
    config.pad_token_id = None
    return kind.from_config(config)


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
    "llama-yarn": lambda: _llama(rope_parameters=YARN_SCALING),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=9)),
    "mistral-open": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=None)),
    "phi3": _phi3,
    "opt": _opt,
    "opt-post-norm": lambda: _opt(do_layer_norm_before=False, word_embed_proj_dim=32),
    "opt-bare": lambda: _opt(enable_bias=False, activation_function="gelu", word_embed_proj_dim=96),
    "gpt_neox": _neox,
    "gpt_neox-sequential": lambda: _neox(
        use_parallel_residual=False, attention_bias=False, hidden_act="gelu_fast", tie_word_embeddings=True
    ),
    "gemma2": _gemma2,
    "gemma2-uncapped": lambda: _gemma2(
        attn_logit_softcapping=None, final_logit_softcapping=None, attention_bias=True, tie_word_embeddings=False
    ),
    "gemma3": _gemma3,
    "gemma3-capped": lambda: _gemma3(final_logit_softcapping=3.0, layer_types=["full_attention"] * 3),
    "gpt2": _gpt2,
    "gpt2-untied": lambda: _gpt2(tie_word_embeddings=False, n_inner=100, activation_function="gelu"),
}


def _bert(kind: type[PreTrainedModel], **options: object) -> PreTrainedModel:
    sizes = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
    return kind(BertConfig(**{**sizes, "layer_norm_eps": 0.02, **options}))


# What their names say, but can't be compared logit by logit.
OTHERS: Mapping[str, Callable[[], PreTrainedModel]] = {
    "llama-dynamic": lambda: _llama(
        rope_parameters={"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0}, max_position_embeddings=64
    ),
    "bert": lambda: _bert(BertModel),
    "bert-masked": lambda: _bert(BertForMaskedLM, hidden_act="gelu_new"),
    "bert-pretraining": lambda: _bert(BertForPreTraining, type_vocab_size=1),
    "bert-classifier": lambda: _bert(BertForSequenceClassification, id2label=LABELS),
    **{f"{case}-body": partial(_sibling, case, AutoModel) for case in CASES},
    **{f"{case}-classifier": partial(_sibling, case, AutoModelForSequenceClassification) for case in CASES},
}


def make_model(case: str) -> PreTrainedModel:
    """The model of a case, float32, with weights drawn from a fixed seed."""
    torch.manual_seed(0)
    return scaled((CASES | OTHERS)[case]())


def scaled(model: PreTrainedModel) -> PreTrainedModel:
    """`model` with weights in which every mechanism shows.

    Default initialisation gives near-uniform attention, unit norms and zero biases, which hide mistakes.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            _scale(name, weight, norm_centre=0.0 if "Gemma" in type(model).__name__ else 1.0)
    model.tie_weights()
    return model.eval()


_TABLES = ("embed", "wte", "wpe")
_PEAKED = ("q_proj", "k_proj", "c_attn", "qkv", "query", "key")


def _scale(name: str, weight: torch.Tensor, norm_centre: float) -> None:
    if name.endswith("bias"):
        weight.normal_(0, 0.3)
    elif weight.dim() == 1:
        weight.normal_(norm_centre, 0.3)
    elif any(part in name for part in _TABLES):
        weight.normal_(0, 0.5)
    else:
        peaked = 2.0 if any(part in name for part in _PEAKED) else 1.0
        inputs = weight.shape[0] if ".c_" in name else weight.shape[1]
        weight.normal_(0, peaked * inputs**-0.5)


def save(case: str, folder: Path, **options: object) -> PreTrainedModel:
    """Write a case's checkpoint to `folder`."""
    model = make_model(case)
    model.save_pretrained(folder, **options)
    return model
