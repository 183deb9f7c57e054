"""How true the twin is to a real engine: profile, runs and simulation of the same load, by turns.

    python benchmarks/fidelity.py MODEL [--requests 60] [--seconds 8]

A machine that others use changes its speed within seconds. So each case alternates between a few seconds of profiling
and a real run, and the twin has the cost model of exactly these minutes. Held out from the profile are rates, lengths,
policies, the token budget and the size of the pool. At the end: what the prefix cache gives on W3 (32 requests with
384 tokens in common), really and by the cost model. The engine runs in this process, with one thread, in real time;
arrivals are seen between iterations and idle time is skipped.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator

import msgspec
import numpy as np

from orcinus.bench.goal import Goal
from orcinus.bench.workloads import workload
from orcinus.core.clock import Clock
from orcinus.core.config import SchedulerConfig
from orcinus.core.core import Core
from orcinus.core.journal import Journal
from orcinus.core.request import pack_tokens
from orcinus.engine.build import build_engine
from orcinus.engine.clock import MonotonicClock
from orcinus.engine.config import EngineConfig
from orcinus.engine.loop import Engine
from orcinus.simulate.config import WorkloadConfig
from orcinus.simulate.cost import Machine
from orcinus.simulate.executor import Modelled
from orcinus.simulate.figures import Figures, figures_of
from orcinus.simulate.jobs import Job
from orcinus.simulate.ledger import Ledger
from orcinus.simulate.measure import Measurement
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


def _compare(case: _Case, rig: _Rig, options: argparse.Namespace) -> None:
    """Profile and runs in turns, then the table's lines of this case."""
    measurement = rig.measurement(seed=1)
    rig.profile(measurement, options.seconds)
    first = measurement.profile()
    assert first.scheduler is not None
    scheduler = msgspec.structs.replace(first.scheduler, **case.config)

    def load(rate: float) -> list[Job]:
        return list(_real_jobs(case, rate, options.requests, rig.vocab_size))

    # What it bears when everything is there at once sets the scale of its loads.
    busy = Simulation(scheduler, Modelled(Machine(cost=first.cost))).run(load(float("inf")))
    jobs = load(case.load * options.requests / busy.span)
    real = list[Figures]()
    for _ in range(REPEATS):
        real.append(rig.serve(scheduler, jobs))
        rig.profile(measurement, options.seconds)
    profile = measurement.profile()
    print(f"profile: {profile.num_iterations} iterations, {profile.residuals}")
    twin = Simulation(scheduler, Modelled(Machine(cost=profile.cost))).run(jobs)
    _print(case.name, real, figures_of(twin, case.name, Goal()))


def _print(name: str, real: list[Figures], twin: Figures) -> None:
    figures: dict[str, Callable[[Figures], float]] = {
        "output tokens/s": lambda f: f.output_throughput,
        "mean TPOT, ms": lambda f: f.tpot.mean * 1000,
        "mean E2EL, ms": lambda f: f.e2el.mean * 1000,
        "p95 TTFT, ms": lambda f: f.ttft.p95 * 1000,
        "preemptions": lambda f: f.preemptions,
        "hit rate, %": lambda f: f.hit_rate * 100,
    }
    for what, figure in figures.items():
        values = sorted(map(figure, real))
        middle = statistics.median(values)
        off = figure(twin) / middle - 1 if middle else 0.0
        spread = f"{middle:.1f} ({values[0]:.1f} .. {values[-1]:.1f})"
        noise = (values[-1] - values[0]) / middle if middle else 0.0
        verdict = "ok" if abs(off) <= max(_BOUNDS[what], noise) else "off"
        print(f"{name:28} {what:18} {spread:>30} {figure(twin):>10.1f} {off:>+8.1%} {verdict:>8}", flush=True)


