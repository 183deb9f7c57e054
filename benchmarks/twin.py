"""The twin: how fast it is, what it says of the literature's claims, and how true it is to a real engine.

    python benchmarks/twin.py speed [--requests 20000]        # milliseconds and memory for a request
    python benchmarks/twin.py accept                          # SYSTEMS.md's [SIM] statements, measured
    python benchmarks/twin.py fidelity MODEL [--seconds 40]   # profile, then real and simulated runs in turns

`fidelity` serves in this process, as fast as the engine's loop goes; arrivals are seen between iterations. Held out
from the profile are rates, lengths, the token budget and the size of the pool. With `--processor-time` the clock of
profile and runs is the processor's: time that other jobs take of the machine counts for neither.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import msgspec
import numpy as np

from orcinus.bench.goal import Goal
from orcinus.core.config import SchedulerConfig
from orcinus.core.core import Core
from orcinus.core.journal import Journal
from orcinus.engine.build import build_engine
from orcinus.engine.clock import MonotonicClock
from orcinus.engine.config import EngineConfig
from orcinus.engine.loop import Engine
from orcinus.simulate.baselines import bucketed, request_level, waiting_served
from orcinus.simulate.capacity import highest_rate
from orcinus.simulate.config import WorkloadConfig
from orcinus.simulate.cost import CALIBRATION, Machine
from orcinus.simulate.executor import Modelled
from orcinus.simulate.figures import Figures, figures_of
from orcinus.simulate.jobs import Job
from orcinus.simulate.ledger import Ledger
from orcinus.simulate.measure import measure
from orcinus.simulate.profile import Profile
from orcinus.simulate.run import Outcome, Simulation
from orcinus.simulate.series import Series, Window
from orcinus.simulate.workloads import make_jobs

REPEATS = 3
# So far off, or as far as the real repeats lie apart, the twin may be.
_BOUNDS = {
    "output tokens/s": 0.05,
    "mean TPOT, ms": 0.05,
    "mean E2EL, ms": 0.05,
    "p95 TTFT, ms": 0.10,
    "preemptions": 0.05,
    "hit rate, %": 0.05,
}


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


# ---- fidelity


class _Case:
    """One setting that the profile has not seen."""

    def __init__(
        self, name: str, load: float, lengths: tuple[str, str], workload: str = "independent", **config: object
    ) -> None:
        self.name, self.load, self.lengths, self.workload, self.config = name, load, lengths, workload, config


_CASES = (
    _Case("short answers, load 0.4", 0.4, ("uniform:8:200", "uniform:2:30")),
    _Case("short answers, load 0.7", 0.7, ("uniform:8:200", "uniform:2:30")),
    _Case("long answers, load 0.7", 0.7, ("lognormal:60:0.6:300", "lognormal:60:0.6:200")),
    _Case("budget 96, load 0.7", 0.7, ("uniform:8:200", "uniform:2:30"), max_batch_tokens=96),
    _Case("reserve, saturated", 3.0, ("uniform:8:200", "uniform:2:30"), admission="reserve", num_blocks=120),
    _Case(
        "mlfq, 8 at a time, load 0.9", 0.9, ("uniform:8:100", "lognormal:12:1.2:200"), policy="mlfq", max_batch_size=8
    ),
    _Case("shared prefixes, load 0.7", 0.7, ("uniform:8:60", "uniform:2:30"), workload="shared-prefix"),
    _Case("24 blocks, saturated", 3.0, ("uniform:8:60", "uniform:40:160"), num_blocks=24),
)


def fidelity(options: argparse.Namespace) -> None:
    """Each case: a profile, for the machine's speed changes within minutes; then real and simulated."""
    config = EngineConfig(options.model, threads=1, kv_cache_gib=options.kv_cache_gib)
    timer = time.process_time if options.processor_time else time.perf_counter
    rig = _Rig(options.model, options.kv_cache_gib, timer)
    print(f"{'case':28} {'figure':18} {'real (spread of repeats)':>30} {'twin':>10} {'off':>8} {'verdict':>8}")
    for case in _CASES:
        profile = measure(config, options.seconds, _say, timer)
        print(f"profile: {profile.num_iterations} iterations, {profile.residuals}")
        _compare(case, profile, rig, options.requests)


