"""Does a model held by several worker processes give the tokens of one? 200 prompts through every layout.

    python benchmarks/parallel_parity.py --prompts 200

Greedy float32 on small random checkpoints: T x P of 2x1, 1x2 and 2x2 against one process, and at each T the bits
(tokens and log-probabilities) of every P against each other. The tests do the same with fewer prompts, and threads.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).parents[1] / "tests" / "executor"))

from test_layouts import Answer, config_of, greedy, run, save, tokens_of

from orcinus.core.clock import VirtualClock
from orcinus.engine.build import build_engine

FAMILIES = ("llama", "qwen3", "gpt2", "mixtral", "qwen3-moe", "olmoe")
LAYOUTS = ((1, 1), (1, 2), (2, 1), (2, 2))


def answers(folder: Path, layout: tuple[int, int], number: int) -> dict[tuple[str, int], Answer]:
    config = config_of(folder, *layout, max_batch_tokens=256, max_batch_size=32, kv_cache_gib=0.05)
    engine, _ = build_engine(config, VirtualClock())
    found = run(engine, greedy(number, max_tokens=32, longest=150))
    engine.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    number = parser.parse_args().prompts
    failures = 0
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            save(family, folder)
            by_layout = {layout: answers(folder, layout, number) for layout in LAYOUTS}
            expected = tokens_of(by_layout[1, 1])
            for layout, found in by_layout.items():
                equal = sum(tokens_of(found)[key] == answer for key, answer in expected.items())
                same_bits = found == by_layout[layout[0], 1]
                failures += equal != number or not same_bits
                print(
                    f"{family} T={layout[0]} P={layout[1]}: {equal} of {number} equal, bits of P=1: {same_bits}",
                    flush=True,
                )
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
