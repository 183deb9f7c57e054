"""Requests that want a vector: they end with their prompt, and a prompt that can't be cut never is."""

from __future__ import annotations

import pytest
from core_harness import World, closed_form_vector, make_request

from orcinus.core.config import SchedulerConfig
from orcinus.core.core import Submit
from orcinus.core.plan import Output
from orcinus.core.request import FinishReason, Pooling
from orcinus.errors import InvalidRequest

WHOLE = Pooling(type="mean")
CHUNKED = Pooling(type="last", whole=False)


def world(max_batch_tokens: int = 8, num_stages: int = 1) -> World:
    config = SchedulerConfig(
        num_blocks=64, block_size=4, max_batch_tokens=max_batch_tokens, max_batch_size=8, num_stages=num_stages
    )
    return World(config)


def test_a_vector_is_the_end_and_no_token_is_sampled() -> None:
    here = world()
    request = make_request("a", 7, pooling=WHOLE)
    here.add(request)
    assert isinstance(here.advance(), Submit)
    assert here.in_flight[0].plan.work[0].output == Output.POOLED
    (end,) = here.collect()
    assert (end.tokens, end.pooled, end.finish_reason) == ((), closed_form_vector(request.prompt), FinishReason.STOP)
    here.drain()


def test_a_prompt_of_the_last_kind_is_cut_and_its_vector_comes_with_the_last_chunk() -> None:
    here = world()
    here.add(make_request("a", 21, pooling=CHUNKED))
    outputs = []
    while here.scheduler.groups():
        if isinstance(here.step(), Submit):
            outputs += [work.output for work in here.in_flight[-1].plan.work]
    assert outputs == [Output.NOTHING, Output.NOTHING, Output.POOLED]


def test_a_whole_prompt_waits_for_the_budget_and_nobody_passes_it() -> None:
    here = world()
    here.add(make_request("decoding", 2, max_tokens=6))
    here.step()
    here.step()
    here.add(make_request("whole", 8, pooling=WHOLE))
    here.add(make_request("late", 1))
    for _ in range(10):
        here.step()
        running = {group.request.request_id for group in here.scheduler.running}
        if "decoding" in running:
            assert running == {"decoding"}
    here.drain()


def test_one_that_has_begun_without_blocks_is_not_passed_once_blocks_are_there() -> None:
    """It started on an empty engine whose blocks were still in limbo; then somebody else's decodes take its budget."""
    here = World(SchedulerConfig(num_blocks=5, block_size=4, max_batch_tokens=12, max_batch_size=8, num_stages=3))
    here.add(make_request("gone", 12, max_tokens=4))
    here.advance()
    here.abort("gone")
    here.add(make_request("whole", 12, pooling=WHOLE))
    here.advance()
    here.add(make_request("small", 1, max_tokens=4))
    here.advance()
    assert {group.request.request_id for group in here.scheduler.running} == {"whole", "small"}
    here.collect()
    here.collect()
    here.add(make_request("late", 1))
    while any(group.request.request_id == "whole" for group in here.scheduler.running):
        assert "late" not in {group.request.request_id for group in here.scheduler.running}
        here.step()
    here.drain()


def test_a_whole_prompt_longer_than_an_iteration_is_refused() -> None:
    here = world()
    with pytest.raises(
        InvalidRequest, match=r"9 tokens must run in one iteration, and this engine's iterations have 8"
    ):
        here.add(make_request("a", 9, pooling=WHOLE))
    here.add(make_request("b", 9, pooling=CHUNKED))
    here.drain()


def test_a_vector_survives_the_loss_of_its_plan() -> None:
    here = world(num_stages=2)
    here.add(make_request("a", 8, pooling=WHOLE))
    here.advance()
    here.new_epoch(kv_lost=False, half_done=1)
    here.drain()
