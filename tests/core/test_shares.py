"""Plans of a pipeline that take equal parts: all stages have some work, all sequences their turn, no prompt waits."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from core_harness import World, make_request

from orcinus.core.config import SchedulerConfig
from orcinus.core.core import Submit
from orcinus.core.plan import IterationPlan, Output
from orcinus.core.request import ServiceClass


def world(num_stages: int, **config: object) -> World:
    fields = {"num_blocks": 600, "block_size": 4, "max_batch_tokens": 64, "max_batch_size": 16, "even_plans": True}
    return World(SchedulerConfig(**{**fields, "num_stages": num_stages, **config}))


def fill(world: World) -> list[IterationPlan]:
    """Submit until nothing more can be."""
    plans = []
    while isinstance(decision := world.advance(), Submit):
        plans.append(decision.plan)
    return plans


def turn(world: World) -> list[IterationPlan]:
    """The oldest plan comes back, and what is submitted in its place."""
    world.run_next()
    world.collect()
    return fill(world)


def decoding(world: World, number: int) -> World:
    """So many requests past their prompts, plans in flight."""
    for index in range(number):
        world.add(make_request(f"r{index}", 3, 100, ignore_eos=True))
    fill(world)
    while any(not s.num_generated for group in world.scheduler.groups() for s in group.sequences):
        turn(world)
    for _ in range(3 * world.config.num_stages):
        turn(world)
    return world


@pytest.mark.parametrize(("number", "num_stages"), [(1, 2), (2, 2), (3, 2), (9, 2), (4, 3), (3, 4), (5, 4), (16, 4)])
@pytest.mark.parametrize("lookahead", [0, 1])
def test_decodes_are_spread_over_the_stages_and_each_has_its_turn(number: int, num_stages: int, lookahead: int) -> None:
    running = decoding(world(num_stages, lookahead=lookahead), number)
    rounds = 4
    plans = [plan for _ in range(rounds * num_stages) for plan in turn(running)]
    assert all(len(plan.work) <= -(-number // num_stages) for plan in plans)
    served = Counter(work.seq_id for plan in plans for work in plan.work)
    assert len(served) == number
    assert max(served.values()) - min(served.values()) <= 1 + lookahead
    # As many plans as stages, or as there are sequences to make them of.
    busy = {work.seq_id for out in running.in_flight for work in out.plan.work}
    assert len(running.in_flight) >= min(number, num_stages)
    assert len(busy) == number or lookahead


def test_two_sequences_keep_two_stages_busy_and_without_shares_they_do_not() -> None:
    assert len(decoding(world(2), 2).in_flight) == 2
    # Both are in one plan, once a prompt of each has run in the same.
    together = world(2, even_plans=False)
    for index in range(2):
        together.add(make_request(f"r{index}", 3, 100, ignore_eos=True))
    fill(together)
    turn(together)
    assert len(together.in_flight) == 1


def test_the_pieces_of_a_prompt_follow_each_other_through_the_stages() -> None:
    alone = world(4)
    alone.add(make_request("r", 60, 5, ignore_eos=True))
    plans = fill(alone)
    pieces = [work for plan in plans for work in plan.work]
    assert [(piece.start, piece.num_tokens) for piece in pieces] == [(0, 16), (16, 16), (32, 16), (48, 12)]
    assert [piece.output for piece in pieces] == [Output.NOTHING] * 3 + [Output.SAMPLE]
    alone.drain()


def test_many_prompts_fill_whole_budgets() -> None:
    crowd = world(2)
    for index in range(16):
        crowd.add(make_request(f"r{index}", 60, 5, ignore_eos=True))
    assert [plan.num_tokens for plan in fill(crowd)] == [64, 64]


@pytest.mark.parametrize("seed", range(20))
def test_one_stage_is_decided_as_without(seed: int) -> None:
    def journal(*, even_plans: bool) -> bytes:
        rng = random.Random(seed)
        lone = world(1, num_blocks=40, even_plans=even_plans)
        for index in range(12):
            lone.add(make_request(f"r{index}", rng.randint(1, 50), rng.randint(1, 20), ignore_eos=True))
            for _ in range(rng.randint(0, 4)):
                lone.step()
        lone.drain()
        return lone.journal.encode()

    assert journal(even_plans=True) == journal(even_plans=False)


def test_best_effort_takes_no_turn_of_others() -> None:
    """It gets what is left of the budget: nothing here, and so it must not hold a place among those who decode."""
    crowd = world(2, max_batch_tokens=16)
    for index in range(4):
        crowd.add(make_request(f"b{index}", 3, 40, ignore_eos=True, service_class=ServiceClass.BESTEFFORT))
    fill(crowd)
    for _ in range(6):
        turn(crowd)
    crowd.add(make_request("n", 3, 10, ignore_eos=True))
    crowd.add(make_request("long", 300, 1, ignore_eos=True))
    for _ in range(40):
        turn(crowd)
    assert len(crowd.delivered["n", 0].tokens) == 10
    crowd.drain()
