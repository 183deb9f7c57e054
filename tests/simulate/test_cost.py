"""Cost models by hand, and the fit against an exhaustive search."""

from __future__ import annotations

import itertools
import random

import msgspec
import numpy as np
import pytest

from orcinus.core.config import SchedulerConfig
from orcinus.core.plan import Erase, IterationPlan, Output, SwapIn, SwapOut, Work
from orcinus.errors import ConfigurationError
from orcinus.simulate.cost import (
    CALIBRATION,
    Features,
    LinearCost,
    Link,
    Machine,
    MeasuredCost,
    RooflineCost,
    features_of,
)
from orcinus.simulate.executor import Modelled
from orcinus.simulate.fit import Sample, fit, nonnegative_least_squares, residuals
from orcinus.simulate.profile import Profile, read_profile, write_profile


def test_features_count_query_key_pairs_one_by_one():
    work = (
        Work(0, 0, 5, b"", Output.NOTHING),
        Work(1, 32, 16, b"", Output.SAMPLE),
        Work(2, 7, 1, b"", Output.SAMPLE),
        Work(3, 0, 1, b"", Output.SAMPLE),
    )
    pairs = sum(1 for w in work if w.seq_id != 2 for q in range(w.start, w.start + w.num_tokens) for _ in range(q + 1))
    found = features_of(IterationPlan(0, 0, work))
    assert found == Features(tokens=23, prefill_tokens=22, decodes=1, context=8, pairs=pairs, rows=3)


def test_the_calibration_model_is_the_one_of_systems_md():
    assert CALIBRATION.seconds(Features(tokens=130, prefill_tokens=100, decodes=30)) == pytest.approx(0.030)


def test_a_roofline_has_two_slopes():
    """Few rows cost the weights' bytes, many rows cost arithmetic; they meet at flops / bandwidth."""
    cost = RooflineCost.of_decoder(
        num_layers=2,
        hidden_size=64,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=128,
        vocab_size=0,
        flops_per_s=1e12,
        bytes_per_s=1e10,
    )
    parameters = 2 * (64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 128)
    assert cost.num_parameters == parameters
    assert cost.seconds(Features(tokens=1)) == cost.seconds(Features(tokens=99)) == parameters * 2 / 1e10
    assert cost.seconds(Features(tokens=1000)) == pytest.approx(2 * parameters * 1000 / 1e12)
    kv = cost.seconds(Features(tokens=1, context=500)) - cost.seconds(Features(tokens=1))
    assert kv == pytest.approx(500 * 2 * 2 * 2 * 16 * 2 / 1e10)


def test_slices_share_the_work_and_pay_for_the_reductions():
    link = Link(latency=1e-5, bytes_per_s=1e9)
    machine = Machine(cost=LinearCost(token=1e-3), num_slices=4, slice_link=link, hidden_bytes=400.0, num_layers=3)
    reductions = 2 * 3 * 6 * (1e-5 + 10 * 100 / 1e9)
    assert machine.stage_seconds(Features(tokens=10)) == pytest.approx(0.010 / 4 + reductions)


def test_a_broken_line_passes_through_its_knots():
    cost = MeasuredCost(knots=(1, 8, 64), heights=(1.0, 2.0, 10.0))
    assert [cost.seconds(Features(tokens=t)) for t in (1, 8, 64)] == [1.0, 2.0, 10.0]
    assert cost.seconds(Features(tokens=36)) == pytest.approx(6.0)
    assert cost.seconds(Features(tokens=120)) == pytest.approx(18.0), "the last slope goes on"


@pytest.mark.parametrize("seed", range(20))
def test_nonnegative_least_squares_finds_what_trying_every_subset_finds(seed):
    rng = np.random.default_rng(seed)
    columns, values = rng.normal(size=(12, 6)), rng.normal(size=12)
    best = min(_subset_errors(columns, values))
    found = nonnegative_least_squares(columns, values)
    assert (found >= 0).all()
    assert float(((columns @ found - values) ** 2).sum()) == pytest.approx(best, rel=1e-9)


