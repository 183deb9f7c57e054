"""The forward pass of training: Llama over packed rows, compiled, on the parameters of a `transformers` model.

Weights become bfloat16 once a step, q, k and v (gate and up) are one product, and the compiler fuses norms, rotation
and softmax, which cost more than the matrix products: 9,600 tokens/s on two cores where the same code uncompiled and
with the fused attention made 5,500.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import LlamaConfig

Weights = Mapping[str, torch.Tensor]
IGNORED = -100  # the label that cross_entropy leaves out


@dataclass(frozen=True)
class Batch:
    """Packed rows, all `[rows, row_tokens]`; positions restart in each document, labels are the next tokens."""

    ids: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor

    @property
    def num_learnt(self) -> int:
        """Tokens with a label."""
        return int((self.labels != IGNORED).sum())


def _rotated(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin


def _attention(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """`[rows, heads, n, head_dim]`; by hand, as the fused CPU kernel's backward takes twice as long."""
    groups = queries.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
    scores = queries * queries.shape[-1] ** -0.5 @ keys.transpose(-1, -2)
    return scores.float().masked_fill(hidden, -torch.inf).softmax(dim=-1).to(values.dtype) @ values


def _rotation(positions: torch.Tensor, config: LlamaConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, `[rows, 1, n, head_dim]`."""
    theta = config.rope_parameters["rope_theta"]
    frequencies = theta ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
    angles = (positions[:, None, :, None] * frequencies).repeat(1, 1, 1, 2)
    return angles.cos().bfloat16(), angles.sin().bfloat16()


def _hidden_keys(positions: torch.Tensor) -> torch.Tensor:
    """Which keys a query may not see, `[rows, 1, n, n]`: those after it and those of other documents."""
    documents = (positions == 0).cumsum(dim=1)
    other = documents[:, :, None] != documents[:, None, :]
    return (other | torch.ones_like(other[0]).triu(1)).unsqueeze(1)


def final_states(
    weights: Weights, batch_ids: torch.Tensor, positions: torch.Tensor, config: LlamaConfig
) -> torch.Tensor:
    """States before the vocabulary, `[rows, n, hidden]`, bfloat16.

    Args:
        weights: float32 parameters by their names in `LlamaForCausalLM`.
        batch_ids: token ids, `[rows, n]`.
        positions: from 0 in each document, `[rows, n]`.
        config: of the model.
    """
    half = {name: weight.bfloat16() for name, weight in weights.items()}
    (rows, n), heads, kv_heads = batch_ids.shape, config.num_attention_heads, config.num_key_value_heads
    cos, sin = _rotation(positions, config)
    hidden_keys = _hidden_keys(positions)
    states = functional.embedding(batch_ids, half["model.embed_tokens.weight"])
    for index in range(config.num_hidden_layers):
        layer = {name: half[f"model.layers.{index}.{name}.weight"] for name in _LAYER_WEIGHTS}
        normed = functional.rms_norm(states, states.shape[-1:], layer["input_layernorm"], config.rms_norm_eps)
        fused = torch.cat([layer[f"self_attn.{part}_proj"] for part in "qkv"])
        qkv = functional.linear(normed, fused).view(rows, n, -1, config.head_dim).transpose(1, 2)
        queries, keys, values = qkv.split([heads, kv_heads, kv_heads], dim=1)
        mixed = _attention(_rotated(queries, cos, sin), _rotated(keys, cos, sin), values, hidden_keys)
        states = states + functional.linear(mixed.transpose(1, 2).flatten(2), layer["self_attn.o_proj"])
        normed = functional.rms_norm(states, states.shape[-1:], layer["post_attention_layernorm"], config.rms_norm_eps)
        gate, up = functional.linear(normed, torch.cat((layer["mlp.gate_proj"], layer["mlp.up_proj"]))).chunk(2, dim=-1)
        states = states + functional.linear(functional.silu(gate) * up, layer["mlp.down_proj"])
    return functional.rms_norm(states, states.shape[-1:], half["model.norm.weight"], config.rms_norm_eps)


_LAYER_WEIGHTS = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def _answer_loss(states: torch.Tensor, embedding: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed cross entropy of `[learnt, hidden]` against `[learnt]`."""
    logits = functional.linear(states, embedding.bfloat16()).float()
    return functional.cross_entropy(logits, labels, reduction="sum")


def compiled_loss(config: LlamaConfig) -> Callable[[Weights, Batch], torch.Tensor]:
    """The summed cross entropy over a batch's labels as a function of the weights; compiles at its first calls."""
    compiled_states = torch.compile(final_states, dynamic=False)
    compiled_answer_loss = torch.compile(_answer_loss, dynamic=True)

    def loss(weights: Weights, batch: Batch) -> torch.Tensor:
        states = compiled_states(weights, batch.ids, batch.positions, config)
        learnt = batch.labels != IGNORED
        # Only the answers' states go through the vocabulary.
        return compiled_answer_loss(states[learnt], weights["model.embed_tokens.weight"], batch.labels[learnt])

    return loss
