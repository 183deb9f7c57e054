"""Loads to simulate: independent requests, shared prefixes, conversations, and recorded traces."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from orcinus.bench.arrivals import stretched
from orcinus.bench.traces import TraceEntry
from orcinus.simulate.arrivals import diurnal, on_off, regular_or_bursty
from orcinus.simulate.config import COUNT, RATE, WorkloadConfig
from orcinus.simulate.jobs import Job
from orcinus.simulate.lengths import Lengths, parse_lengths
from orcinus.simulate.tokens import block_tokens, drawn_tokens, named_tokens
from orcinus.simulate.traces import Conversation, read_any_trace, read_conversations


def make_jobs(config: WorkloadConfig) -> Iterator[Job]:
    """The load, in order of arrival; equal for equal configurations.

    Raises:
        ConfigurationError: a trace that can't be read.
    """
    if config.trace is not None:
        jobs = _conversations(config) if config.trace.suffix == ".json" else _trace(config)
    elif config.workload == "shared-prefix":
        jobs = _shared_prefix(config)
    elif config.workload == "multi-turn":
        jobs = _multi_turn(config)
    else:
        jobs = _independent(config)
    return _with_owners(config, jobs)


def _with_owners(config: WorkloadConfig, jobs: Iterator[Job]) -> Iterator[Job]:
    for number, job in enumerate(jobs):
        turn: Job | None = job
        while turn is not None:
            turn.deadline = config.deadline
            turn.tenant = f"tenant-{number % config.tenants}" if config.tenants > 1 else ""
            turn = turn.follow_up
        yield job


def _instants(config: WorkloadConfig, count: int) -> Iterator[float]:
    rng, rate = config.generator("arrivals"), config.rate or RATE
    match config.arrivals:
        case "on-off":
            return on_off(count, rate, config.on_seconds, config.off_seconds, rng)
        case "diurnal":
            return diurnal(count, rate, config.swing, config.period, rng)
        case _:
            return regular_or_bursty(count, rate, config.burstiness, rng)


def _sizes(config: WorkloadConfig) -> tuple[Lengths, Lengths]:
    return (
        parse_lengths(config.prompt_lengths, "--prompt-lengths"),
        parse_lengths(config.output_lengths, "--output-lengths"),
    )


def _limit(config: WorkloadConfig, output: int, longest: int) -> int:
    """What the request asks for: an answer longer than that is cut."""
    return max(1, config.max_tokens or max(output, longest))


def _job(config: WorkloadConfig, at: float, prompt: bytes, output: int, longest: int) -> Job:
    limit = _limit(config, output, longest)
    return Job(at, prompt, min(output, limit), limit)


def _independent(config: WorkloadConfig) -> Iterator[Job]:
    prompts, outputs = _sizes(config)
    sizes, ids = config.generator("lengths"), config.generator("ids")
    for at in _instants(config, config.num_requests or COUNT):
        prompt = drawn_tokens(ids, prompts.draw(sizes))
        yield _job(config, at, prompt, outputs.draw(sizes), outputs.longest)


def _shared_prefix(config: WorkloadConfig) -> Iterator[Job]:
    """Which prefix is drawn, not dealt in turn: runs of the same one happen, as they do."""
    prompts, outputs = _sizes(config)
    sizes, ids, choices = (config.generator(purpose) for purpose in ("lengths", "ids", "choices"))
    prefixes = [named_tokens(f"{config.seed}:prefix:{i}", config.prefix_tokens) for i in range(config.num_prefixes)]
    for at in _instants(config, config.num_requests or COUNT):
        prompt = choices.choice(prefixes) + drawn_tokens(ids, prompts.draw(sizes))
        yield _job(config, at, prompt, outputs.draw(sizes), outputs.longest)


def _multi_turn(config: WorkloadConfig) -> Iterator[Job]:
    prompts, outputs = _sizes(config)
    sizes = config.generator("lengths")
    for number, at in enumerate(_instants(config, config.num_requests or COUNT)):
        turns = [(prompts.draw(sizes), outputs.draw(sizes)) for _ in range(config.turns)]
        yield _conversation(config, number, at, turns, outputs.longest)


def _conversation(config: WorkloadConfig, number: int, at: float, turns: Conversation, longest: int) -> Job:
    """A chain of turns: each prompt is all that was said before, and something new."""
    rng = config.generator(f"conversation:{number}")
    history, jobs = b"", list[Job]()
    for asked, answered in turns:
        prompt = history + drawn_tokens(rng, asked)
        limit = _limit(config, answered, longest)
        answer = drawn_tokens(rng, min(answered, limit))
        pause = rng.expovariate(1 / config.think_seconds)
        jobs.append(Job(pause if jobs else at, prompt, len(answer) // 4, limit, answers=(answer,)))
        history = prompt + answer
    for job, following in pairwise(jobs):
        job.follow_up = following
    return jobs[0]


def _trace(config: WorkloadConfig) -> Iterator[Job]:
    assert config.trace is not None
    entries = read_any_trace(config.trace)[: config.num_requests]
    own = config.generator("ids")
    longest = max(entry.num_output for entry in entries)
    for at, entry in zip(_trace_instants(config, entries), entries, strict=True):
        prompt = block_tokens(entry.block_ids, entry.num_prompt, config.seed, own)
        yield _job(config, at, prompt, max(1, entry.num_output), longest)


def _trace_instants(config: WorkloadConfig, entries: list[TraceEntry]) -> list[float]:
    if config.arrivals not in (None, "trace"):
        return list(_instants(config, len(entries)))
    instants = [entry.at for entry in entries]
    return instants if config.rate is None else stretched(instants, config.rate)


def _conversations(config: WorkloadConfig) -> Iterator[Job]:
    assert config.trace is not None
    talks = read_conversations(config.trace)[: config.num_requests]
    longest = max(answered for talk in talks for _, answered in talk)
    for number, (at, talk) in enumerate(zip(_instants(config, len(talks)), talks, strict=True)):
        yield _conversation(config, number, at, talk, longest)
