"""Promise 2: a request's tokens and logprobs are the same bits whatever runs beside it and however it was run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from orcinus.core.clock import VirtualClock
from orcinus.core.plan import TokenLogprobs
from orcinus.core.request import Request, SamplingParams, pack_tokens
from orcinus.engine.build import build_engine
from orcinus.engine.config import EngineConfig
from orcinus.engine.loop import Engine
from orcinus.kernels import cpu

Answer = list[tuple[int, TokenLogprobs | None]]
KERNELS = ["reference", *(["cpu"] if cpu.available() else [])]
pytestmark = pytest.mark.slow

PARAMS = [
    SamplingParams(temperature=0, max_tokens=24, seed=1, logprobs=3),
    SamplingParams(temperature=1.0, max_tokens=24, seed=2, logprobs=0),
    SamplingParams(temperature=0.8, top_k=40, top_p=0.9, max_tokens=24, seed=3, logprobs=5),
    SamplingParams(
        temperature=0.7,
        repetition_penalty=1.2,
        presence_penalty=0.5,
        frequency_penalty=0.3,
        max_tokens=24,
        seed=4,
        logprobs=1,
    ),
    SamplingParams(temperature=0.9, min_p=0.05, logit_bias={5: 2.0}, min_tokens=8, max_tokens=24, seed=5, logprobs=2),
]


@pytest.fixture
def two_threads_after() -> Iterator[None]:
    """The number of threads belongs to the process; put it back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def requests(count: int, longest: int = 90) -> list[Request]:
    rng = random.Random(7)
    return [
        Request(
            request_id=f"r{i}",
            prompt=pack_tokens([rng.randrange(2, 1003) for _ in range(rng.randint(1, longest))]),
            params=msgspec.structs.replace(PARAMS[i % len(PARAMS)], seed=100 + i),
            eos_token_ids=(1,),
        )
        for i in range(count)
    ]


def engine(config: EngineConfig) -> Engine:
    return build_engine(config, VirtualClock())[0]


def run(engine: Engine, batch: list[Request], arrivals_between_steps: int = 10**6) -> dict[tuple[str, int], Answer]:
    """Every answer, by request and index. New requests come a few at a time, between iterations."""
    answers: dict[tuple[str, int], Answer] = {}
    waiting = list(batch)
    while True:
        for request in waiting[:arrivals_between_steps]:
            assert engine.add(request) == []
        del waiting[:arrivals_between_steps]
        progress = engine.step()
        if progress is None and not waiting:
            break
        for one in progress or ():
            assert one.error_code == ""
            answer = answers.setdefault((one.request_id, one.index), [])
            answer += zip(one.tokens, one.logprobs or [None] * len(one.tokens), strict=True)
    scheduler = engine.scheduler
    scheduler.check()
    assert scheduler.pool.num_free == scheduler.pool.num_blocks
    return answers


def alone(engine: Engine, batch: list[Request]) -> dict[tuple[str, int], Answer]:
    """Each request by itself in an empty engine."""
    return {key: answer for request in batch for key, answer in run(engine, [request]).items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.usefixtures("two_threads_after")
def test_alone_in_a_crowd_chunked_preempted_and_on_other_threads_give_the_same_bits(
    random_llama: Path, kernels: str, dtype: str
) -> None:
    base = EngineConfig(
        str(random_llama),
        dtype=dtype,
        kernels=kernels,
        max_batch_tokens=512,
        kv_cache_gib=0.05,
        max_model_len=256,
        threads=1,
    )
    # The native set is fast enough for more than 64 sequences; the other has its >64 rows from prompts.
    batch = requests(72 if kernels == "cpu" else 20)
    expected = alone(engine(base), batch)
    assert run(engine(base), batch) == expected, "in a crowd of more than 64"
    assert run(engine(base), batch, arrivals_between_steps=2) == expected, "joining while others run"
    chunked = engine(replace(base, max_batch_tokens=7, max_batch_size=5))
    assert run(chunked, batch[:20]) == {key: expected[key] for key in expected if int(key[0][1:]) < 20}, (
        "in chunks of 7"
    )
    assert run(engine(replace(base, threads=2)), batch) == expected, "on two threads"
    assert run(engine(replace(base, block_size=32)), batch[:20]) == {
        key: expected[key] for key in expected if int(key[0][1:]) < 20
    }, "with other blocks"
    block_bytes = 2 * 4 * 2 * 32 * 16 * (4 if dtype == "float32" else 2)
    tight = engine(replace(base, kv_cache_gib=20.5 * block_bytes / 2**30))
    assert run(tight, batch) == expected, "preempted"
    assert tight.scheduler.journal.counts["Preempted"] > 0
    reserving = engine(replace(base, admission="reserve", kv_cache_gib=30.5 * block_bytes / 2**30))
    assert run(reserving, batch) == expected, "under Orca's admission"


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("lookahead", [0, 1])
def test_resumed_from_any_point_the_rest_is_the_same(random_llama: Path, kernels: str, lookahead: int) -> None:
    config = EngineConfig(
        str(random_llama),
        dtype="bfloat16",
        kernels=kernels,
        max_batch_tokens=256,
        kv_cache_gib=0.05,
        max_model_len=256,
        lookahead=lookahead,
    )
    one = engine(config)
    for request in requests(len(PARAMS)):
        expected = run(one, [request])[request.request_id, 0]
        for done in (1, 5, len(expected) - 1):
            resumed = msgspec.structs.replace(request, resumed=(pack_tokens([token for token, _ in expected[:done]]),))
            assert run(one, [resumed])[request.request_id, 0] == expected[done:]


@pytest.mark.parametrize("kernels", KERNELS)
def test_each_of_n_answers_is_the_one_it_would_be_in_any_company(random_llama: Path, kernels: str) -> None:
    config = EngineConfig(
        str(random_llama), dtype="float32", kernels=kernels, max_batch_tokens=256, kv_cache_gib=0.05, max_model_len=256
    )
    one = engine(config)
    batch = [
        msgspec.structs.replace(request, params=msgspec.structs.replace(request.params, n=4, temperature=1.0))
        for request in requests(6)
    ]
    expected = alone(one, batch)
    assert len({tuple(token for token, _ in expected["r0", index]) for index in range(4)}) == 4, "answers differ"
    assert run(one, batch + [replace_id(request) for request in requests(30)]).items() >= expected.items()
    assert one.scheduler.journal.counts["Forked"] > 0


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_thousand_tokens_of_context_keep_their_bits(random_llama: Path, kernels: str) -> None:
    config = EngineConfig(
        str(random_llama),
        dtype="bfloat16",
        kernels=kernels,
        max_batch_tokens=2048,
        kv_cache_gib=0.1,
        max_model_len=1500,
    )
    rng = random.Random(1)
    long = Request(
        request_id="long",
        prompt=pack_tokens([rng.randrange(2, 1003) for _ in range(1200)]),
        params=SamplingParams(temperature=0, max_tokens=16, seed=0, logprobs=1, ignore_eos=True),
    )
    expected = run(engine(config), [long])
    assert run(engine(replace(config, max_batch_tokens=100)), [*requests(12), long]).items() >= expected.items()


def replace_id(request: Request) -> Request:
    return msgspec.structs.replace(request, request_id=f"other-{request.request_id}")
