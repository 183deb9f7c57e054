"""The checkpoint that the benchmarks run on; its workloads W1 to W4 are in `orcinus.bench.workloads`."""

from __future__ import annotations

import json
from pathlib import Path

VOCAB_SIZE = 32_000


def bench_160m(folder: Path, context: int = 4096) -> Path:
    """A llama-shaped checkpoint of 125 M random bf16 weights (hidden 768, 12 layers, 12/4 heads), made once."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    target = folder / ("bench-160m" if context == 4096 else f"bench-160m-{context}")
    if (target / "model.safetensors").exists():
        return target
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        intermediate_size=2048,
        vocab_size=VOCAB_SIZE,
        head_dim=64,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        dtype="bfloat16",
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02) if parameter.dim() == 2 else parameter.fill_(1.0)
    model.to(torch.bfloat16).save_pretrained(target)
    # Written last: a folder with it is whole.
    (target / "made_by.json").write_text(json.dumps({"script": "benchmarks/workloads.py", "seed": 0}))
    return target
