"""An iteration shows its progress layer by layer, so that a long one isn't taken for a hanging engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from orcinus.core.clock import VirtualClock
from orcinus.core.request import Request, SamplingParams, pack_tokens
from orcinus.engine.build import build_engine
from orcinus.engine.config import EngineConfig

LAYERS = 4
# Of a foreign model it is its tiles of rows.
TILE = 32


@pytest.mark.slow
@pytest.mark.parametrize(("implementation", "parts"), [("orcinus", LAYERS), ("transformers", 100 // TILE + 1)])
def test_each_part_of_an_iteration_counts(random_llama: Path, implementation: str, parts: int) -> None:
    config = EngineConfig(
        str(random_llama),
        model_impl=implementation,
        dtype="float32",
        max_batch_tokens=128,
        max_model_len=256,
        kv_cache_gib=0.01,
        threads=1,
    )
    prompt, params = pack_tokens(range(2, 102)), SamplingParams(temperature=0, max_tokens=2)
    request = Request(request_id="a", prompt=prompt, params=params, eos_token_ids=(1,))
    beats: list[None] = []
    engine, _ = build_engine(config, VirtualClock(), on_progress=lambda: beats.append(None))
    try:
        engine.add(request)
        beats.clear()
        while not engine.step():
            pass
        assert len(beats) == parts
    finally:
        engine.close()
