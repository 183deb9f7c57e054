"""Checkpoints that several rooms test on: random weights, saved by `transformers`."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch loads: threads that spin while they wait would starve each other on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from hypothesis import settings
from transformers import LlamaConfig, LlamaForCausalLM

# The same examples at every run, so that a landing fails for what changed; HYPOTHESIS_PROFILE=explore draws new ones.
settings.register_profile("same", derandomize=True)
settings.register_profile("explore", print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(scope="session")
def random_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers with grouped-query attention and odd sizes, in float32; weights large enough that tokens vary."""
    folder = tmp_path_factory.mktemp("random-llama")
    config = LlamaConfig(
        vocab_size=1003,
        hidden_size=160,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=224,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.12,
    )
    torch.manual_seed(3)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
