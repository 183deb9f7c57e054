"""Small loads and shorthands that several tests of the twin share."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator

from orcinus.bench.goal import Goal
from orcinus.core.config import SchedulerConfig
from orcinus.simulate.config import WorkloadConfig
from orcinus.simulate.cost import CALIBRATION, AnyCost, Machine
from orcinus.simulate.executor import Modelled
from orcinus.simulate.figures import Figures, figures_of
from orcinus.simulate.jobs import Job
from orcinus.simulate.run import Outcome, Simulation
from orcinus.simulate.tokens import drawn_tokens
from orcinus.simulate.workloads import make_jobs


def job(at: float, prompt: int, output: int, max_tokens: int | None = None, **fields: object) -> Job:
    """A job with a prompt of its own."""
    tokens = drawn_tokens(random.Random(f"{at}:{prompt}"), prompt)
    return Job(at, tokens, output, max_tokens or output, **fields)  # type: ignore[arg-type]


def simulate(jobs: Iterable[Job], cost: AnyCost = CALIBRATION, num_stages: int = 1, **config: object) -> Outcome:
    """One run on one machine with plenty of blocks, if not told otherwise."""
    fields = {"num_blocks": 10_000, "num_stages": num_stages} | config
    machine = Machine(cost=cost, num_stages=num_stages)
    return Simulation(SchedulerConfig(**fields), Modelled(machine)).run(jobs)  # type: ignore[arg-type]


def figures(outcome: Outcome) -> Figures:
    """Without targets."""
    return figures_of(outcome, "test", Goal())


def orca_load(rate: float, count: int, **fields: object) -> Iterable[Job]:
    """Prompts of 32 to 512 and answers of 1 to 128 tokens, Poisson, as in Orca's evaluation (SYSTEMS.md §1)."""
    chosen: dict[str, object] = {
        "rate": rate,
        "num_requests": count,
        "prompt_lengths": "uniform:32:512",
        "output_lengths": "uniform:1:128",
        "seed": 1,
    }
    return make_jobs(WorkloadConfig(**(chosen | fields)))  # type: ignore[arg-type]


def _lognormal(rng: random.Random, mean: float, sigma: float) -> int:
    return max(1, min(2048, round(rng.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma))))


def fastserve_load(rate: float, count: int, max_tokens: int = 2048) -> Iterator[Job]:
    """Prompts of mean 243, answers of mean 86, log-normal (SYSTEMS.md §4)."""
    rng, at = random.Random(1), 0.0
    for _ in range(count):
        at += rng.expovariate(rate)
        prompt = _lognormal(rng, 243, 1.0)
        yield Job(at, drawn_tokens(rng, prompt), min(max_tokens, _lognormal(rng, 86, 1.2)), max_tokens)