def _subset_errors(columns, values):
    yield float((values**2).sum())
    for size in range(1, columns.shape[1] + 1):
        for subset in itertools.combinations(range(columns.shape[1]), size):
            part = columns[:, subset]
            solution = np.linalg.lstsq(part, values, rcond=None)[0]
            if (solution >= 0).all():
                yield float(((part @ solution - values) ** 2).sum())


def random_features(rng: random.Random) -> Features:
    decodes, prefill = rng.choice((0, 1, 5, 32, 64)), rng.choice((0, 16, 100, 400))
    if not decodes and not prefill:
        decodes = 2
    context = sum(rng.randint(1, 900) for _ in range(decodes))
    return Features(
        decodes + prefill, prefill, decodes, context, prefill * rng.randint(1, 500), decodes + rng.randint(0, 2)
    )


def test_a_fit_recovers_a_machine_through_noise_and_interruptions():
    """Tiles and attention made up; a tenth of the iterations take up to four times as long, as on a busy machine."""
    rng = random.Random(5)

    def truth(f: Features) -> float:
        return 0.002 + 1e-4 * -(-f.tokens // 32) * 32**0.5 + 2e-7 * f.context + 3e-8 * f.pairs + 1e-5 * f.rows

    def measured(f: Features) -> Sample:
        slow = rng.uniform(1.5, 4) if rng.random() < 0.1 else 1.0
        return Sample(f, truth(f) * slow * rng.gauss(1.0, 0.01))

    cost = fit([measured(random_features(rng)) for _ in range(1500)])
    unseen = [Sample(f, truth(f)) for f in (random_features(rng) for _ in range(300))]
    off = residuals(cost, unseen)
    assert off.p50 < 0.02
    assert off.p95 < 0.08
    assert abs(off.bias) < 0.02


def test_more_tokens_never_cost_less():
    rng = random.Random(1)
    samples = [Sample(random_features(rng), rng.uniform(0.001, 0.01)) for _ in range(200)]
    cost = fit(samples)
    heights = [cost.seconds(Features(tokens=tokens)) for tokens in range(1, 500)]
    assert heights == sorted(heights)


def test_too_few_iterations_are_refused():
    with pytest.raises(ConfigurationError, match="too few"):
        fit([Sample(Features(1), 0.1)] * 3)


def test_a_profile_is_read_as_it_was_written(tmp_path):
    profile = Profile(cost=MeasuredCost(knots=(1, 2), heights=(0.1, 0.2)), name="here", num_iterations=7)
    write_profile(tmp_path / "profile.json", profile)
    assert read_profile(str(tmp_path / "profile.json")) == profile


def test_a_cost_model_alone_is_a_profile(tmp_path):
    file = tmp_path / "gpu.json"
    file.write_bytes(msgspec.json.encode(LinearCost(constant=0.5)))
    assert read_profile(str(file)).cost == LinearCost(constant=0.5)


@pytest.mark.parametrize("content", [b"{}", b"[1]", b"no json", None])
def test_what_is_no_profile_is_refused(tmp_path, content):
    file = tmp_path / "profile.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"profile\.json"):
        read_profile(str(file))


def test_copies_take_what_core_believes_they_take() -> None:
    config = SchedulerConfig(
        num_blocks=4,
        enable_prefix_caching=True,
        num_host_blocks=2,
        num_disk_blocks=2,
        host_block_seconds=0.5,
        disk_block_seconds=2.0,
    )
    pace = Modelled(Machine(cost=CALIBRATION), config)
    assert pace.copies([SwapOut(0, 1, 3), SwapIn(1, 1, 2, 7)]) == 1.0
    assert pace.copies([SwapOut(2, 1, 3), SwapIn(3, 1, 2, 7), Erase(2)]) == 2.0, "the disk is written beside the work"
    assert pace.copies([]) == 0.0
