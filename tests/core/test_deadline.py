"""A request whose deadline has passed ends with an error, begun or not, and nothing more is done for it."""

from __future__ import annotations

import msgspec
from core_harness import World, make_request

from orcinus.core.config import SchedulerConfig
from orcinus.core.core import Expired, Submit
from orcinus.core.request import FinishReason


def world() -> World:
    return World(SchedulerConfig(num_blocks=8, block_size=4, max_batch_tokens=8, max_batch_size=2))


def test_a_late_request_is_never_started_and_the_others_go_on() -> None:
    here = world()
    here.add(make_request("on time", 8, max_tokens=4))
    here.add(msgspec.structs.replace(make_request("late", 4), deadline=0.004))
    assert isinstance(here.advance(), Submit)
    here.collect()
    expired = here.advance()
    assert isinstance(expired, Expired)
    (end,) = expired.progress
    assert (end.request_id, end.finish_reason, end.error_code) == ("late", FinishReason.ERROR, "deadline_exceeded")
    here.drain()
    assert here.delivered["on time", 0].finish_reason is FinishReason.LENGTH
    assert here.delivered["late", 0].tokens == []


def test_a_running_request_ends_at_its_deadline_with_all_its_answers() -> None:
    here = world()
    here.add(msgspec.structs.replace(make_request("late", 3, max_tokens=8, n=2), deadline=0.008))
    decisions = [here.step() for _ in range(8)]
    ends = [end for decision in decisions if isinstance(decision, Expired) for end in decision.progress]
    assert [(end.index, end.error_code) for end in ends] == [(0, "deadline_exceeded"), (1, "deadline_exceeded")]
    here.drain()


def test_a_deadline_after_the_end_changes_nothing() -> None:
    here = world()
    here.add(msgspec.structs.replace(make_request("quick", 3, max_tokens=1), deadline=0.006))
    here.drain()
    here.add(make_request("next", 3))
    assert isinstance(here.advance(), Submit)
    here.drain()
