"""Every moment of a request has one cause, and the causes are those that happened."""

from __future__ import annotations

from itertools import pairwise

import pytest
from core_harness import World, make_request
from hypothesis import given, settings
from hypothesis import strategies as st

from orcinus.core.config import SchedulerConfig
from orcinus.core.explain import Cause, Interval, Life, Span, explain, whole_story
from orcinus.core.journal import Added, Admitted, Finished


def world(**config: object) -> World:
    return World(SchedulerConfig(**{"num_blocks": 24, "block_size": 4, "max_batch_size": 4, **config}))


def life(world: World, request_id: str) -> Life:
    found = explain(world.journal, request_id, world.now)
    assert found is not None
    return found


def causes(life: Life) -> list[Cause]:
    """But for the moment between its coming and the first plan."""
    told = [span.cause for span in life.spans]
    return told[told[0] is Cause.QUEUE :]


def run(world: World, *requests: object) -> None:
    for request in requests:
        world.add(request)
    world.drain()


def test_one_alone_is_prefilled_and_decodes() -> None:
    alone = world()
    run(alone, make_request("r", 6, 5, seed=1))
    told = life(alone, "r")
    assert causes(told) == [Cause.PREFILL, Cause.DECODE]
    assert [span.iterations for span in told.spans if span.iterations] == [1, 4]


def test_a_long_prompt_of_somebody_else_makes_decodes_longer() -> None:
    both = world(max_batch_tokens=8)
    both.add(make_request("early", 4, 8, seed=1))
    both.step()
    both.add(make_request("late", 20, 2, seed=2, arrived_at=both.now))
    both.drain()
    told = causes(life(both, "early"))
    assert told[:2] == [Cause.PREFILL, Cause.DECODE_BESIDE_PREFILL]
    assert told[-1] is Cause.DECODE


def test_who_finds_no_place_waits_for_it() -> None:
    full = world(max_batch_size=2, max_batch_tokens=8)
    run(full, make_request("first", 4, 6, seed=1), make_request("second", 4, 2, seed=2, n=2))
    assert Cause.BATCH_SIZE in causes(life(full, "second"))


def test_who_finds_no_blocks_waits_for_them() -> None:
    small = world(num_blocks=4, admission="reserve")
    run(small, make_request("first", 6, 8, seed=1), make_request("second", 6, 4, seed=2))
    assert Cause.KV_BLOCKS in causes(life(small, "second"))


def test_a_preemption_is_told_with_what_it_cost() -> None:
    small = world(num_blocks=9, max_batch_tokens=32, enable_prefix_caching=False)
    for number in range(3):
        small.add(make_request(f"r{number}", 6, 12, seed=number, arrived_at=float(number)))
    small.drain()
    preempted = [event.request_id for event in small.journal if type(event).__name__ == "Preempted"]
    told = life(small, preempted[0])
    assert told.num_preemptions >= 1
    assert {Cause.PREEMPTED, Cause.RECOMPUTE} <= set(causes(told))


def test_a_request_that_the_journal_has_forgotten_has_no_life() -> None:
    assert explain([Admitted(1.0, "r", 0.0, 0), Finished(2.0, "r", 0, "stop", 3)], "r", 3.0) is None


def test_a_new_epoch_is_recovery() -> None:
    broken = world()
    broken.add(make_request("r", 6, 5, seed=1))
    broken.step()
    broken.new_epoch(kv_lost=True)
    broken.drain()
    assert Cause.RECOVERY in causes(life(broken, "r"))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 14), st.integers(1, 10), st.integers(1, 2)), min_size=1, max_size=8),
    blocks=st.integers(12, 24),
    budget=st.integers(4, 16),
    admission=st.sampled_from(["reserve", "on_demand"]),
)
def test_spans_touch_and_cover_a_life_from_its_coming_to_its_end(
    sizes: list[tuple[int, int, int]], blocks: int, budget: int, admission: str
) -> None:
    some = world(num_blocks=blocks, max_batch_tokens=budget, admission=admission)
    for number, (prompt, answer, n) in enumerate(sizes):
        some.add(make_request(f"r{number}", prompt, answer, seed=number, n=n, arrived_at=some.now))
        some.step()
    some.drain()
    ends = {event.request_id: event.at for event in some.journal if isinstance(event, Finished)}
    for added in [event for event in some.journal if isinstance(event, Added)]:
        spans = life(some, added.request_id).spans
        assert spans[0].began_at == added.at
        assert spans[-1].ended_at == ends[added.request_id]
        assert all(early.ended_at == late.began_at for early, late in pairwise(spans))
        assert all(span.seconds > 0 or span.iterations for span in spans)


def test_a_story_has_the_front_ends_part_around_the_engines() -> None:
    engine = Life("r", (Span(Cause.PREFILL, 3.0, 4.0, 1), Span(Cause.DECODE, 4.0, 8.0, 9)))
    story = whole_story(1.0, 2.0, 9.0, [engine], [])
    assert [(span.cause, span.seconds) for span in story] == [
        (Cause.READING, 1.0),
        (Cause.HANDOVER, 1.0),
        (Cause.PREFILL, 1.0),
        (Cause.DECODE, 4.0),
        (Cause.DELIVERY, 1.0),
    ]
    assert story[3].iterations == 9


def test_a_dead_engines_part_is_told_by_the_front_end() -> None:
    second = Life("r", (Span(Cause.PREFILL, 6.0, 7.0, 1),))
    down = Interval(Cause.ENGINE_DOWN, 4.0, 5.5)
    story = whole_story(1.0, 2.0, 7.5, [second], [down])
    assert [(span.cause, span.seconds) for span in story] == [
        (Cause.READING, 1.0),
        (Cause.LOST, 2.0),
        (Cause.ENGINE_DOWN, 1.5),
        (Cause.HANDOVER, 0.5),
        (Cause.PREFILL, 1.0),
        (Cause.DELIVERY, 0.5),
    ]


@given(
    cuts=st.lists(st.floats(0, 100), min_size=6, max_size=6).map(sorted),
    interruptions=st.lists(
        st.tuples(st.floats(0, 100), st.floats(0, 100), st.sampled_from([Cause.ENGINE_DOWN, Cause.UNHEARD])), max_size=4
    ),
)
def test_a_story_sums_to_the_wall_time(cuts: list[float], interruptions: list[tuple[float, float, Cause]]) -> None:
    received, arrived, begun, turned, ended, sent = cuts
    lives = [Life("r", (Span(Cause.PREFILL, begun, turned, 1), Span(Cause.DECODE, turned, ended, 2)))]
    story = whole_story(
        received, arrived, sent, lives, [Interval(c, min(a, b), max(a, b)) for a, b, c in interruptions]
    )
    assert sum(span.seconds for span in story) == pytest.approx(sent - received, abs=1e-9)
    assert all(early.ended_at == late.began_at for early, late in pairwise(story))
