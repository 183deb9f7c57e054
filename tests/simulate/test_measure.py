"""Profiling a real engine: what is timed is what ran."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from orcinus.cli.profile import profile
from orcinus.engine.build import build_engine
from orcinus.engine.clock import MonotonicClock
from orcinus.engine.config import EngineConfig
from orcinus.simulate.cost import Features
from orcinus.simulate.measure import _Runner, even, mixed
from orcinus.simulate.profile import read_profile

pytestmark = pytest.mark.slow
CONFIG = EngineConfig(
    str(Path(__file__).parents[2] / "models" / "orcinus-tiny"), threads=1, kv_cache_gib=0.1, max_batch_tokens=64
)


def test_every_token_of_a_round_is_in_one_sample():
    engine, description = build_engine(CONFIG, MonotonicClock())
    runner = _Runner(engine, description, random.Random(1), time.process_time)
    for each in (even(3, 20), even(5, 100), even(1, 7), mixed(4, random.Random(2))):
        samples = runner.run(each)
        prompts, answers = (sum(lengths) for lengths in zip(*each.asked, strict=True))
        assert sum(s.features.tokens for s in samples) == prompts + answers - len(each.asked)
        assert sum(s.features.prefill_tokens for s in samples) == prompts
        assert sum(s.features.rows for s in samples) == answers
        assert all(s.features.tokens <= 64 for s in samples)
        assert all(s.features.decodes <= each.batch for s in samples)
        assert all(s.seconds > 0 for s in samples)
        assert sum(s.features.pairs for s in samples) == sum(n * (n + 1) // 2 for n, _ in each.asked)
    engine.close()


def test_the_command_writes_a_profile_of_this_machine(tmp_path, capsys):
    output = tmp_path / "tiny.json"
    assert profile(CONFIG, output=output, seconds=4.0, processor_time=True) == 0
    assert "left out of the fit" in capsys.readouterr().out
    found = read_profile(str(output))
    assert found.scheduler is not None
    assert found.scheduler.max_batch_tokens == 64
    assert found.fingerprint
    assert found.cost.seconds(Features(tokens=1, decodes=1, context=10, rows=1)) > 0
    assert found.residuals is not None
    assert found.residuals.count > 0
