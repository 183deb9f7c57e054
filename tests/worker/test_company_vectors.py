"""Promise 2 for vectors: the same bits alone, beside answers being generated, in chunks, preempted, on two threads."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from orcinus.core.clock import VirtualClock
from orcinus.core.request import Pooling, Request, SamplingParams, pack_tokens
from orcinus.engine.build import build_engine
from orcinus.engine.config import EngineConfig
from orcinus.engine.loop import Engine
from orcinus.kernels import cpu

KERNELS = ["reference", *(["cpu"] if cpu.available() else [])]
pytestmark = pytest.mark.slow


@pytest.fixture
def two_threads_after() -> Iterator[None]:
    """The number of threads belongs to the process; put it back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def prompt(rng: random.Random, longest: int) -> bytes:
    return pack_tokens([rng.randrange(2, 1003) for _ in range(rng.randint(1, longest))])


def vectors(count: int, pooling: Pooling) -> list[Request]:
    rng = random.Random(11)
    return [
        Request(request_id=f"v{i}", prompt=prompt(rng, 90), params=SamplingParams(), pooling=pooling)
        for i in range(count)
    ]


def answers(count: int) -> list[Request]:
    rng = random.Random(12)
    params = SamplingParams(temperature=0, max_tokens=12, seed=1, ignore_eos=True)
    return [Request(request_id=f"a{i}", prompt=prompt(rng, 60), params=params) for i in range(count)]


def run(engine: Engine, requests: list[Request]) -> dict[str, bytes]:
    """The vectors, by request."""
    found: dict[str, bytes] = {}
    for request in requests:
        assert engine.add(request) == []
    while (progress := engine.step()) is not None:
        for one in progress:
            assert one.error_code == ""
            if one.request_id.startswith("v"):
                found[one.request_id] = one.pooled
    return found


def build(config: EngineConfig) -> Engine:
    return build_engine(config, VirtualClock())[0]


def mixed(vectors: list[Request]) -> list[Request]:
    """Each vector between two answers."""
    return [request for pair in zip(vectors, answers(len(vectors)), strict=True) for request in pair]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", ["last", "mean", "cls"])
@pytest.mark.usefixtures("two_threads_after")
def test_a_vector_has_the_same_bits_in_any_company(random_llama: Path, kernels: str, dtype: str, kind: str) -> None:
    config = EngineConfig(
        str(random_llama),
        dtype=dtype,
        kernels=kernels,
        max_batch_tokens=512,
        kv_cache_gib=0.05,
        max_model_len=256,
        threads=1,
    )
    batch = vectors(16, Pooling(type=kind, whole=kind != "last"))
    one = build(config)
    expected = {key: value for request in batch for key, value in run(one, [request]).items()}
    assert len(set(expected.values())) == 16
    assert all(len(vector) == 4 * 160 for vector in expected.values())
    assert run(one, mixed(batch)) == expected
    assert run(build(replace(config, threads=2)), mixed(batch)) == expected
    assert run(build(replace(config, max_batch_tokens=96, max_batch_size=5)), mixed(batch)) == expected
    block_bytes = 2 * 4 * 2 * 32 * 16 * (4 if dtype == "float32" else 2)
    tight = build(replace(config, kv_cache_gib=16.5 * block_bytes / 2**30))
    assert run(tight, mixed(batch)) == expected


def test_a_vector_that_is_no_number_fails_its_own_request(random_llama: Path, tmp_path: Path) -> None:
    """One row of the embedding table is NaN."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(random_llama, tmp_path / "poisoned"))
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][7] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    engine = build(EngineConfig(str(folder), max_batch_tokens=64, kv_cache_gib=0.01, max_model_len=64))
    pooling = Pooling(type="mean")
    for name, tokens in (("good", [5, 6]), ("bad", [5, 7])):
        engine.add(Request(request_id=name, prompt=pack_tokens(tokens), params=SamplingParams(), pooling=pooling))
    ends = {}
    while (progress := engine.step()) is not None:
        ends |= {one.request_id: one.error_code for one in progress}
    assert ends == {"good": "", "bad": "numerical_error"}
