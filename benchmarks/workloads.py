"""The four offline workloads, and a checkpoint with random weights to run them on. Token ids in, greedy, EOS ignored.

W1: 64 requests, prompts and outputs lognormal (medians 96 and 64), all at once. W2: one request, 128 in, 128 out.
W3: 32 requests with 384 shared tokens and 16 of their own, 32 out. W4: one request, 2,048 in, 1 out.
Lengths are the same in every repeat; the ids differ, so that no repeat finds its prompts in a cache.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

VOCAB_SIZE = 32_000


@dataclass(frozen=True, slots=True)
class Job:
    """One request: prompt ids and the number of tokens to generate."""

    prompt: list[int]
    num_output: int


def workload(name: str, seed: int) -> list[Job]:
    """The requests of W1 to W4; `seed` changes the ids, never the lengths."""
    lengths, ids = random.Random(20240), random.Random(seed)

    def tokens(count: int) -> list[int]:
        return [ids.randrange(10, 30_000) for _ in range(count)]

    match name:
        case "W1":
            sizes = [(_lognormal(lengths, 96, 16, 512), _lognormal(lengths, 64, 8, 256)) for _ in range(64)]
            return [Job(tokens(prompt), output) for prompt, output in sizes]
        case "W2":
            return [Job(tokens(128), 128)]
        case "W3":
            prefix = tokens(384)
            return [Job(prefix + tokens(16), 32) for _ in range(32)]
        case "W4":
            return [Job(tokens(2048), 1)]
    raise ValueError(f"{name} is none of W1, W2, W3, W4")


def _lognormal(rng: random.Random, median: float, low: int, high: int, sigma: float = 0.7) -> int:
    return max(low, min(high, round(math.exp(rng.gauss(math.log(median), sigma)))))


def bench_160m(folder: Path) -> Path:
    """A llama-shaped checkpoint of 125 M random bf16 weights (hidden 768, 12 layers, 12/4 heads), made once."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    target = folder / "bench-160m"
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
        max_position_embeddings=4096,
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
