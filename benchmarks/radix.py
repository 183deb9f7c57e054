"""What the prefix cache costs: a match, growth with the number of prefixes, insertion and eviction, an iteration.

    python benchmarks/radix.py [--prefixes 1000 10000 100000 1000000] [--sequences 256] [--repeats 3]

Bars (issue 6): a match of 4,096 tokens ≤ 50 µs, no growth beyond O(log n) from 10³ to 10⁶ prefixes, ≤ 20 µs a changed
sequence at batch 256. Prefixes are distinct lines of two blocks behind one of 100 heads, so that the tree is wide and
has inner nodes. `frayed` is a line in which a branch hangs off each block: as many nodes as it can have.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import deque
from collections.abc import Callable

from orcinus.core.config import SchedulerConfig
from orcinus.core.core import Collect, Core, Submit
from orcinus.core.kv.pool import BlockPool
from orcinus.core.kv.radix import Namespace, RadixTree
from orcinus.core.plan import IterationPlan, IterationResult, Output, SequenceOutput
from orcinus.core.request import Request, SamplingParams, pack_tokens

BLOCK = 16
LONG = 4096
WHO = Namespace("tenant", "", "revision", "")


def microseconds(work: Callable[[], object], times: int) -> float:
    """Mean of `times` calls."""
    begun = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - begun) / times * 1e6


def line(rng: random.Random, num_tokens: int) -> bytes:
    """Random tokens, packed."""
    return rng.randbytes(4 * num_tokens)


class Cached:
    """A tree with `num_prefixes` lines and a long one, its pool beside it."""

    def __init__(self, num_prefixes: int) -> None:
        rng = random.Random(num_prefixes)
        self.num_blocks = 2 * num_prefixes + 100 + 4 * LONG // BLOCK
        self.tree = RadixTree(self.num_blocks, BLOCK)
        self.pool = BlockPool(self.num_blocks, self.tree)
        heads = [line(rng, BLOCK) for _ in range(100)]
        self.lines = [heads[i % 100] + line(rng, 2 * BLOCK) for i in range(num_prefixes)]
        begun = time.process_time()
        for tokens in self.lines:
            self.insert(tokens)
        self.insert_us = (time.process_time() - begun) / num_prefixes * 1e6
        self.long = line(rng, LONG)
        self.insert(self.long)
        self.frayed = line(rng, LONG)
        self.insert(self.frayed)
        for at in range(1, LONG // BLOCK):
            self.insert(self.frayed[: at * 4 * BLOCK] + line(rng, BLOCK))

    def insert(self, tokens: bytes) -> None:
        """As a sequence does that finds, shares, computes the rest and ends."""
        found = self.tree.find(WHO, tokens)
        self.pool.share(found)
        fresh = self.pool.allocate(len(tokens) // 4 // BLOCK - len(found))
        self.tree.extend(WHO, found[-1] if found else None, tokens[len(found) * 4 * BLOCK :], fresh)
        self.pool.release(found + fresh)

    def match_us(self, tokens: bytes) -> float:
        """One look for `tokens`."""
        assert len(self.tree.find(WHO, tokens)) == len(tokens) // 4 // BLOCK
        return microseconds(lambda: self.tree.find(WHO, tokens), 2000)

    def match_short_us(self) -> float:
        """One look for a line of three blocks, another each time."""
        rng = random.Random(1)
        wanted = deque(rng.choice(self.lines) for _ in range(5000))
        return microseconds(lambda: self.tree.find(WHO, wanted.popleft()), 5000)

    def evict_us(self) -> float:
        """A block taken while all are cached: evicted, handed out, and back."""
        self.pool.allocate(self.pool.num_free - self.pool.num_cached)
        count = min(900, self.pool.num_cached)
        begun = time.process_time()
        for _ in range(count):
            self.pool.allocate(1)
        return (time.process_time() - begun) / count * 1e6


def answer(plan: IterationPlan) -> IterationResult:
    """The null executor: a token of its own for each sequence, so that no two answers are alike."""
    sampling = (work for work in plan.work if work.output & Output.SAMPLE)
    outputs = tuple(SequenceOutput(work.seq_id, (10 + work.seq_id,)) for work in sampling)
    return IterationResult(plan.epoch, plan.iteration, outputs)


def decode_us(sequences: int, iterations: int, *, caching: bool) -> float:
    """Microseconds a sequence and iteration of a full decoding batch, the executor included."""
    config = SchedulerConfig(
        num_blocks=sequences * ((128 + iterations + 64) // BLOCK + 2),
        max_batch_tokens=128 * sequences + sequences,
        max_batch_size=sequences,
        enable_prefix_caching=caching,
    )
    core, rng = Core(config), random.Random(5)
    params = SamplingParams(max_tokens=iterations + 64, seed=1)
    for number in range(sequences):
        prompt = pack_tokens([rng.randrange(30_000) for _ in range(128)])
        core.add(Request(request_id=f"request-{number}", prompt=prompt, params=params), 0.0)
    run(core, 8)
    begun = time.process_time()
    run(core, iterations)
    return (time.process_time() - begun) / iterations / sequences * 1e6


def run(core: Core, iterations: int) -> None:
    """The engine's loop."""
    results: deque[IterationResult] = deque()
    while iterations:
        decision = core.advance(0.0)
        if isinstance(decision, Submit):
            results.append(answer(decision.plan))
        else:
            assert isinstance(decision, Collect)
            core.update(results.popleft(), 0.0)
            iterations -= 1


def main() -> None:
    """Print the tables: processor time, best of the repeats, for others share this machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prefixes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(
        f"{'prefixes':>9}  {'match 4k':>8}  {'frayed 4k':>9}  {'match 48':>8}  {'insert 48':>9}  {'evict 1':>7}   (µs)"
    )
    for count in options.prefixes:
        cached = Cached(count)
        long = min(cached.match_us(cached.long) for _ in range(options.repeats))
        frayed = min(cached.match_us(cached.frayed) for _ in range(options.repeats))
        short = min(cached.match_short_us() for _ in range(options.repeats))
        evict = min(cached.evict_us() for _ in range(options.repeats))
        print(
            f"{count:>9}  {long:8.1f}  {frayed:9.1f}  {short:8.2f}  {cached.insert_us:9.2f}  {evict:7.2f}", flush=True
        )
        del cached
    figures: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(options.repeats):
        for caching, taken in figures.items():
            taken.append(decode_us(options.sequences, options.iterations, caching=caching))
    for caching, taken in figures.items():
        name = "with the cache" if caching else "without"
        print(f"{name:>15}: {min(taken):.2f} µs a decoding sequence (median {statistics.median(taken):.2f})")


if __name__ == "__main__":
    main()
