"""Promise 2 for KV that was elsewhere: what comes back from host or disk gives the bits of a run that kept it all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from test_company import KERNELS, alone, engine, run
from test_company_cached import Cold, Warm, next_turns, options, sharing

from orcinus.core.clock import VirtualClock
from orcinus.core.journal import Restored
from orcinus.engine.build import build_engine
from orcinus.engine.config import EngineConfig
from orcinus.engine.loop import Engine

pytestmark = pytest.mark.slow

DTYPES = ("float32", "bfloat16")


def blocks_gib(count: float, dtype: str) -> float:
    """Memory for so many blocks of the random llama."""
    return count * 2 * 4 * 2 * 32 * 16 * (4 if dtype == "float32" else 2) / 2**30


def restored(engine: Engine) -> int:
    return sum(event.blocks for event in engine.scheduler.journal if isinstance(event, Restored))


def tight(model: Path, kernels: str, dtype: str, **changes: object) -> EngineConfig:
    """A pool that holds one of the longest requests and little more."""
    base = Warm(**options(model, kernels, dtype), **changes)
    return replace(base, kv_cache_gib=blocks_gib(16.5, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernels", KERNELS)
def test_preempted_and_swapped_is_as_good_as_alone(random_llama: Path, kernels: str, dtype: str) -> None:
    batch = sharing(8)
    cold = engine(Cold(**options(random_llama, kernels, dtype)))
    expected = alone(cold, batch)
    turns = next_turns(batch, expected)
    expected_turns = alone(cold, turns)

    swapping = engine(tight(random_llama, kernels, dtype, swap_space_gib=blocks_gib(200.5, dtype)))
    assert run(swapping, batch) == expected
    assert swapping.scheduler.journal.counts["Preempted"] > 0
    first = restored(swapping)
    assert first > 0, "whoever was preempted computed everything again"
    assert run(swapping, turns) == expected_turns, "the next turn, behind what is on the host by now"
    assert restored(swapping) > first
    assert swapping.scheduler.state.tiers.num_lost == 0

    ahead = engine(tight(random_llama, kernels, dtype, swap_space_gib=blocks_gib(5.5, dtype), lookahead=1))
    assert run(ahead, batch, arrivals_between_steps=2) == expected, "with look-ahead and little room on the host"
    assert run(ahead, turns) == expected_turns


def test_swapped_or_computed_again_by_cost(random_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a copy costs more than computing, nothing is copied, and the bits are the same."""
    batch = sharing(8)
    swapping = engine(tight(random_llama, "reference", "float32", swap_space_gib=blocks_gib(200.5, "float32")))
    answers = run(swapping, batch)
    dear = tight(random_llama, "reference", "float32", swap_space_gib=blocks_gib(200.5, "float32"))
    monkeypatch.setattr("orcinus.engine.build.HOST_BYTES_PER_SECOND", 1e3)
    recomputing = engine(dear)
    assert run(recomputing, batch) == answers
    assert recomputing.scheduler.journal.counts["Preempted"] > 0
    assert recomputing.scheduler.journal.counts["Spilled"] == 0
    assert restored(swapping) > 0 == restored(recomputing)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_engine_finds_on_disk_what_the_one_before_it_computed(
    random_llama: Path, dtype: str, tmp_path: Path
) -> None:
    batch = sharing(8)
    kernels = KERNELS[-1]
    cold = engine(Cold(**options(random_llama, kernels, dtype)))
    expected = alone(cold, batch)
    turns = next_turns(batch, expected)
    expected_turns = alone(cold, turns)
    config = Warm(**options(random_llama, kernels, dtype), kv_disk_path=str(tmp_path / "kv"), kv_disk_gib=0.05)
    # Slots are numbered behind the host's, of which there may be others next time.
    config = replace(config, swap_space_gib=blocks_gib(3.5, dtype))
    before = engine(config)
    assert run(before, batch) == expected
    assert restored(before) == 0
    before.close()
    after = engine(replace(config, lookahead=1, swap_space_gib=blocks_gib(7.5, dtype)))
    assert run(after, batch + turns) == expected | expected_turns
    assert restored(after) > 0
    assert after.scheduler.state.tiers.num_lost == 0
    after.close()
    others = [msgspec.structs.replace(request, tenant="another") for request in batch]
    foreign = engine(config)
    run(foreign, others)
    assert restored(foreign) == 0, "another tenant has found it"
    foreign.close()


class Ticking(VirtualClock):
    """Time goes on whenever somebody looks: iterations take some, the same in each run."""

    def now(self) -> float:
        self.advance_to(super().now() + 0.005)
        return super().now()


@pytest.mark.parametrize("dtype", DTYPES)
def test_swapped_ahead_of_its_turn_is_as_good_as_alone(random_llama: Path, dtype: str) -> None:
    """Under mlfq KV is copied out and fetched beside the work of others."""
    kernels = KERNELS[-1]
    batch = sharing(12)
    expected = alone(engine(Cold(**options(random_llama, kernels, dtype))), batch)
    changes = {"policy": "mlfq", "max_batch_size": 3, "swap_space_gib": blocks_gib(200.5, dtype)}
    for lookahead in (0, 1):
        ahead = build_engine(tight(random_llama, kernels, dtype, lookahead=lookahead, **changes), Ticking())[0]
        assert run(ahead, batch, arrivals_between_steps=1) == expected
        assert ahead.scheduler.journal.counts["Fetched"] > 0, "nothing came back ahead of its turn"
        ahead.close()
