"""`orcinus bench offline`: W1 to W4 through the offline library, all requests of a workload at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from tqdm import tqdm

from orcinus.bench.workloads import LARGE_MODEL, LARGE_MODEL_REQUESTS, Job, warm_up, workload
from orcinus.core.request import SamplingParams
from orcinus.engine.config import EngineConfig
from orcinus.engine.messages import EngineDescription
from orcinus.errors import ConfigurationError

if TYPE_CHECKING:
    from orcinus.llm import LLM

# What each workload is about; the names are those of the peers' scripts, so that figures can be laid side by side.
FIGURES = {
    "W1": ("gen_tok_s", "total_tok_s"),
    "W2": ("ttft_ms", "tpot_ms"),
    "W3": ("gen_tok_s", "total_tok_s"),
    "W4": ("prefill_tok_s",),
}
_FIRST_SEED = 1000


@dataclass(frozen=True, slots=True)
class Repeat:
    """One run of one workload; `ttft` is of the first request to get a token, seconds."""

    prompt_tokens: int
    gen_tokens: int
    wall: float
    ttft: float

    @property
    def gen_tok_s(self) -> float:
        """Generated tokens a second."""
        return self.gen_tokens / self.wall

    @property
    def total_tok_s(self) -> float:
        """Prompt and generated tokens a second."""
        return (self.prompt_tokens + self.gen_tokens) / self.wall

    @property
    def prefill_tok_s(self) -> float:
        """Prompt tokens a second."""
        return self.prompt_tokens / self.wall

    @property
    def ttft_ms(self) -> float:
        """Submitted to first token."""
        return self.ttft * 1000

    @property
    def tpot_ms(self) -> float:
        """Mean of the tokens after the first; for one request alone."""
        return (self.wall - self.ttft) / (self.gen_tokens - 1) * 1000


@dataclass(frozen=True, slots=True)
class WorkloadResult:
    """The repeats of one workload."""

    name: str
    num_requests: int
    repeats: list[Repeat]

    def values(self, figure: str) -> list[float]:
        """One of `FIGURES`, by repeat."""
        return [float(getattr(repeat, figure)) for repeat in self.repeats]


@dataclass(frozen=True, slots=True)
class OfflineRun:
    """What ran where. `left_out` says of each workload that couldn't run why."""

    version: str
    engine: EngineDescription
    results: list[WorkloadResult]
    left_out: dict[str, str]


def run_offline(engine: EngineConfig, workloads: Sequence[str], repeats: int) -> OfflineRun:
    """Load the model once; each workload warms up and then runs `repeats` times with new ids.

    Raises:
        ConfigurationError: no such workload, or no repeat.
    """
    unknown = [name for name in workloads if name not in FIGURES]
    if unknown or not workloads:
        raise ConfigurationError(f"--workloads {' '.join(unknown)}: known are {', '.join(FIGURES)}")
    if repeats < 1:
        raise ConfigurationError(f"--repeats is {repeats}; it must be at least 1")
    # torch takes seconds to import, so a mistyped workload doesn't wait for it.
    from orcinus.llm import LLM

    with LLM(**asdict(engine)) as llm:
        return measure(llm, workloads, repeats)


def measure(llm: LLM, workloads: Sequence[str], repeats: int) -> OfflineRun:
    """All the workloads that fit into the model's context."""
    description = llm.engine_description
    left_out = {name: reason for name in workloads if (reason := _misfit(name, description)) is not None}
    fitting = [name for name in workloads if name not in left_out]
    with tqdm(total=len(fitting) * (repeats + 1), unit="run", disable=None, dynamic_ncols=True) as bar:
        results = [_measure_one(llm, name, repeats, bar) for name in fitting]
    return OfflineRun(metadata.version("orcinus-llm"), description, results, left_out)


def _misfit(name: str, description: EngineDescription) -> str | None:
    longest = max(len(job.prompt) + job.num_output for job in workload(name, _FIRST_SEED))
    if longest <= description.max_sequence_tokens:
        return None
    return f"a request of {longest} tokens, the engine takes {description.max_sequence_tokens}"


def _measure_one(llm: LLM, name: str, repeats: int, bar: tqdm[object]) -> WorkloadResult:
    vocab_size = llm.engine_description.vocab_size
    limit = LARGE_MODEL_REQUESTS if llm.engine_description.num_parameters >= LARGE_MODEL else None
    bar.set_description(name)
    measured = []
    for repeat in range(repeats + 1):
        make = workload if repeat else warm_up
        measured.append(_run_once(llm, make(name, _FIRST_SEED + repeat, vocab_size)[:limit]))
        bar.update()
    return WorkloadResult(name, len(workload(name, _FIRST_SEED)[:limit]), measured[1:])


def _run_once(llm: LLM, jobs: Sequence[Job]) -> Repeat:
    params = [SamplingParams(temperature=0, max_tokens=job.num_output, ignore_eos=True) for job in jobs]
    begun = time.perf_counter()
    outputs = llm.generate([job.prompt for job in jobs], params, use_tqdm=False)
    wall = time.perf_counter() - begun
    counts = [len(output.outputs[0].token_ids) for output in outputs]
    assert counts == [job.num_output for job in jobs], "an engine that ignores end tokens gives every token asked for"
    ttft = min(output.metrics.ttft for output in outputs if output.metrics.ttft is not None)
    return Repeat(sum(len(job.prompt) for job in jobs), sum(counts), wall, ttft)
