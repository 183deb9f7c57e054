"""Small loads and shorthands that several tests of the twin share."""

from __future__ import annotations

import random
from collections.abc import Iterable

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