def _compare(case: _Case, profile: Profile, rig: _Rig, count: int) -> None:
    assert profile.scheduler is not None
    fields = {name: getattr(profile.scheduler, name) for name in profile.scheduler.__struct_fields__}
    scheduler = SchedulerConfig(**(fields | case.config))
    pace = Modelled(Machine(cost=profile.cost))

    def load(rate: float) -> list[Job]:
        return list(_real_jobs(case, rate, count, rig.vocab_size))

    # What it bears when everything is there at once sets the scale of its loads.
    busy = Simulation(scheduler, pace, profile.host).run(load(float("inf")))
    jobs = load(case.load * count / busy.span)
    twin = figures_of(Simulation(scheduler, pace, profile.host).run(jobs), case.name, Goal())
    real = [rig.serve(scheduler, jobs) for _ in range(REPEATS)]
    figures: dict[str, Callable[[Figures], float]] = {
        "output tokens/s": lambda f: f.output_throughput,
        "mean TPOT, ms": lambda f: f.tpot.mean * 1000,
        "mean E2EL, ms": lambda f: f.e2el.mean * 1000,
        "p95 TTFT, ms": lambda f: f.ttft.p95 * 1000,
        "preemptions": lambda f: f.preemptions,
        "hit rate, %": lambda f: f.hit_rate * 100,
    }
    for name, figure in figures.items():
        values = sorted(map(figure, real))
        middle = statistics.median(values)
        off = figure(twin) / middle - 1 if middle else 0.0
        spread = f"{middle:.1f} ({values[0]:.1f} .. {values[-1]:.1f})"
        noise = (values[-1] - values[0]) / middle if middle else 0.0
        verdict = "ok" if abs(off) <= max(_BOUNDS[name], noise) else "off"
        print(f"{case.name:28} {name:18} {spread:>30} {figure(twin):>10.1f} {off:>+8.1%} {verdict:>8}", flush=True)


def _real_jobs(case: _Case, rate: float, count: int, vocab_size: int) -> Iterator[Job]:
    """Prompts that the vocabulary holds; answers end at their limit, for the real model has a mind of its own."""
    prompts, outputs = case.lengths
    load = WorkloadConfig(
        rate=rate,
        num_requests=count,
        workload=case.workload,
        prompt_lengths=prompts,
        output_lengths=outputs,
        prefix_tokens=200,
        seed=9,
    )
    for job in make_jobs(load):
        job.prompt = (np.frombuffer(job.prompt, dtype=np.uint32) % np.uint32(vocab_size)).tobytes()
        job.max_tokens = job.output
        yield job


class _ServingClock:
    """Real time, or the processor's; idle time can be skipped, so that a run takes no longer than its work."""

    def __init__(self, timer: Callable[[], float]) -> None:
        self._timer = timer
        self._skipped = -timer()

    def now(self) -> float:
        """Seconds since the start."""
        return self._timer() + self._skipped

    def skip_to(self, instant: float) -> None:
        """Nothing happens until then."""
        self._skipped += max(0.0, instant - self.now())


class _Rig:
    """One loaded model, and a core of its own for each run."""

    def __init__(self, model: str, kv_cache_gib: float, timer: Callable[[], float]) -> None:
        self._timer = timer
        config = EngineConfig(model, threads=1, kv_cache_gib=kv_cache_gib)
        self._built, description = build_engine(config, MonotonicClock(), _say)
        self.vocab_size = description.vocab_size
        self._runs = 0

    def serve(self, config: SchedulerConfig, jobs: list[Job]) -> Figures:
        """The jobs through the real loop, in real time."""
        core, clock, ledger = Core(config, Journal()), _ServingClock(self._timer), Ledger()
        engine = Engine(core, self._built.executor, clock)
        # The worker forgets its sequences at an epoch that it hasn't seen.
        self._runs += 1
        for _ in range(self._runs):
            core.new_epoch(0.0, kv_lost=True)
        left = deque(enumerate(jobs))
        while left or ledger.num_live:
            while left and left[0][1].at <= clock.now():
                number, job = left.popleft()
                request = job.request(number, job.at)
                ledger.begin(request.request_id, job, job.at)
                # No end token counts: the answer is as long as it was drawn.
                engine.add(msgspec.structs.replace(request, eos_token_ids=()))
            progress = engine.step()
            if progress is None and left:
                clock.skip_to(left[0][1].at)
            ledger.note(progress or [], clock.now())
        span = clock.now() - jobs[0].at
        iterations = core.scheduler.num_iterations
        outcome = Outcome(config, ledger, Series(), Window(), core.journal, [0.0], iterations, 0.0, span, tokens_run=0)
        return figures_of(outcome, "real", Goal())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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
    command = commands.add_parser("fidelity")
    command.add_argument("model")
    command.add_argument("--seconds", type=float, default=20.0, help="of each profile")
    command.add_argument("--requests", type=int, default=60)
    command.add_argument("--kv-cache-gib", type=float, default=0.3)
    command.add_argument("--processor-time", action="store_true")
    command.set_defaults(run=fidelity)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
