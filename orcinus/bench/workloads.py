"""W1 to W4, the workloads that engines are compared on: token ids in, greedy, end tokens ignored.

- W1: 64 requests at once, log-normal lengths (medians 96 in and 64 out). The first 32 are W1 of a large model.
- W2: one request, 128 in and 128 out.
- W3: 32 requests with 384 tokens in common, 16 of their own, 32 out.
- W4: one request, 2,048 in and 1 out.

The lengths are the same in every repeat; the ids differ, so that no repeat finds its prompts in a prefix cache.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

WORKLOADS = ("W1", "W2", "W3", "W4")
# From this many parameters on, W1 has half its requests.
LARGE_MODEL = 1_000_000_000
LARGE_MODEL_REQUESTS = 32

_FIRST_ID = 10
_ID_LIMIT = 30_000
_LENGTHS_SEED = 20240
_SIGMA = 0.7


@dataclass(frozen=True, slots=True)
class Job:
    """One request: prompt ids and the number of tokens to generate."""

    prompt: list[int]
    num_output: int


def workload(name: str, seed: int, vocab_size: int = _ID_LIMIT) -> list[Job]:
    """The requests of W1 to W4; `seed` changes the ids, never the lengths.

    Raises:
        ValueError: another name.
    """
    lengths, ids = random.Random(_LENGTHS_SEED), random.Random(seed)
    match name:
        case "W1":
            sizes = [
                (lognormal_length(lengths, 96, 16, 512, _SIGMA), lognormal_length(lengths, 64, 8, 256, _SIGMA))
                for _ in range(64)
            ]
            return [Job(random_ids(ids, prompt, vocab_size), output) for prompt, output in sizes]
        case "W2":
            return [Job(random_ids(ids, 128, vocab_size), 128)]
        case "W3":
            prefix = random_ids(ids, 384, vocab_size)
            return [Job(prefix + random_ids(ids, 16, vocab_size), 32) for _ in range(32)]
        case "W4":
            return [Job(random_ids(ids, 2048, vocab_size), 1)]
    raise ValueError(f"{name} is none of {', '.join(WORKLOADS)}")


def warm_up(name: str, seed: int, vocab_size: int = _ID_LIMIT) -> list[Job]:
    """The same shapes, fewer steps; W4 as it is."""
    jobs = workload(name, seed, vocab_size)
    return jobs if name == "W4" else [Job(job.prompt, min(8, job.num_output)) for job in jobs[:8]]


def random_ids(rng: random.Random, count: int, vocab_size: int) -> list[int]:
    """Ids that are no special tokens in the vocabularies we met."""
    return [rng.randrange(_FIRST_ID, min(vocab_size, _ID_LIMIT)) for _ in range(count)]


def lognormal_length(rng: random.Random, median: float, low: int, high: int, sigma: float) -> int:
    """A length drawn around `median`, cut to [low, high]."""
    return max(low, min(high, round(math.exp(rng.gauss(math.log(median), sigma)))))