def _prefix_cache(rig: _Rig, options: argparse.Namespace) -> None:
    """W3 with the cache and without, by turns."""
    measurement = rig.measurement(seed=2)
    schedulers = [
        msgspec.structs.replace(rig.scheduler, enable_prefix_caching=is_cached) for is_cached in (False, True)
    ]
    jobs = [Job(0.0, pack_tokens(each.prompt), each.num_output, each.num_output) for each in workload("W3", 1)]
    spans: list[list[float]] = [[], []]
    for _ in range(REPEATS):
        rig.profile(measurement, options.seconds)
        for column, scheduler in zip(spans, schedulers, strict=True):
            column.append(rig.serve(scheduler, jobs).duration)
    cost = measurement.profile().cost
    twin = [Simulation(each, Modelled(Machine(cost=cost))).run(jobs).span for each in schedulers]
    real = sorted(cold / cached for cold, cached in zip(*spans, strict=True))
    share = statistics.median(real) / (twin[0] / twin[1])
    print(
        f"W3: the prefix cache makes it {real[0]:.2f} .. {real[-1]:.2f} times as fast, by the cost model "
        f"{twin[0] / twin[1]:.2f} times: {share:.2f} of that"
    )


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
    """Real time; idle time can be skipped, so that a run takes no longer than its work."""

    def __init__(self) -> None:
        self._skipped = -time.perf_counter()

    def now(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() + self._skipped

    def skip_to(self, instant: float) -> None:
        """Nothing happens until then."""
        self._skipped += max(0.0, instant - self.now())


class _Rig:
    """One loaded model, and a core of its own for each run."""

    def __init__(self, model: str, kv_cache_gib: float) -> None:
        config = EngineConfig(model, threads=1, kv_cache_gib=kv_cache_gib)
        self._built, self._description = build_engine(config, MonotonicClock(), _say)
        self.vocab_size = self._description.vocab_size
        self._epoch = 0
        # As an engine does it that serves: to look through what is loaded takes as long as many iterations.
        gc.collect()
        gc.freeze()

    @property
    def scheduler(self) -> SchedulerConfig:
        """As the engine was set up."""
        return self._built.scheduler.config

    def measurement(self, seed: int) -> Measurement:
        """To be gone on with."""
        return Measurement(self._engine(self.scheduler), self._description, time.perf_counter, seed)

    def profile(self, measurement: Measurement, seconds: float) -> None:
        """A part of it."""
        self._renew(measurement.engine)
        measurement.go_on(seconds, _say)

    def serve(self, config: SchedulerConfig, jobs: list[Job]) -> Figures:
        """The jobs through the real loop, in real time."""
        clock, ledger = _ServingClock(), Ledger()
        engine = self._engine(config, clock)
        self._renew(engine)
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
        core = engine.scheduler
        outcome = Outcome(
            config, ledger, Series(), Window(), core.journal, [0.0], core.num_iterations, 0.0, span, tokens_run=0
        )
        return figures_of(outcome, "real", Goal())

    def _engine(self, config: SchedulerConfig, clock: Clock | None = None) -> Engine:
        return Engine(Core(config, Journal()), self._built.executor, clock or MonotonicClock())

    def _renew(self, engine: Engine) -> None:
        """The worker forgets its sequences at an epoch that it hasn't seen."""
        self._epoch += 1
        while engine.scheduler.epoch < self._epoch:
            engine.scheduler.new_epoch(0.0, kv_lost=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Every case, or those named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each part of a profile; there are four a case")
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--kv-cache-gib", type=float, default=0.3)
    parser.add_argument("--only", default="", help="cases whose names hold this")
    options = parser.parse_args()
    rig = _Rig(options.model, options.kv_cache_gib)
    print(f"{'case':28} {'figure':18} {'real (spread of repeats)':>30} {'twin':>10} {'off':>8} {'verdict':>8}")
    for case in _CASES:
        if options.only in case.name:
            _compare(case, rig, options)
    if options.only in "W3":
        _prefix_cache(rig, options)


if __name__ == "__main__":
    main()
