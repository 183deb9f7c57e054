"""What an entry of the table of families says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from orcinus.models.families.experts import Experts

# A constant of the family, or the key of config.json that says.
Flag = bool | str

# What an architecture's name promises: a vocabulary head, states only, or scores of classes.
Use = Literal["generate", "embed", "classify"]

# How a layer's two halves meet its norms and what came in; layers/residual.py has one class for each.
Residual = Literal["pre_norm", "post_norm", "sandwich", "parallel"]

# `rms_offset` stores weight - 1 (Gemma).
NormKind = Literal["rms", "rms_offset", "layer"]

# Which layers have the window when `layer_types` doesn't say: all, those from `max_window_layers` on, or all but every
# `sliding_window_pattern`-th.
WindowRule = Literal["none", "all", "from_max_window_layers", "sliding_window_pattern"]

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")


@dataclass(frozen=True, slots=True)
class Switch:
    """A layer's form where a key of config.json decides it."""

    key: str
    on: Residual
    off: Residual


@dataclass(frozen=True, slots=True)
class TensorNames:
    """What a family calls its tensors, without `.weight` and `.bias`; empty where it has none.

    Args:
        prefixes: what stands before every name but the heads'; the first that fits the checkpoint counts.
        layer: before each layer's own names; `{}` is the layer's number.
        qkv: query, key and value projections, or one that holds all three in this order.
        mlp_input: gate and up projections, or the only one, which may hold both in this order.
        attention_norm: before attention, or after it in a layer that norms afterwards; likewise mlp_norm.
        attention_output_norm: the second one of a sandwich; likewise mlp_output_norm.
        embedding_projection, state_projection: from and to the width of a narrower embedding.
        pooler: the classifier's first product, under the prefix.
        classifier: its last, without a prefix, as `head` is.
        older: ends of names that files also have, older ones mostly, and what they are called here.
        ignored: ends of names that some files carry and nobody needs.
    """

    prefixes: tuple[str, ...]
    embedding: str
    layer: str
    attention_norm: str
    qkv: tuple[str, ...]
    attention_output: str
    mlp_norm: str
    mlp_input: tuple[str, ...]
    mlp_output: str
    final_norm: str = ""
    positions: str = ""
    segments: str = ""
    embedding_norm: str = ""
    embedding_projection: str = ""
    state_projection: str = ""
    query_norm: str = ""
    key_norm: str = ""
    attention_output_norm: str = ""
    mlp_output_norm: str = ""
    head: str = "lm_head"
    pooler: str = ""
    classifier: str = "score"
    older: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Keys:
    """What a family calls the numbers in config.json; empty where it has none.

    Args:
        local_rope_theta: of the windowed layers, where they have their own.
        rotary_share: the part of a head that is rotated.
        attention_scalar: attention scores are divided by its square root; empty means by the head's.
        num_segments: rows of the segments' table.
    """

    hidden_size: str = "hidden_size"
    embedding_size: str = ""
    num_layers: str = "num_hidden_layers"
    num_heads: str = "num_attention_heads"
    num_kv_heads: str = "num_key_value_heads"
    head_dim: str = "head_dim"
    intermediate_size: str = "intermediate_size"
    max_positions: str = "max_position_embeddings"
    norm_eps: str = "rms_norm_eps"
    activation: str = "hidden_act"
    rope_theta: str = "rope_theta"
    local_rope_theta: str = ""
    rotary_share: str = "partial_rotary_factor"
    attention_scalar: str = ""
    num_segments: str = ""
    attention_soft_cap: str = ""
    logit_soft_cap: str = ""


@dataclass(frozen=True, slots=True)
class Family:
    """One entry of the table: what differs between families, and nothing else.

    Args:
        architectures: as config.json names them, and what each is for.
        defaults: values of keys that a config.json may leave out, by the family's own key.
        only: options of which one value is served; another is an error, not a wrong answer.
        partial_rotary: a part of each head may be rotated and the rest left alone.
        position_offset: learned positions begin at this row of their table.
        scaled_embedding: embeddings are multiplied by the root of their width.
        experts: what stands in place of the MLP, in some layers or all.
        norm_across_heads: queries and keys are normed over the whole projection, not head by head.
        transposed: weights are stored [in, out].
        interleaved_qkv: the fused projection holds query, key and value head by head.
        causal: a row sees earlier keys only; else attention is bidirectional.
    """

    model_type: str
    architectures: Mapping[str, Use]
    names: TensorNames
    keys: Keys = Keys()
    defaults: Mapping[str, object] = field(default_factory=dict)
    only: Mapping[str, object] = field(default_factory=dict)
    residual: Residual | Switch = "pre_norm"
    norm: NormKind = "rms"
    positions: Literal["rotary", "learned"] = "rotary"
    rope_types: tuple[str, ...] = ROPE_TYPES
    partial_rotary: bool = False
    position_offset: int = 0
    scaled_embedding: bool = False
    experts: Experts | None = None
    gated_mlp: bool = True
    qkv_bias: Flag = False
    attention_output_bias: Flag = False
    mlp_bias: Flag = False
    classifier_bias: bool = False
    query_key_norm: bool = False
    norm_across_heads: bool = False
    transposed: bool = False
    interleaved_qkv: bool = False
    windows: WindowRule = "none"
    causal: bool = True


def decoder_architectures(name: str) -> Mapping[str, Use]:
    """The usual three of a decoder family."""
    return {f"{name}ForCausalLM": "generate", f"{name}Model": "embed", f"{name}ForSequenceClassification": "classify"}
