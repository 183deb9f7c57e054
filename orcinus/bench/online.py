"""`orcinus bench online`: from what the user chose to the figures."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from orcinus.bench.arrivals import gamma_arrivals, stretched
from orcinus.bench.asks import Ask, Observation, is_ids
from orcinus.bench.client import StreamingClient
from orcinus.bench.config import OnlineConfig
from orcinus.bench.datasets import (
    Dataset,
    Lengths,
    TextMaker,
    jsonl_dataset,
    random_dataset,
    trace_dataset,
    workload_dataset,
)
from orcinus.bench.endpoint import Target, connections, served_model
from orcinus.bench.figures import OnlineFigures, summarise
from orcinus.bench.goal import Goal
from orcinus.bench.load import Heartbeat, open_loop
from orcinus.bench.workloads import WORKLOADS
from orcinus.errors import ConfigurationError
from orcinus.text.tokenizer import Tokenizer

# Enough for a p99 that is more than the maximum, few enough for a laptop.
_RANDOM_PROMPTS = 100


@dataclass(frozen=True, slots=True)
class OnlineRun:
    """A finished run: what was asked for, the figures, and what they were made of."""

    config: OnlineConfig
    goal: Goal
    model: str
    figures: OnlineFigures
    observations: list[Observation]


def load_dataset(config: OnlineConfig) -> Dataset:
    """The requests that the configuration names, in order.

    Raises:
        ConfigurationError: a file that can't be used, or more prompts than there are.
    """
    tokenizer = None if config.tokenizer is None else _tokenizer(config.tokenizer)
    known = config.vocab_size if tokenizer is None else tokenizer.vocab_size
    vocab_size = min(config.vocab_size, known)
    texts = TextMaker(tokenizer) if config.endpoint == "chat" else None
    match config.dataset:
        case "random":
            lengths = Lengths(config.input_len, config.input_sigma, config.output_len, config.output_sigma)
            count = config.num_prompts or _RANDOM_PROMPTS
            dataset = random_dataset(count, lengths, vocab_size, config.seed, texts)
        case "jsonl":
            assert config.dataset_path is not None
            dataset = jsonl_dataset(config.dataset_path, config.output_len, chat=config.endpoint == "chat")
        case "trace":
            assert config.dataset_path is not None
            dataset = trace_dataset(config.dataset_path, vocab_size, config.seed, texts)
        case name:
            assert name in WORKLOADS
            dataset = workload_dataset(name, config.seed, vocab_size, texts)
    return dataset.first(config.num_prompts)


def _tokenizer(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.load(folder)
    if tokenizer is None:
        raise ConfigurationError(f"--tokenizer {folder}: no tokenizer.json there")
    return tokenizer


def draw_arrivals(config: OnlineConfig, dataset: Dataset) -> list[float]:
    """Seconds from the start at which each request is to leave; all drawn before the first one does."""
    if config.from_trace:
        assert dataset.instants is not None
        given = config.request_rate
        return dataset.instants if given is None else stretched(dataset.instants, given)
    rate = math.inf if config.request_rate is None else config.request_rate
    return gamma_arrivals(len(dataset.asks), rate, config.burstiness, random.Random(f"{config.seed}:arrivals"))


async def run_online(config: OnlineConfig, goal: Goal, api_key: str | None) -> OnlineRun:
    """Load, probe, measure.

    Raises:
        ConfigurationError: nothing that answers, or nothing that could be asked of it.
    """
    percentiles = config.percentile_list
    dataset = load_dataset(config)
    arrivals = draw_arrivals(config, dataset)
    async with connections(api_key, config.timeout) as session:
        model = config.model or await served_model(session, config.base_url)
        target = Target(
            base_url=config.base_url,
            model=model,
            kind=config.endpoint,
            temperature=config.temperature,
            ignore_eos=config.ignore_eos,
        )
        client = StreamingClient(session, target)
        await _probe(client, target, dataset.asks)
        async with Heartbeat() as heartbeat:
            observations = await _measure(client, dataset.asks, arrivals, config.max_concurrency)
    figures = summarise(observations, heartbeat.stalls, dataset.prompt_lengths, goal, percentiles)
    return OnlineRun(config, goal, model, figures, observations)


async def _probe(client: StreamingClient, target: Target, asks: Sequence[Ask]) -> None:
    """A short request that isn't measured: a wrong address, model or vocabulary shows here, before the load."""
    highest = max((max(ask.prompt) for ask in asks if is_ids(ask.prompt)), default=None)
    observation = Observation(scheduled_at=0.0, released_at=0.0)
    await client.send(Ask("Hello" if highest is None else [highest] * 4, max_tokens=2), observation)
    if observation.failure is None:
        return
    hint = f" (asked with token id {highest}: --vocab-size sets how high they go, --endpoint chat sends text)"
    raise ConfigurationError(
        f"{target.url} doesn't serve {target.model!r}. {observation.failure}{'' if highest is None else hint}"
    )


async def _measure(
    client: StreamingClient, asks: Sequence[Ask], arrivals: Sequence[float], max_concurrency: int | None
) -> list[Observation]:
    failed = 0
    with tqdm(total=len(asks), unit="request", desc="answers", disable=None, dynamic_ncols=True) as bar:

        def ended(observation: Observation) -> None:
            nonlocal failed
            bar.update()
            if observation.failure is not None:
                failed += 1
                bar.set_postfix(failed=failed)

        return await open_loop(asks, arrivals, client.send, max_concurrency=max_concurrency, on_end=ended)
