"""Promise 2 for what is found in the prefix cache: a hit gives the bits of a cold run, tokens and logprobs alike."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest
from test_company import KERNELS, PARAMS, Answer, alone, engine, run

from orcinus.core.config import SchedulerConfig
from orcinus.core.journal import CacheHit
from orcinus.core.request import Request, pack_tokens
from orcinus.engine.config import EngineConfig
from orcinus.engine.loop import Engine

pytestmark = pytest.mark.slow

SHARED = 37
Answers = dict[tuple[str, int], Answer]


@dataclass(frozen=True)
class Cold(EngineConfig):
    """Nothing is kept."""

    def scheduler_config(self, *, num_blocks: int, max_batch_tokens: int) -> SchedulerConfig:
        told = super().scheduler_config(num_blocks=num_blocks, max_batch_tokens=max_batch_tokens)
        return msgspec.structs.replace(told, enable_prefix_caching=False)


@dataclass(frozen=True)
class Warm(EngineConfig):
    """All is kept."""

    def scheduler_config(self, *, num_blocks: int, max_batch_tokens: int) -> SchedulerConfig:
        told = super().scheduler_config(num_blocks=num_blocks, max_batch_tokens=max_batch_tokens)
        return msgspec.structs.replace(told, enable_prefix_caching=True)


def options(model: Path, kernels: str, dtype: str) -> dict[str, object]:
    return {
        "model": str(model),
        "dtype": dtype,
        "kernels": kernels,
        "max_batch_tokens": 256,
        "kv_cache_gib": 0.05,
        "max_model_len": 256,
        "threads": 1,
    }


def sharing(count: int) -> list[Request]:
    """Prompts that begin alike, for two blocks or three or more, and part inside a block or at its end."""
    rng = random.Random(8)
    prefix = [rng.randrange(2, 1003) for _ in range(SHARED + 30)]
    requests = []
    for i in range(count):
        kept = rng.choice([16, 32, SHARED, 48, SHARED + 30])
        own = [rng.randrange(2, 1003) for _ in range(rng.choice([0, 1, 11, 12, 30]))]
        params = msgspec.structs.replace(PARAMS[i % len(PARAMS)], seed=200 + i)
        requests.append(Request(request_id=f"s{i}", prompt=pack_tokens(prefix[:kept] + own), params=params))
    return requests


def next_turns(requests: list[Request], answers: Answers) -> list[Request]:
    """Each chat goes on after its answer."""
    rng = random.Random(9)
    turns = []
    for request in requests:
        said = [token for token, _ in answers[request.request_id, 0]]
        prompt = request.prompt + pack_tokens([*said, *(rng.randrange(2, 1003) for _ in range(5))])
        turns.append(msgspec.structs.replace(request, request_id=f"{request.request_id}-next", prompt=prompt))
    return turns


def hit_tokens(engine: Engine) -> int:
    return sum(event.tokens for event in engine.scheduler.journal if isinstance(event, CacheHit))


@pytest.mark.parametrize(
    ("kernels", "dtype"), [(kernels, "float32" if kernels == "reference" else "bfloat16") for kernels in KERNELS]
)
def test_a_hit_gives_the_bits_of_a_cold_run(random_llama: Path, kernels: str, dtype: str) -> None:
    cold = engine(Cold(**options(random_llama, kernels, dtype)))
    batch = sharing(8)
    expected = alone(cold, batch)
    turns = next_turns(batch, expected)
    expected_turns = alone(cold, turns)
    assert hit_tokens(cold) == 0

    warm = engine(base := Warm(**options(random_llama, kernels, dtype)))
    assert run(warm, batch) == expected, "all at once, sharing what others have just computed"
    assert hit_tokens(warm) >= 7 * 16
    assert run(warm, turns) == expected_turns, "the next turn, behind its own answer"
    long = sum(len(request.prompt) // 64 * 16 for request in batch)
    assert hit_tokens(warm) > long
    assert run(warm, batch + turns, arrivals_between_steps=2) == expected | expected_turns, "once more, all cached"

    chunked = engine(replace(base, max_batch_tokens=7, max_batch_size=5))
    assert run(chunked, batch) == expected, "in chunks of 7"
    assert run(chunked, turns) == expected_turns, "in chunks of 7, behind cached answers"
    block_bytes = 2 * 4 * 2 * 32 * 16 * (4 if dtype == "float32" else 2)
    tight = engine(replace(base, kv_cache_gib=16.5 * block_bytes / 2**30))
    assert run(tight, batch) == expected, "preempted and back behind what is left"
    counts = tight.scheduler.journal.counts
    assert min(counts["Preempted"], counts["Evicted"], counts["CacheHit"]) > 0
    ahead = engine(replace(base, lookahead=1))
    assert run(ahead, batch) == expected, "with look-ahead"
    assert run(ahead, turns) == expected_turns, "with look-ahead, behind cached answers"


@pytest.mark.parametrize("kernels", KERNELS)
def test_each_of_n_answers_and_a_resumed_one_are_the_cold_ones(random_llama: Path, kernels: str) -> None:
    cold = engine(Cold(**options(random_llama, kernels, "float32")))
    warm = engine(Warm(**options(random_llama, kernels, "float32")))
    batch = [
        msgspec.structs.replace(r, params=msgspec.structs.replace(r.params, n=3, temperature=1.0)) for r in sharing(4)
    ]
    expected = alone(cold, batch)
    assert run(warm, batch) == expected
    assert run(warm, batch) == expected, "prompt cached whole"
    for request in batch[:2]:
        done = [expected[request.request_id, index][:9] for index in range(3)]
        resumed = tuple(pack_tokens([token for token, _ in line]) for line in done)
        rest = run(warm, [msgspec.structs.replace(request, resumed=resumed)])
        assert rest == {(request.request_id, i): expected[request.request_id, i][9:] for i in range(3)}
    assert warm.scheduler.journal.counts["CacheHit"] > 5


@pytest.mark.parametrize("kernels", KERNELS)
def test_identical_requests_at_once_end_up_on_the_same_blocks_with_the_same_bits(
    random_llama: Path, kernels: str
) -> None:
    """Greedy twins fill the same blocks in the same iterations; the second one's table is moved to the first one's."""
    cold = engine(Cold(**options(random_llama, kernels, "bfloat16")))
    warm = engine(Warm(**options(random_llama, kernels, "bfloat16"), lookahead=1))
    params = msgspec.structs.replace(PARAMS[0], max_tokens=60, ignore_eos=True)
    one = msgspec.structs.replace(sharing(1)[0], params=params)
    twins = [msgspec.structs.replace(one, request_id=f"twin{i}") for i in range(4)]
    (expected,) = run(cold, [one]).values()
    answers = run(warm, twins)
    assert list(answers.values()) == [expected] * 4
    whole = (len(one.prompt) // 4 + 59) // 16
    assert warm.scheduler.pool.num_cached == whole, "four answers, and the blocks of one"
