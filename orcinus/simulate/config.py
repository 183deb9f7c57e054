"""What a user chooses about a simulation, checked once. Light to import: the command line reads it."""

from __future__ import annotations

import math
import random
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

from orcinus.core.config import SchedulerConfig
from orcinus.errors import ConfigurationError
from orcinus.simulate.lengths import parse_lengths

WorkloadName = Literal["independent", "shared-prefix", "multi-turn"]
ArrivalsName = Literal["poisson", "gamma", "on-off", "diurnal", "trace"]
BaselineName = Literal["request-level", "pad-to-max", "buckets", "waiting-served-ratio"]

CALIBRATION_NAME = "calibration"
# Requests a second, and how many, where nothing says otherwise.
RATE, COUNT = 4.0, 1000


@dataclass(frozen=True)
class WorkloadConfig:
    """What is simulated.

    Args:
        trace: file of arrivals and lengths: Azure LLM or BurstGPT (.csv), Mooncake (.jsonl), ShareGPT (.json).
        workload: independent requests; shared-prefix (each begins with one of --num-prefixes texts); or multi-turn
            (each turn repeats the conversation so far).
        num_requests: how many (conversations, if multi-turn); without it all of a trace, else 1,000.
        rate: requests (conversations) a second; stretches a trace. Without it 4, or the trace's own.
        arrivals: poisson, gamma (with --burstiness), on-off, diurnal, or trace (the trace's own instants).
        burstiness: shape of the Gamma-distributed gaps: 1 is Poisson, less is burstier.
        on_seconds: length of a busy phase.
        off_seconds: length of a pause.
        swing: share by which the diurnal rate goes up and down.
        period: seconds of a simulated day.
        prompt_lengths: fixed:N, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA:LONGEST; of what each prompt adds.
        output_lengths: the same, of answers.
        max_tokens: what requests ask for; without it the longest answer that can be drawn.
        num_prefixes: different beginnings.
        prefix_tokens: length of each.
        turns: of a conversation.
        think_seconds: mean time between an answer and the next turn.
        tenants: requests come from so many tenants in turn.
        deadline: seconds after which nobody wants an answer.
        seed: of everything drawn.
    """

    _: KW_ONLY
    trace: Path | None = None
    workload: WorkloadName = "independent"
    num_requests: int | None = None
    rate: float | None = None
    arrivals: ArrivalsName | None = None
    burstiness: float = 1.0
    on_seconds: float = 10.0
    off_seconds: float = 10.0
    swing: float = 0.8
    period: float = 3600.0
    prompt_lengths: str = "lognormal:160:0.9:2048"
    output_lengths: str = "lognormal:120:0.8:1024"
    max_tokens: int | None = None
    num_prefixes: int = 8
    prefix_tokens: int = 400
    turns: int = 4
    think_seconds: float = 10.0
    tenants: int = 1
    deadline: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigurationError(f"--{name.replace('_', '-')} is {value}; it must be above 0")
        if not 0 <= self.swing <= 1:
            raise ConfigurationError(f"--swing is {self.swing}; it must be between 0 and 1")
        if self.arrivals == "trace" and self.trace is None:
            raise ConfigurationError("--arrivals trace needs --trace")
        parse_lengths(self.prompt_lengths, "--prompt-lengths")
        parse_lengths(self.output_lengths, "--output-lengths")

    def generator(self, purpose: str) -> random.Random:
        """One stream of draws for each purpose: changing one length leaves the arrivals as they were."""
        return random.Random(f"{self.seed}:{purpose}")

    def in_words(self) -> str:
        """For headings."""
        what = self.workload if self.trace is None else self.trace.name
        rate = "" if self.rate is None and self.trace is not None else f" {self.rate or RATE:g}/s"
        return f"{what}, {self.arrivals or ('poisson' if self.trace is None else 'trace')}{rate}, seed {self.seed}"


_POSITIVE = (
    "num_requests",
    "rate",
    "burstiness",
    "on_seconds",
    "off_seconds",
    "period",
    "max_tokens",
    "num_prefixes",
    "prefix_tokens",
    "turns",
    "think_seconds",
    "tenants",
    "deadline",
)


@dataclass(frozen=True)
class TwinConfig:
    """The engine that is simulated. What isn't given is as in the profile.

    Args:
        profile: file of `orcinus profile`, or `calibration`: 20 ms + 40 µs a prefill token + 0.2 ms a decode.
        policy: order of service.
        admission: on_demand (vLLM) or reserve (Orca).
        num_blocks: KV blocks in the pool.
        block_size: tokens a block.
        max_batch_tokens: token budget of an iteration.
        max_batch_size: most sequences in one iteration.
        lookahead: 1 schedules a decoding sequence again before its token is back.
        enable_prefix_caching: blocks that were computed for one prompt serve others that begin alike.
        num_host_blocks: blocks of the host's memory for KV that had to leave the device.
        num_disk_blocks: blocks of a file for the same.
        host_block_seconds: what a block's copy between device and host takes.
        disk_block_seconds: what it takes to read one from disk.
        num_stages: pipeline stages; each holds an equal part of the layers.
        num_slices: devices that share each layer.
        link_latency: seconds of a message between two devices.
        link_bytes_per_s: bandwidth between two devices.
        hidden_bytes: of one token's state, for what goes over links.
        num_layers: for the all-reduces between slices.
        baseline: a scheduler of the literature in place of ours.
        window_at: second of virtual time at which the report's window of iterations begins.
    """

    _: KW_ONLY
    profile: str = CALIBRATION_NAME
    policy: str | None = None
    admission: str | None = None
    num_blocks: int | None = None
    block_size: int | None = None
    max_batch_tokens: int | None = None
    max_batch_size: int | None = None
    lookahead: int | None = None
    enable_prefix_caching: bool | None = None
    num_host_blocks: int | None = None
    num_disk_blocks: int | None = None
    host_block_seconds: float | None = None
    disk_block_seconds: float | None = None
    num_stages: int = 1
    num_slices: int = 1
    link_latency: float = 0.0
    link_bytes_per_s: float = math.inf
    hidden_bytes: float = 0.0
    num_layers: int = 0
    baseline: BaselineName | None = None
    window_at: float | None = None

    def scheduler(self, base: SchedulerConfig) -> dict[str, object]:
        """What core is told in place of `base`."""
        given = {name: getattr(self, name, None) for name in base.__struct_fields__}
        return {name: value for name, value in given.items() if value is not None}
