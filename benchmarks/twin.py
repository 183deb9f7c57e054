"""The twin: how fast it is, and what it says of the literature's claims. How true it is: `fidelity.py`.

python benchmarks/twin.py speed [--requests 20000]        # milliseconds and memory for a request
python benchmarks/twin.py accept                          # SYSTEMS.md's [SIM] statements, measured
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterable, Iterator

from orcinus.bench.goal import Goal
from orcinus.core.config import SchedulerConfig
from orcinus.simulate.baselines import bucketed, request_level, waiting_served
from orcinus.simulate.capacity import highest_rate
from orcinus.simulate.config import WorkloadConfig
from orcinus.simulate.cost import CALIBRATION, Machine
from orcinus.simulate.executor import Modelled
from orcinus.simulate.figures import figures_of
from orcinus.simulate.jobs import Job
from orcinus.simulate.run import Outcome, Simulation
from orcinus.simulate.workloads import make_jobs


def speed(options: argparse.Namespace) -> None:
    """A chat load at the edge of what 64 sequences bear."""
    load = WorkloadConfig(
        num_requests=options.requests, rate=options.rate, workload=options.workload, tenants=options.tenants
    )
    config = SchedulerConfig(num_blocks=4096, policy=options.policy, enable_prefix_caching=options.prefix_caching)
    begun, cpu = time.perf_counter(), time.process_time()
    outcome = Simulation(config, Modelled(Machine(cost=CALIBRATION)), leaps=not options.plain).run(make_jobs(load))
    wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
    tokens = outcome.ledger.total_output
    # Each turn of a conversation is one.
    count = sum(outcome.ledger.reasons.values())
    each = tokens / count
    print(f"{count:,} requests, {each:.0f} tokens each, {outcome.num_iterations:,} iterations")
    print(f"{wall / count * 1e3:.3f} ms a request ({cpu / count * 1e3:.3f} ms of processor time)")
    print(f"10^6 requests: {cpu / count * 1e6 / 60:.1f} min of processor time; {cpu / tokens * 1e6:.2f} µs a token")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


# ---- the literature's claims


def _orca_load(rate: float, **fields: object) -> Iterator[Job]:
    chosen: dict[str, object] = {
        "rate": rate,
        "num_requests": 500,
        "prompt_lengths": "uniform:32:512",
        "output_lengths": "uniform:1:128",
        "seed": 1,
    }
    return make_jobs(WorkloadConfig(**(chosen | fields)))  # type: ignore[arg-type]


def _run(jobs: Iterable[Job], num_stages: int = 1, **config: object) -> Outcome:
    fields = {"num_blocks": 10_000, "num_stages": num_stages} | config
    machine = Machine(cost=CALIBRATION, num_stages=num_stages)
    return Simulation(SchedulerConfig(**fields), Modelled(machine)).run(jobs)  # type: ignore[arg-type]


def _rate(run: Callable[[Iterable[Job]], Outcome], target: float, **fields: object) -> float:
    def latency(rate: float) -> float:
        return figures_of(run(_orca_load(rate, **fields)), "", Goal()).normalised.p50

    return highest_rate(latency, target, 0.5, 40, steps=10)


def accept(options: argparse.Namespace) -> None:
    """One line a statement."""
    rivals: dict[str, Callable[[Iterable[Job]], Outcome]] = {
        "request-level": lambda jobs: request_level(jobs, CALIBRATION, 32),
        "pad-to-max": lambda jobs: request_level(jobs, CALIBRATION, 32, pad_to=1),
        "buckets of 128": lambda jobs: bucketed(jobs, CALIBRATION, 32, 128),
        "waiting_served_ratio 1.2": lambda jobs: waiting_served(jobs, CALIBRATION, 32),
    }
    for target in (0.100, 0.050):
        ours = _rate(lambda jobs: _run(jobs, max_batch_size=32, admission="reserve"), target)
        print(f"median {target * 1000:.0f} ms a token: ours {ours:.2f} requests/s")
        for name, rival in rivals.items():
            print(f"  {name}: {ours / _rate(rival, target):.2f} times")
    for budget in (64, 128, 256, 512, 100_000):
        run = _run(_orca_load(1000.0, num_requests=1500), 4, max_batch_size=32, max_batch_tokens=budget)
        print(f"four stages, budget {budget}: {run.idle_share:.1%} idle")
    lengths = {"output_lengths": "lognormal:86.1:0.7:1024", "max_tokens": 1024}
    rates = [
        _rate(lambda jobs, a=a: _run(jobs, num_blocks=1250, max_batch_size=256, admission=a), 0.100, **lengths)  # type: ignore[misc]
        for a in ("reserve", "on_demand")
    ]
    print(f"reserve {rates[0]:.2f}, on_demand {rates[1]:.2f} requests/s: {rates[1] / rates[0]:.2f} times")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("speed")
    command.add_argument("--requests", type=int, default=20_000)
    command.add_argument("--rate", type=float, default=8.0)
    command.add_argument("--policy", default="fcfs")
    command.add_argument("--workload", default="independent")
    command.add_argument("--tenants", type=int, default=1)
    command.add_argument("--prefix-caching", action="store_true")
    command.add_argument("--plain", action="store_true", help="run every iteration, skip none")
    command.set_defaults(run=speed)
    commands.add_parser("accept").set_defaults(run=accept)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
