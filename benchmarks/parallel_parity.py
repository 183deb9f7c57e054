"""Does a model held by several worker processes give the tokens of one? 200 prompts through every layout.

    python benchmarks/parallel_parity.py --prompts 200

Greedy float32 on small random checkpoints of three families: T x P of 2x1, 1x2 and 2x2 against one process, and at each
T the bits (tokens and log-probabilities) of every P against each other.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).parents[1] / "tests" / "models"))

from checkpoints import save

from orcinus.core.clock import VirtualClock
from orcinus.core.request import Request, SamplingParams, pack_tokens
from orcinus.engine.build import build_engine
from orcinus.engine.config import EngineConfig

FAMILIES = ("llama", "qwen3", "gpt2")
VOCAB_SIZE = 1003

Answers = dict[str, list[tuple[int, float]]]


def requests(number: int) -> list[Request]:
    rng = random.Random(0)
    params = SamplingParams(temperature=0, max_tokens=32, seed=0, logprobs=0, ignore_eos=True)
    return [
        Request(
            request_id=f"r{i}",
            prompt=pack_tokens([rng.randrange(2, VOCAB_SIZE) for _ in range(rng.randrange(1, 150))]),
            params=params,
        )
        for i in range(number)
    ]


def answers(folder: Path, tensor_size: int, num_stages: int, number: int) -> Answers:
    config = EngineConfig(
        str(folder),
        dtype="float32",
        threads=1,
        max_batch_tokens=256,
        max_batch_size=32,
        kv_cache_gib=0.05,
        tensor_parallel_size=tensor_size,
        pipeline_parallel_size=num_stages,
    )
    engine, _ = build_engine(config, VirtualClock())
    found: Answers = {}
    for request in requests(number):
        assert engine.add(request) == []
    while (progress := engine.step()) is not None:
        for part in progress:
            logprobs = [each.logprob for each in part.logprobs]
            found.setdefault(part.request_id, []).extend(zip(part.tokens, logprobs, strict=True))
    engine.close()
    return found


def tokens(found: Answers) -> dict[str, list[int]]:
    return {name: [token for token, _ in answer] for name, answer in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    number = parser.parse_args().prompts
    failures = 0
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            save(family, folder)
            by_layout = {layout: answers(folder, *layout, number) for layout in ((1, 1), (1, 2), (2, 1), (2, 2))}
            expected = tokens(by_layout[1, 1])
            for layout, found in by_layout.items():
                equal = sum(tokens(found)[key] == answer for key, answer in expected.items())
                same_bits = found == by_layout[layout[0], 1]
                failures += equal != number or not same_bits
                print(
                    f"{family} T={layout[0]} P={layout[1]}: {equal} of {number} equal, bits of P=1: {same_bits}",
                    flush=True,
                )
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
