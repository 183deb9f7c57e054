"""For each mechanism a way to get it wrong: parity must fail, or it wouldn't see the mechanism."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from orcinus.models.config import ModelConfig


def drop(config: ModelConfig, *ends: str, **changes: object) -> dict[str, object]:
    """A family altered so that it has no use for the tensors whose names end so."""
    names = replace(config.family.names, ignored=config.family.names.ignored + ends)
    return {"family": replace(config.family, names=names, **changes)}


def family(config: ModelConfig, **changes: object) -> dict[str, object]:
    return {"family": replace(config.family, **changes)}


def rotary(config: ModelConfig, **changes: object) -> dict[str, object]:
    return {"rotaries": tuple(replace(rotary, **changes) for rotary in config.rotaries)}


def scaling(config: ModelConfig, **changes: object) -> dict[str, object]:
    before = config.rotaries[0]
    assert before is not None
    return rotary(config, scaling=replace(before.scaling, **changes))


def windowed_rotary(config: ModelConfig, **changes: object) -> dict[str, object]:
    """Of the layers with a window only."""
    pairs = zip(config.rotaries, config.windows, strict=True)
    return {"rotaries": tuple(replace(r, **changes) if window else r for r, window in pairs)}


def open_rotary(config: ModelConfig, **changes: object) -> dict[str, object]:
    """Of the layers without."""
    pairs = zip(config.rotaries, config.windows, strict=True)
    return {"rotaries": tuple(r if window else replace(r, **changes) for r, window in pairs)}


def renamed(config: ModelConfig, **names: object) -> dict[str, object]:
    return {"family": replace(config.family, names=replace(config.family.names, **names))}


Alter = Callable[[ModelConfig], dict[str, object]]
ALTERATIONS: dict[str, tuple[str, Alter]] = {
    "rope theta": ("llama", lambda c: rotary(c, theta=510.0)),
    "rope dim": ("llama", lambda c: rotary(c, dim=8)),
    "linear scaling": ("llama-linear", lambda c: rotary(c, scaling=None)),
    "llama3 scaling": ("llama-llama3", lambda c: rotary(c, scaling=None)),
    "llama3 factor": ("llama-llama3", lambda c: scaling(c, factor=7.5)),
    "llama3 low frequency": ("llama-llama3", lambda c: scaling(c, low_freq_factor=1.2)),
    "llama3 high frequency": ("llama-llama3", lambda c: scaling(c, high_freq_factor=3.8)),
    "llama3 original positions": ("llama-llama3", lambda c: scaling(c, original_positions=60)),
    "norm eps": ("llama", lambda c: {"norm_eps": 0.019}),
    "norm eps of a layer norm": ("gpt2", lambda c: {"norm_eps": 0.019}),
    "kind of norm": ("gpt2", lambda c: drop(c, "ln_1.bias", "ln_2.bias", "ln_f.bias", norm="rms")),
    "attention scale": ("llama", lambda c: {"attention_scale": c.attention_scale * 1.01}),
    "soft cap": ("llama", lambda c: {"attention_soft_cap": 20.0}),
    "causal": ("qwen2", lambda c: {"family": replace(c.family, causal=False)}),
    "window": ("qwen2-windowed", lambda c: {"windows": (None, 10, 10)}),
    "windowed layers": ("qwen2-windowed", lambda c: {"windows": (None, None, 9)}),
    "tied": ("llama", lambda c: {"tie_embeddings": True}),
    "tied gpt2": ("gpt2-untied", lambda c: {"tie_embeddings": True}),
    "activation silu": ("llama", lambda c: {"activation": "gelu"}),
    "activation relu": ("llama-relu", lambda c: {"activation": "silu"}),
    "activation gelu_new": ("gpt2", lambda c: {"activation": "gelu"}),
    "activation gelu": ("gpt2-untied", lambda c: {"activation": "gelu_tanh"}),
    "qkv bias": ("qwen2", lambda c: {"qkv_bias": False, **drop(c, "proj.bias")}),
    "qkv bias of qwen3": ("qwen3-bias", lambda c: {"qkv_bias": False, **drop(c, "proj.bias")}),
    "qkv bias of gpt2": ("gpt2", lambda c: {"qkv_bias": False, **drop(c, "c_attn.bias")}),
    "output bias": ("llama-odd", lambda c: {"attention_output_bias": False, **drop(c, "o_proj.bias")}),
    "output bias of qwen3": ("qwen3-bias", lambda c: {"attention_output_bias": False, **drop(c, "o_proj.bias")}),
    "output bias of gpt2": ("gpt2", lambda c: {"attention_output_bias": False, **drop(c, "attn.c_proj.bias")}),
    "mlp bias": ("llama-odd", lambda c: {"mlp_bias": False, **drop(c, "_proj.bias")}),
    "mlp bias of gpt2": ("gpt2", lambda c: {"mlp_bias": False, **drop(c, "mlp.c_proj.bias", "c_fc.bias")}),
    "query and key norm": ("qwen3", lambda c: drop(c, "q_norm.weight", "k_norm.weight", query_key_norm=False)),
    "query norm's name": ("qwen3", lambda c: renamed(c, query_norm="self_attn.k_norm", key_norm="self_attn.q_norm")),
    "learned positions": ("gpt2", lambda c: renamed(c, positions="", ignored=("wpe.weight",))),
    "order of gate and up": ("llama", lambda c: renamed(c, mlp_input=c.family.names.mlp_input[::-1])),
    "order of norms": (
        "llama",
        lambda c: renamed(c, attention_norm=c.family.names.mlp_norm, mlp_norm=c.family.names.attention_norm),
    ),
    "yarn scaling": ("llama-yarn", lambda c: rotary(c, scaling=None)),
    "yarn factor": ("llama-yarn", lambda c: scaling(c, factor=3.9)),
    "yarn attention factor": ("llama-yarn", lambda c: scaling(c, attention_factor=1.1)),
    "yarn fast dimensions": ("llama-yarn", lambda c: scaling(c, beta_fast=2.0)),
    "yarn slow dimensions": ("llama-yarn", lambda c: scaling(c, beta_slow=3.0)),
    "yarn whole dimensions": ("llama-yarn", lambda c: scaling(c, truncate=False)),
    "yarn original positions": ("llama-yarn", lambda c: scaling(c, original_positions=24)),
    "window of mistral": ("mistral", lambda c: {"windows": (10, 10, 10)}),
    "windowed layers of mistral": ("mistral", lambda c: {"windows": (9, 9, None)}),
    "no window of mistral": ("mistral-open", lambda c: {"windows": (None, None, 149)}),
    "window of phi3": ("phi3", lambda c: {"windows": (12, 12, 12)}),
    "partial rotation of phi3": ("phi3", lambda c: rotary(c, dim=16)),
    "partial rotation of gpt_neox": ("gpt_neox", lambda c: rotary(c, dim=4)),
    "rope theta of gpt_neox": ("gpt_neox", lambda c: rotary(c, theta=510.0)),
    "interleaved heads": ("gpt_neox", lambda c: family(c, interleaved_qkv=False)),
    "parallel residual": ("gpt_neox", lambda c: {"residual": "pre_norm"}),
    "sequential residual": ("gpt_neox-sequential", lambda c: {"residual": "parallel"}),
    "qkv bias of gpt_neox": ("gpt_neox", lambda c: {"qkv_bias": False, **drop(c, "query_key_value.bias")}),
    "output bias of gpt_neox": (
        "gpt_neox",
        lambda c: {"attention_output_bias": False, **drop(c, "attention.dense.bias")},
    ),
    "mlp bias of gpt_neox": ("gpt_neox", lambda c: {"mlp_bias": False, **drop(c, "4h.bias", "to_h.bias")}),
    "activation gelu_fast": ("gpt_neox-sequential", lambda c: {"activation": "gelu"}),
    "norm eps of gpt_neox": ("gpt_neox", lambda c: {"norm_eps": 0.019}),
    "position offset": ("opt", lambda c: {"max_positions": 257, **family(c, position_offset=1)}),
    "pre-norm": (
        "opt",
        lambda c: {"residual": "post_norm", **drop(c, "r.final_layer_norm.weight", "r.final_layer_norm.bias")},
    ),
    "post-norm": ("opt-post-norm", lambda c: {"residual": "pre_norm", **renamed(c, final_norm="")}),
    "activation of opt": ("opt", lambda c: {"activation": "silu"}),
    "activation of bare opt": ("opt-bare", lambda c: {"activation": "gelu_tanh"}),
    "qkv bias of opt": ("opt", lambda c: {"qkv_bias": False, **drop(c, "q_proj.bias", "k_proj.bias", "v_proj.bias")}),
    "output bias of opt": ("opt", lambda c: {"attention_output_bias": False, **drop(c, "out_proj.bias")}),
    "mlp bias of opt": ("opt", lambda c: {"mlp_bias": False, **drop(c, "fc1.bias", "fc2.bias")}),
    "offset of norms": ("gemma2", lambda c: family(c, norm="rms")),
    "offset of norms of gemma3": ("gemma3", lambda c: family(c, norm="rms")),
    "embedding scale": ("gemma2", lambda c: family(c, scaled_embedding=False)),
    "embedding scale of gemma3": ("gemma3", lambda c: family(c, scaled_embedding=False)),
    "attention soft cap of gemma2": ("gemma2", lambda c: {"attention_soft_cap": 4.1}),
    "no attention soft cap": ("gemma2", lambda c: {"attention_soft_cap": None}),
    "logit soft cap": ("gemma2", lambda c: {"logit_soft_cap": 3.1}),
    "no logit soft cap": ("gemma3-capped", lambda c: {"logit_soft_cap": None}),
    "attention scalar": ("gemma2", lambda c: {"attention_scale": 24**-0.5}),
    "attention scalar of gemma3": ("gemma3", lambda c: {"attention_scale": 24**-0.5}),
    "window of gemma2": ("gemma2", lambda c: {"windows": (10, None, 10)}),
    "windowed layers of gemma2": ("gemma2", lambda c: {"windows": (None, 9, None)}),
    "window of gemma3": ("gemma3", lambda c: {"windows": (10, 10, None)}),
    "windowed layers of gemma3": ("gemma3", lambda c: {"windows": (9, None, None)}),
    "sandwich": (
        "gemma2",
        lambda c: {
            "residual": "pre_norm",
            **drop(c, "post_attention_layernorm.weight", "post_feedforward_layernorm.weight"),
        },
    ),
    "norms of a sandwich": (
        "gemma2",
        lambda c: renamed(c, attention_output_norm=c.family.names.mlp_norm, mlp_norm="post_attention_layernorm"),
    ),
    "qkv bias of gemma2": (
        "gemma2-uncapped",
        lambda c: {"qkv_bias": False, **drop(c, "q_proj.bias", "k_proj.bias", "v_proj.bias")},
    ),
    "output bias of gemma2": (
        "gemma2-uncapped",
        lambda c: {"attention_output_bias": False, **drop(c, "o_proj.bias")},
    ),
    "untied gemma2": ("gemma2-uncapped", lambda c: {"tie_embeddings": True}),
    "local rope theta": ("gemma3", lambda c: windowed_rotary(c, theta=510.0)),
    "global rope theta": ("gemma3", lambda c: open_rotary(c, theta=5100.0)),
    "global rope factor": ("gemma3", lambda c: open_rotary(c, scaling=None)),
    "tables of layers": ("gemma3", lambda c: {"rotaries": c.rotaries[::-1]}),
    "query and key norm of gemma3": (
        "gemma3",
        lambda c: drop(c, "q_norm.weight", "k_norm.weight", query_key_norm=False),
    ),
}
