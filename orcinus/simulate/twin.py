"""From what a user chose to figures: profile, scheduler, machine and load put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import starmap

import msgspec

from orcinus.bench.goal import Goal
from orcinus.core.config import SchedulerConfig
from orcinus.errors import ConfigurationError, nearest
from orcinus.simulate import baselines
from orcinus.simulate.config import BaselineName, TwinConfig, WorkloadConfig
from orcinus.simulate.cost import CostModel, Features, Link, Machine
from orcinus.simulate.executor import Modelled
from orcinus.simulate.figures import Figures, figures_of
from orcinus.simulate.fit import fit
from orcinus.simulate.jobs import Job
from orcinus.simulate.profile import Profile, read_profile
from orcinus.simulate.recorded import RecordedRun
from orcinus.simulate.run import Outcome, Simulation
from orcinus.simulate.workloads import make_jobs

# Prompts of a bucket differ by less than this.
BUCKET_WIDTH = 128
_MANY = 512
# As an engine is started.
_WITHOUT_PROFILE = SchedulerConfig(num_blocks=4096, enable_prefix_caching=True, even_plans=True)


def machine(twin: TwinConfig, profile: Profile) -> Machine:
    """What iterations run on."""
    link = Link(latency=twin.link_latency, bytes_per_s=twin.link_bytes_per_s)
    return Machine(
        cost=profile.cost,
        num_stages=twin.num_stages,
        num_slices=twin.num_slices,
        stage_link=link,
        slice_link=link,
        hidden_bytes=twin.hidden_bytes,
        num_layers=twin.num_layers,
    )


def run_twin(twin: TwinConfig, workload: WorkloadConfig, goal: Goal, label: str = "") -> Figures:
    """One simulated run.

    Raises:
        ConfigurationError: a file that can't be read, a value out of range.
    """
    profile = read_profile(twin.profile)
    base = profile.scheduler or _WITHOUT_PROFILE
    given = {"recompute_token_seconds": _recompute_seconds(profile)} | twin.scheduler(base)
    config = changed(base, given)
    jobs = make_jobs(workload)
    if twin.baseline is not None:
        outcome = _BASELINES[twin.baseline](jobs, profile.cost, config.max_batch_size)
    else:
        pace = Modelled(machine(twin, profile), config)
        outcome = Simulation(config, pace, profile.host, window_at=twin.window_at).run(jobs)
    settings = _settings(config) | {"load": workload.in_words(), "profile": profile.name or twin.profile}
    return figures_of(outcome, label or twin.baseline or config.policy, goal, settings)


def _recompute_seconds(profile: Profile) -> float:
    """Of a token of a prompt, in an iteration that runs many."""
    return profile.cost.seconds(Features(tokens=_MANY, prefill_tokens=_MANY)) / _MANY


def _settings(config: SchedulerConfig) -> dict[str, str]:
    return {name: str(value) for name, value in msgspec.structs.asdict(config).items()}


_BASELINES: dict[BaselineName, Callable[[Iterable[Job], CostModel, int], Outcome]] = {
    "request-level": baselines.request_level,
    "pad-to-max": lambda jobs, cost, most: baselines.request_level(jobs, cost, most, pad_to=1),
    "buckets": lambda jobs, cost, most: baselines.bucketed(jobs, cost, most, BUCKET_WIDTH),
    "waiting-served-ratio": baselines.waiting_served,
}


def parse_changes(text: str) -> dict[str, object]:
    """`policy=fcfs,max_batch_tokens=256` by name.

    Raises:
        ConfigurationError: another form, or a name that core doesn't know.
    """
    pairs = [part.partition("=") for part in text.split(",") if part]
    known = SchedulerConfig.__struct_fields__
    for name, sign, _ in pairs:
        if not sign or name not in known:
            raise ConfigurationError(
                f"--what-if {text!r}: write NAME=VALUE with one of {', '.join(known)}{nearest(name, known)}"
            )
    return {name: value for name, _, value in pairs}


def changed(config: SchedulerConfig, changes: dict[str, object]) -> SchedulerConfig:
    """The configuration with `changes`, checked as any.

    Raises:
        ConfigurationError: a value that core refuses.
    """
    try:
        # Through the constructor's checks, texts made numbers on the way.
        return msgspec.convert(msgspec.structs.asdict(config) | changes, SchedulerConfig, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigurationError(str(error)) from error


def what_if(lines: Iterable[bytes], changes: dict[str, object], profile: Profile | None, goal: Goal) -> list[Figures]:
    """A recording's requests through the twin twice: as the engine was configured, and with `changes`.

    Without a profile the iterations' cost is fitted to the recording itself.

    Raises:
        ConfigurationError: no recording, or changes that core refuses.
    """
    run = RecordedRun.read(lines)
    known = profile or Profile(cost=fit(run.samples), host=run.host(), name="fitted to the recording")
    configs = {"as recorded": run.config, _in_words(changes): changed(run.config, changes)}
    return list(starmap(lambda label, config: _repeat(run, known, config, label, goal), configs.items()))


def _in_words(changes: dict[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in changes.items())


def _repeat(run: RecordedRun, profile: Profile, config: SchedulerConfig, label: str, goal: Goal) -> Figures:
    pace = Modelled(Machine(cost=profile.cost, num_stages=config.num_stages), config)
    outcome = Simulation(config, pace, profile.host).run(run.free_jobs())
    return figures_of(outcome, label, goal, _settings(config) | {"profile": profile.name})
