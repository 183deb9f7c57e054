"""What iterations take is learnt from what they took; the token budget keeps to a target by it."""

from __future__ import annotations

import random

import numpy as np
import pytest
from core_harness import World, make_request

from orcinus.core.config import SchedulerConfig
from orcinus.core.journal import Scheduled
from orcinus.core.pace import Pace, TokenBudget, pairs_of


def test_prices_are_found_through_noise_and_kept_through_monotony():
    pace, rng = Pace(), random.Random(1)
    for _ in range(300):
        decodes, tokens = rng.randrange(32), rng.choice([0, 0, 128, 512])
        pace.observe(decodes, tokens, (0.02 + 4e-5 * tokens + 2e-4 * decodes) * rng.uniform(0.97, 1.03))
    for _ in range(3000):
        pace.observe(16, 0, 0.0232 * rng.uniform(0.97, 1.03))
    assert pace.decode_seconds() == pytest.approx(0.0202, rel=0.03)
    assert pace.prefill_seconds(512) == pytest.approx(0.02 + 512 * 4e-5, rel=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_the_fit_is_that_of_least_squares_in_which_the_past_fades(seed):
    """numpy solves it at one go: relative errors, each iteration worth a two-hundredth less than the next."""
    pace, rng, count = Pace(), random.Random(seed), 700
    rows, seconds = np.empty((count, 4)), np.empty(count)
    for number in range(count):
        decodes, tokens = rng.randrange(65), rng.choice([0, 16, 128, 512])
        pairs = tokens * rng.randrange(4000)
        rows[number] = 1, decodes, tokens, pairs
        seconds[number] = (0.02 + 4e-5 * tokens + 2e-4 * decodes + 1e-8 * pairs) * rng.uniform(0.7, 1.3)
        pace.observe(decodes, tokens, seconds[number], pairs)
    weights = 0.995 ** (np.arange(count)[::-1] / 2)
    prices = np.linalg.lstsq(rows / seconds[:, None] * weights[:, None], weights, rcond=None)[0]
    for work in ((0, 0, 0), (1, 0, 0), (0, 64, 5000), (64, 512, 1_000_000), (7, 300, 0)):
        assert pace.seconds(*work) == pytest.approx(prices @ (1, *work), rel=1e-3)
    assert pace.prefill_seconds(100) == pytest.approx(prices @ (1, 0, 100, 5050), rel=1e-3)
    assert pace.depth_price == pytest.approx(prices[3] / prices[2], rel=1e-2)
    assert pace.prefill_within(0.05, 5) == pytest.approx((0.05 - prices @ (1, 5, 0, 0)) / prices[2], rel=1e-2)
    assert pace.padding(20) == pytest.approx(0.02 * (prices @ (1, 20, 0, 0)) / max(prices[1:3]), rel=1e-2)


def test_it_follows_a_machine_that_slows_down():
    pace, rng = Pace(), random.Random(1)
    for speed in (1.0, 3.0):
        for _ in range(2000):
            decodes, tokens = rng.randrange(32), rng.choice([0, 64, 512])
            pace.observe(decodes, tokens, speed * (0.02 + 4e-5 * tokens + 2e-4 * decodes))
    assert pace.seconds(16, 512) == pytest.approx(3 * (0.02 + 512 * 4e-5 + 0.0032), rel=0.01)


def test_a_few_iterations_that_differ_are_enough_where_nothing_disturbs():
    pace = Pace()
    for decodes, tokens in ((1, 0), (16, 0), (4, 128), (9, 512), (30, 64), (0, 300)):
        pace.observe(decodes, tokens, 0.02 + 4e-5 * tokens + 2e-4 * decodes)
    for decodes, tokens in ((0, 0), (64, 0), (0, 1000)):
        assert pace.seconds(decodes, tokens) == pytest.approx(0.02 + 4e-5 * tokens + 2e-4 * decodes, rel=0.01)


def test_what_was_learnt_long_ago_is_forgotten():
    """About the last 200 iterations count, however many came before."""
    pace, rng = Pace(), random.Random(1)
    for speed, count in ((1.0, 6000), (3.0, 2000)):
        for _ in range(count):
            decodes, tokens = rng.randrange(32), rng.choice([0, 64, 512])
            pace.observe(decodes, tokens, speed * (0.02 + 4e-5 * tokens + 2e-4 * decodes))
    assert pace.seconds(16, 512) == pytest.approx(3 * (0.02 + 512 * 4e-5 + 0.0032), rel=0.02)


def test_a_plan_in_flight_knows_its_decodes_and_prompt_tokens():
    world = World(SchedulerConfig(num_blocks=200, block_size=4, max_batch_tokens=64))
    world.add(make_request("a", 10, 9))
    world.advance()
    plan = world.scheduler.state.in_flight[-1]
    assert (plan.decodes, plan.prefill_tokens, plan.prefill_pairs) == (0, 10, 55)
    world.collect()
    world.add(make_request("b", 7, 9, seed=2))
    world.advance()
    plan = world.scheduler.state.in_flight[-1]
    assert (plan.decodes, plan.prefill_tokens, plan.prefill_pairs) == (1, 7, 28)
    world.drain()


class Noting(Pace):
    """It remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[float] = []

    def observe(self, decodes: int, prefill_tokens: int, seconds: float, pairs: int = 0) -> None:
        self.told.append(seconds)


def test_an_iteration_takes_from_its_plan_or_from_the_end_of_the_one_before():
    """With several in flight, the next one begins when the last one is done."""
    world = World(SchedulerConfig(num_blocks=200, block_size=4, num_stages=3, policy="mlfq"))
    world.scheduler.state.pace = pace = Noting()
    issued, ended = [], []
    for number in range(3):
        world.add(make_request(f"r{number}", 10, 1, seed=number))
        world.advance()
        issued.append(world.now)
    for _ in range(3):
        world.collect()
        ended.append(world.now)
    assert pace.told == [ended[0] - issued[0], ended[1] - ended[0], ended[2] - ended[1]]
    world.add(make_request("late", 10, 1))
    world.advance()
    issued.append(world.now)
    world.collect()
    assert pace.told[-1] == world.now - issued[-1]


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_clock_that_jumped_teaches_nothing(seconds):
    pace = Pace()
    pace.observe(1, 1, seconds)
    assert pace.num_seen == 0


def test_the_budget_is_what_fits_the_target_in_whole_tiles_and_never_less_than_one():
    pace, rng = Pace(), random.Random(1)
    for _ in range(400):
        decodes, tokens = rng.randrange(32), rng.choice([0, 64, 512])
        pace.observe(decodes, tokens, 0.02 + 4e-5 * tokens + 2e-4 * decodes)
    # (40 - 20 - 3.2 ms) / 40 µs = 420 tokens: 26 tiles of 16.
    assert TokenBudget(pace, 2048, 16, 0.04).prefill(16) == pytest.approx(416, abs=16)
    assert TokenBudget(pace, 2048, 16, 0.04).prefill(16) % 16 == 0
    assert TokenBudget(pace, 2048, 16, 0.01).prefill(16) == 16, "or prompts would starve"
    assert TokenBudget(pace, 2048, 16, None).prefill(16) == 2032
    assert TokenBudget(Pace(), 2048, 16, 0.04).prefill(16) == 2032, "nothing is known yet"


def test_chunks_shrink_under_a_target_that_iterations_miss():
    """The harness answers 2 ms after each plan, whatever is in it: a target far below leaves one block a time."""
    sizes = {}
    for target in (None, 1e-4):
        world = World(
            SchedulerConfig(num_blocks=200, block_size=4, max_batch_tokens=64, target_iteration_seconds=target)
        )
        world.add(make_request("warm", 40, 2, seed=1))
        world.drain()
        world.add(make_request("long", 200, 2, seed=2, arrived_at=world.now))
        world.drain()
        sizes[target] = max(event.tokens for event in list(world.journal)[-30:] if type(event).__name__ == "Scheduled")
    assert sizes[None] == 64
    assert sizes[1e-4] <= 4


def test_a_target_larger_than_the_limit_allows_the_limit_and_no_more():
    config = SchedulerConfig(
        num_blocks=200, block_size=4, max_batch_tokens=24, max_batch_size=8, target_iteration_seconds=10.0
    )
    world = World(config)
    world.add(make_request("warm", 40, 2, seed=1))
    world.drain()
    world.add(make_request("long", 200, 2, seed=2, arrived_at=world.now))
    world.drain()
    assert max(event.tokens for event in world.journal if isinstance(event, Scheduled)) == 24


def test_chunks_at_most_double_under_a_target_however_cheap_they_seem():
    """The harness answers 2 ms after each plan, whatever is in it: tokens seem free."""
    config = SchedulerConfig(num_blocks=400, block_size=4, max_batch_tokens=512, target_iteration_seconds=10.0)
    world = World(config)
    world.add(make_request("warm", 8, 2, seed=1))
    world.drain()
    world.add(make_request("long", 800, 2, seed=2, arrived_at=world.now))
    world.drain()
    sizes = [event.tokens for event in world.journal if isinstance(event, Scheduled)]
    assert [size for size in sizes if size > 1] == [8, 16, 32, 64, 128, 256, 304]


def test_what_tokens_cost_is_never_taken_for_nothing_beside_what_pairs_cost():
    """Chunks of one size at ever deeper positions: the fit may put all of it down to pairs."""
    pace = Pace()
    for start in range(0, 4000, 4):
        pace.observe(16, 4, 0.02 + 1e-8 * pairs_of(start, 4), pairs_of(start, 4))
    assert 0.0 < pace.depth_price <= 1 / 64
    assert pace.prefill_within(0.03, 16) < 1e6
