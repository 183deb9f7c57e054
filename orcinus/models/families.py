"""The families that Orcinus serves, one entry each: what differs between them, and nothing else.

An entry says which keys of config.json mean what, which mechanisms the model has, and what its tensors are called.
No other file knows a family's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

# A constant of the family, or the key of config.json that says.
Flag = bool | str


@dataclass(frozen=True, slots=True)
class TensorNames:
    """What a family calls its tensors, without `.weight` and `.bias`.

    Args:
        prefixes: what stands before every name but the head's; the first that fits the checkpoint counts.
        layer: before each layer's own names; `{}` is the layer's number.
        qkv: query, key and value projections, or one that holds all three in this order.
        mlp_input: gate and up projections, or the only one.
        ignored: ends of names that older files carry and nobody needs.
    """

    prefixes: tuple[str, ...]
    embedding: str
    layer: str
    input_norm: str
    qkv: tuple[str, ...]
    attention_output: str
    mlp_norm: str
    mlp_input: tuple[str, ...]
    mlp_output: str
    final_norm: str
    positions: str = ""
    query_norm: str = ""
    key_norm: str = ""
    head: str = "lm_head"
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Keys:
    """What a family calls the numbers in config.json."""

    hidden_size: str = "hidden_size"
    num_layers: str = "num_hidden_layers"
    num_heads: str = "num_attention_heads"
    num_kv_heads: str = "num_key_value_heads"
    head_dim: str = "head_dim"
    intermediate_size: str = "intermediate_size"
    max_positions: str = "max_position_embeddings"
    norm_eps: str = "rms_norm_eps"
    activation: str = "hidden_act"


@dataclass(frozen=True, slots=True)
class Family:
    """One entry of the table.

    Args:
        defaults: values of keys that a config.json may leave out, by the family's own key.
        only: options of which one value is served; another is an error, not a wrong answer.
        transposed: weights are stored [in, out].
        windows: sliding windows may be switched on by `use_sliding_window`.
        causal: a row sees earlier keys only; else attention is bidirectional.
    """

    architecture: str
    model_type: str
    names: TensorNames
    keys: Keys = Keys()
    defaults: Mapping[str, object] = field(default_factory=dict)
    only: Mapping[str, object] = field(default_factory=dict)
    norm: Literal["rms", "layer"] = "rms"
    positions: Literal["rotary", "learned"] = "rotary"
    mlp: Literal["dense", "moe"] = "dense"
    gated_mlp: bool = True
    qkv_bias: Flag = False
    attention_output_bias: Flag = False
    mlp_bias: Flag = False
    query_key_norm: bool = False
    transposed: bool = False
    windows: bool = False
    causal: bool = True


_LLAMA_NAMES = TensorNames(
    prefixes=("model.",),
    embedding="embed_tokens",
    layer="layers.{}.",
    input_norm="input_layernorm",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attention_output="self_attn.o_proj",
    mlp_norm="post_attention_layernorm",
    mlp_input=("mlp.gate_proj", "mlp.up_proj"),
    mlp_output="mlp.down_proj",
    final_norm="norm",
    ignored=("rotary_emb.inv_freq",),
)

_LLAMA_DEFAULTS: Mapping[str, object] = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}

LLAMA = Family(
    architecture="LlamaForCausalLM",
    model_type="llama",
    names=_LLAMA_NAMES,
    defaults={**_LLAMA_DEFAULTS, "max_position_embeddings": 2048},
    qkv_bias="attention_bias",
    attention_output_bias="attention_bias",
    mlp_bias="mlp_bias",
)

QWEN2 = Family(
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    names=_LLAMA_NAMES,
    defaults={**_LLAMA_DEFAULTS, "max_position_embeddings": 32768},
    qkv_bias=True,
    windows=True,
)

QWEN3 = Family(
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    names=replace(_LLAMA_NAMES, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm"),
    defaults={**_LLAMA_DEFAULTS, "max_position_embeddings": 32768, "head_dim": 128},
    qkv_bias="attention_bias",
    attention_output_bias="attention_bias",
    query_key_norm=True,
    windows=True,
)

GPT2 = Family(
    architecture="GPT2LMHeadModel",
    model_type="gpt2",
    names=TensorNames(
        prefixes=("transformer.", ""),
        embedding="wte",
        positions="wpe",
        layer="h.{}.",
        input_norm="ln_1",
        qkv=("attn.c_attn",),
        attention_output="attn.c_proj",
        mlp_norm="ln_2",
        mlp_input=("mlp.c_fc",),
        mlp_output="mlp.c_proj",
        final_norm="ln_f",
        ignored=("attn.bias", "attn.masked_bias"),
    ),
    keys=Keys(
        hidden_size="n_embd",
        num_layers="n_layer",
        num_heads="n_head",
        intermediate_size="n_inner",
        max_positions="n_positions",
        norm_eps="layer_norm_epsilon",
        activation="activation_function",
    ),
    defaults={
        "n_positions": 1024,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "tie_word_embeddings": True,
    },
    only={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    norm="layer",
    positions="learned",
    gated_mlp=False,
    qkv_bias=True,
    attention_output_bias=True,
    mlp_bias=True,
    transposed=True,
)

FAMILIES: tuple[Family, ...] = (LLAMA, QWEN2, QWEN3, GPT2)
