"""Like checkpoints.py, with a mixture of experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from checkpoints import SMALL
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)


def _mixtral(**options: object) -> PreTrainedModel:
    return MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=5, eos_token_id=None, **options))


def _qwen3(**options: object) -> PreTrainedModel:
    sizes = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 72}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SMALL, **sizes, **options))


def _olmoe(**options: object) -> PreTrainedModel:
    sizes = {"num_experts": 6, "num_experts_per_tok": 2, "pad_token_id": None, "eos_token_id": None}
    return OlmoeForCausalLM(OlmoeConfig(**{**SMALL, **sizes, **options}))


CASES: Mapping[str, Callable[[], PreTrainedModel]] = {
    "mixtral": lambda: _mixtral(sliding_window=9),
    "mixtral-full": lambda: _mixtral(head_dim=24, num_experts_per_tok=1),
    "qwen3-moe": lambda: _qwen3(norm_topk_prob=True, head_dim=24, mlp_only_layers=[1]),
    "qwen3-moe-step": lambda: _qwen3(attention_bias=True, decoder_sparse_step=2),
    "olmoe": _olmoe,
    "olmoe-normalised": lambda: _olmoe(norm_topk_prob=True, num_key_value_heads=4),
}


def make_model(case: str) -> PreTrainedModel:
    """The model of a case, scaled as in checkpoints.py, its routers so that they are neither sure nor undecided."""
    torch.manual_seed(0)
    model = CASES[case]().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 0.3)
            elif weight.dim() == 1:
                weight.normal_(1, 0.3)
            elif "embed_tokens" in name:
                weight.normal_(0, 0.5)
            else:
                scale = 2.0 if any(part in name for part in ("q_proj", "k_proj", "mlp.gate.")) else 1.0
                weight.normal_(0, scale * weight.shape[-1] ** -0.5)  # Experts' weights are [experts, out, in].
    model.tie_weights()
    return model


def save(case: str, folder: Path) -> PreTrainedModel:
    """Write a case's checkpoint to `folder`."""
    model = make_model(case)
    model.save_pretrained(folder)
    return model
