"""What the escape hatch costs: a llama-shaped model through our decoder and through transformers' modules, in turns.

python benchmarks/foreign.py [--threads 1] [--repeats 5]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from orcinus import LLM, SamplingParams


def main() -> None:
    """Prompt tokens a second of one prompt of 512, and generated ones of 8 sequences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    config = LlamaConfig(
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=4,
        num_attention_heads=12,
        num_key_value_heads=4,
        vocab_size=8000,
        max_position_embeddings=1024,
    )
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        llms = {
            impl: LLM(Path(folder), model_impl=impl, threads=arguments.threads, kv_cache_gib=0.5)
            for impl in ("orcinus", "transformers")
        }
        seconds: dict[tuple[str, str], list[float]] = {}
        for repeat in range(arguments.repeats + 1):
            for impl, llm in llms.items():
                for name, prompts, count in (("prefill", [list(range(512))], 1), ("decode", [[5, 6, 7]] * 8, 64)):
                    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
                    started_at = time.perf_counter()
                    llm.generate(prompts, params, use_tqdm=False)
                    if repeat:
                        seconds.setdefault((name, impl), []).append(time.perf_counter() - started_at)
    tokens = {"prefill": 512, "decode": 8 * 64}
    for (name, impl), times in seconds.items():
        low, middle, high = (tokens[name] / each for each in (max(times), statistics.median(times), min(times)))
        print(f"{name:<8} {impl:<13} {middle:8.0f} tokens/s ({low:.0f} .. {high:.0f})")


if __name__ == "__main__":
    main()
