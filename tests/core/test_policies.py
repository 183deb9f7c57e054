"""Each policy: its order by its own rule, when that order may change, and how long anybody waits at most."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

import msgspec
import pytest
from core_harness import World, make_request
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scheduler_invariants import random_config, random_event

from orcinus.core.config import SchedulerConfig
from orcinus.core.core import Submit
from orcinus.core.journal import Admitted, Preempted, Refused
from orcinus.core.pace import Pace
from orcinus.core.policy import POLICIES, Facts
from orcinus.core.policy.deadline import ENOUGH_SEEN, Deadline, earliest_end
from orcinus.core.policy.fair import Fair
from orcinus.core.policy.mlfq import Mlfq
from orcinus.core.policy.prefix import Prefix
from orcinus.core.recording import replay
from orcinus.core.request import Pooling, Request, ServiceClass, pack_tokens
from orcinus.errors import Overloaded

AGEING = ["priority", "prefix", "mlfq", "deadline"]


@dataclass(frozen=True)
class View:
    """What a policy sees of a request."""

    request: Request
    number: int


def view(number: int, **fields: object) -> View:
    return View(msgspec.structs.replace(make_request(f"r{number}"), **fields), number)


def taught(constant: float = 0.02, decode: float = 0.0002, token: float = 0.00004) -> Pace:
    """A pace that has seen iterations which take exactly this."""
    pace = Pace()
    rng = random.Random(1)
    for _ in range(400):
        decodes, tokens = rng.randint(0, 64), rng.choice([0, 0, 64, 500])
        pace.observe(decodes, tokens, constant + decode * decodes + token * tokens)
    return pace


class Settled(Pace):
    """It learns no more."""

    def observe(self, decodes: int, prefill_tokens: int, seconds: float, pairs: int = 0) -> None:
        """Nothing is new."""


def settled(pace: Pace) -> Pace:
    """`pace` as it is now, for good."""
    known = Settled()
    known._prices = pace._prices
    return known


def facts(pace: Pace | None = None, **fields: object) -> Facts:
    return Facts(
        pace or Pace(),
        missing_tokens=lambda view: view.request.num_prompt_tokens,
        matched_blocks=lambda view: 0,
        cache_version=lambda: 0,
        **fields,  # type: ignore[arg-type]
    )


def started(world: World) -> list[str]:
    return [event.request_id for event in world.journal if isinstance(event, Admitted)]


def small_world(policy: str, **config: object) -> World:
    fields = {"num_blocks": 200, "block_size": 4, "max_batch_size": 2, "max_batch_tokens": 64, "policy": policy}
    return World(SchedulerConfig(**{**fields, **config}))  # type: ignore[arg-type]


# ---- when the order may change


@pytest.mark.parametrize("policy", POLICIES)
@settings(derandomize=True, deadline=None, max_examples=40)
@given(seed=st.integers(0, 1 << 20), events=st.integers(1, 60), share=st.floats(0, 1, exclude_max=True))
def test_until_it_says_so_time_alone_changes_no_order(policy, seed, events, share):
    rng = random.Random(seed)
    world = World(random_config(rng, policy))
    for number in range(events):
        random_event(world, rng, number)
    queues, now = world.scheduler.state.queues, world.now
    world.scheduler.refresh(now)
    until = queues.policy.stable_until(now)
    assert until > now, "the order of now is not the order of now"
    later = now + share * (min(until, now + 1e6) - now)
    if later >= until:
        return
    for queue in (queues.waiting, queues.running):
        ranks = [(group.request.service_class, *queues.policy.rank(group, later), *group.order[-2:]) for group in queue]
        assert ranks == sorted(ranks)


@pytest.mark.parametrize("policy", AGEING)
def test_at_the_instant_that_it_names_somebody_becomes_overdue(policy):
    ordered = POLICIES[policy](facts(max_wait_seconds=5.0))
    views = [view(number, priority=number) for number in range(3)]
    for each in views:
        ordered.enter(each, float(each.number))
    ordered.on_service(views[0], 1, 2.0)
    assert ordered.stable_until(2.0) == 6.0
    assert ordered.rank(views[1], 5.999) > ordered.rank(views[1], 6.0)
    assert views[1] in (ordered.changed(views, 6.0) or ())
    assert ordered.stable_until(6.0) == 7.0


# ---- nobody starves


@pytest.mark.parametrize("policy", AGEING)
@pytest.mark.parametrize("seed", range(4))
def test_whoever_waits_too_long_starts_before_all_that_came_later(policy, seed):
    """Others that rank before it come without end; it starts once it is overdue and those before it have a place."""
    rng = random.Random(seed)
    world = small_world(policy, max_wait_seconds=0.05, max_batch_size=1, enable_prefix_caching=True)
    unlucky = msgspec.structs.replace(make_request("unlucky", 30, 3, seed=9), priority=9)
    shared = [rng.randrange(30) for _ in range(12)]
    for number in range(300):
        if number == 4:
            world.add(msgspec.structs.replace(unlucky, arrived_at=world.now))
            came_at = world.now
        request = make_request(f"r{number}", [*shared, number % 30], 2, seed=number, arrived_at=world.now)
        world.add(msgspec.structs.replace(request, deadline=world.now + 2.0))
        for _ in range(2):
            world.step()
        if "unlucky" in started(world):
            break
    (event,) = (each for each in world.journal if isinstance(each, Admitted) and each.request_id == "unlucky")
    # Those overdue with it came before it: four of them, each of a few events of 1 ms.
    assert event.at - came_at <= 0.05 + 0.05
    world.drain()


def test_nobody_is_overtaken_more_often_than_the_bound():
    world = small_world("prefix", max_overtakes=3, max_batch_size=1, enable_prefix_caching=True, max_wait_seconds=1e6)
    shared = list(range(1, 17))
    world.add(make_request("first", [*shared, 20], 1, seed=1))
    while world.scheduler.groups():
        world.step()
    world.add(make_request("unlucky", 17, 1, seed=99, arrived_at=world.now))
    for number in range(10):
        world.add(make_request(f"r{number}", [*shared, number], 1, seed=number, arrived_at=world.now))
    world.drain()
    assert started(world) == ["first", "r0", "r1", "r2", "unlucky", *(f"r{number}" for number in range(3, 10))]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(6))
def test_no_request_is_preempted_more_than_three_times_and_all_end(policy, seed):
    """A pool for two of twelve, so that blocks are taken from somebody all the time."""
    world = small_world(policy, num_blocks=14, max_batch_size=6, max_wait_seconds=0.02)
    rng = random.Random(seed)
    for number in range(12):
        request = make_request(f"r{number}", rng.randint(2, 12), 30, seed=number, arrived_at=world.now)
        world.add(msgspec.structs.replace(request, priority=-number, tenant=rng.choice("ab")))
        for _ in range(3):
            world.step()
    world.drain()
    preempted = [event.request_id for event in world.journal if isinstance(event, Preempted)]
    assert preempted
    assert max(map(preempted.count, preempted)) <= 3


# ---- each by its own rule


def test_a_lower_number_runs_at_once_and_others_pause_with_their_kv():
    world = small_world("priority")
    for number in range(2):
        world.add(make_request(f"r{number}", 4, 30, seed=number))
    for _ in range(6):
        world.step()
    world.add(msgspec.structs.replace(make_request("urgent", 4, 4, seed=7, arrived_at=world.now), priority=-1))
    while not isinstance(decision := world.step(), Submit):
        pass
    assert {work.seq_id for work in decision.plan.work} == {0, 2}, "the later of the two makes way"
    assert not world.journal.counts["Preempted"]
    world.drain()


def test_the_earliest_deadline_starts_first_and_who_has_none_last():
    world = small_world("deadline", max_batch_size=1)
    for name, deadline in (("none", None), ("late", 900.0), ("soon", 500.0)):
        world.add(msgspec.structs.replace(make_request(name), deadline=deadline))
    world.drain()
    assert started(world) == ["soon", "late", "none"]


def test_realtime_has_the_next_iteration_and_best_effort_what_is_left():
    world = small_world("fcfs", max_batch_size=4, max_batch_tokens=8)
    for number in range(4):
        world.add(make_request(f"be{number}", 4, 30, seed=number, service_class=ServiceClass.BESTEFFORT))
    for _ in range(8):
        world.step()
    world.add(make_request("rt", 16, 4, seed=9, arrived_at=world.now, service_class=ServiceClass.REALTIME))
    plans = [decision.plan for decision in (world.step() for _ in range(6)) if isinstance(decision, Submit)]
    assert [(work.seq_id, work.num_tokens) for work in plans[0].work] == [(4, 8)], "all of the budget is its own"
    assert [(work.seq_id, work.num_tokens) for work in plans[1].work] == [(4, 8)]
    assert [work.seq_id for work in plans[2].work] == [4, 0, 1, 2], "its decode first, and three that pad"
    world.drain()


def test_beside_realtime_best_effort_gets_no_more_than_makes_an_iteration_two_percent_longer():
    """20 ms and 0.1 ms a token of either kind: 2 % are 4 tokens (3.99); beside normal ones all that is left."""
    for service_class, most in ((ServiceClass.REALTIME, {3, 4}), (ServiceClass.NORMAL, {28, 31})):
        world = small_world("fcfs", max_batch_size=32, max_batch_tokens=32)
        world.scheduler.state.pace = settled(taught(0.02, 0.0001, 0.0001))
        world.add(make_request("first", 4, 12, service_class=service_class))
        for number in range(40):
            world.add(make_request(f"be{number}", 4, 30, seed=number, service_class=ServiceClass.BESTEFFORT))
        plans = [decision.plan for decision in (world.step() for _ in range(10)) if isinstance(decision, Submit)]
        beside = [
            sum(work.num_tokens for work in plan.work if work.seq_id) for plan in plans if plan.work[0].seq_id == 0
        ]
        assert set(beside) == set(most), beside
        world.drain()


def test_best_effort_that_cannot_be_cut_runs_beside_normal_requests_whatever_an_iteration_should_take():
    world = small_world("fcfs", max_batch_size=4, target_iteration_seconds=1e-6)
    world.add(make_request("first", 4, 30))
    for _ in range(8):
        world.step()
    pooling = Pooling(type="mean")
    world.add(make_request("whole", 40, pooling=pooling, arrived_at=world.now, service_class=ServiceClass.BESTEFFORT))
    while ("whole", 0) not in world.delivered or world.delivered["whole", 0].finish_reason is None:
        world.step()
    assert world.delivered["first", 0].finish_reason is None, "it needn't wait for the end of the other"
    world.drain()


@pytest.mark.parametrize("policy", ["fcfs", "fair"])
def test_realtime_takes_the_blocks_of_lower_classes(policy):
    world = small_world(policy, num_blocks=12, max_batch_size=4)
    for number in range(3):
        world.add(make_request(f"be{number}", 12, 4, seed=number, service_class=ServiceClass.BESTEFFORT))
    world.step(), world.step()
    world.add(make_request("rt", 30, 4, seed=9, arrived_at=world.now, service_class=ServiceClass.REALTIME))
    while not isinstance(decision := world.step(), Submit):
        pass
    assert 3 in {work.seq_id for work in decision.plan.work}
    assert world.journal.counts["Preempted"] >= 1
    world.drain()


def test_who_becomes_overdue_has_the_very_next_plan():
    world = small_world("priority", max_batch_size=1, max_wait_seconds=5.0)
    world.add(make_request("first", 4, 50))
    world.step(), world.step()
    world.add(msgspec.structs.replace(make_request("unlucky", 4, 2, seed=2, arrived_at=world.now), priority=9))
    world.now += 4.0
    world.step(), world.step()
    decision = world.core.advance(world.now + 1.5)
    assert isinstance(decision, Submit)
    assert [work.seq_id for work in decision.plan.work] == [1]


def test_who_has_ended_is_forgotten():
    world = small_world("prefix", max_batch_size=1, max_overtakes=3, enable_prefix_caching=True)
    shared = list(range(1, 17))
    world.add(make_request("first", [*shared, 20], 1, seed=1))
    world.drain()
    for number, prompt in enumerate(([30, 31, 32], [*shared, 21], [*shared, 22])):
        world.add(make_request(f"r{number}", prompt, 1, seed=number, arrived_at=world.now))
    world.drain()
    policy = world.scheduler.state.queues.policy
    assert isinstance(policy, Prefix)
    assert not policy._overtaken
    assert not policy._matched


def test_of_equals_the_one_is_preempted_that_loses_least():
    world = small_world("priority", num_blocks=13, max_batch_size=3)
    for number, prompt in enumerate((8, 4, 20)):
        world.add(make_request(f"r{number}", prompt, 20, seed=number, arrived_at=world.now))
    while not world.journal.counts["Preempted"]:
        world.step()
    (event,) = (event for event in world.journal if isinstance(event, Preempted))
    assert event.request_id == "r1", "not the latest: that has computed most"
    world.drain()


def test_what_others_hold_too_is_not_lost():
    """r1 has computed more than r2, but nearly all of it in blocks that r0 uses as well."""
    world = small_world("priority", num_blocks=13, max_batch_size=3, enable_prefix_caching=True)
    common = list(range(100, 116))
    world.add(make_request("r0", [*common, 1, 2], 24, seed=0))
    world.step()
    world.add(make_request("r1", [*common, 3, 4], 24, seed=1, arrived_at=world.now))
    world.add(make_request("r2", list(range(200, 212)), 24, seed=2, arrived_at=world.now))
    while not world.journal.counts["Preempted"]:
        world.step()
    event = next(event for event in world.journal if isinstance(event, Preempted))
    assert event.request_id == "r1"
    world.drain()


def test_a_tenant_within_its_share_of_the_blocks_takes_them_from_one_above_its_share():
    world = small_world("fair", num_blocks=8, block_size=16, max_batch_size=5, max_batch_tokens=128)
    for number in range(4):
        world.add(make_request(f"greedy-{number}", 17, 14, seed=number, tenant="greedy"))
    world.step()
    world.step()
    assert len(world.scheduler.running) == 3, "and nearly all blocks are theirs"
    world.add(make_request("modest", 17, 2, seed=9, tenant="modest", arrived_at=world.now))
    for _ in range(3):
        world.step()
    (event,) = (event for event in world.journal if isinstance(event, Preempted))
    assert event.in_favour_of == "modest"
    world.drain()


def test_a_thousand_jobs_enter_and_fall_as_the_formula_says():
    """k = min{ j : q·2^j ≥ t_prefill }, q one decode; after k demotions all quanta down to there are used up."""
    pace, rng = taught(), random.Random(5)
    mlfq = Mlfq(facts(pace, max_wait_seconds=1e9))
    quantum = pace.decode_seconds()
    assert quantum == pytest.approx(0.0202, rel=0.01)
    for number in range(1000):
        tokens = rng.choice([1, 50, 900, rng.randint(1, 20_000)])
        job = view(number, prompt=bytes(4 * tokens))
        mlfq.enter(job, 0.0)
        needed = pace.prefill_seconds(tokens)
        expected = next(level for level in range(64) if quantum * 2**level >= needed)
        assert mlfq.level(job) == expected
        for _ in range(5):
            used, limit = 0.0, quantum * 2**expected
            while used < limit:
                assert mlfq.level(job) == expected
                spent = rng.uniform(0.1, 1.0) * limit
                mlfq.on_time(job, spent, 0.0)
                used += spent
            expected += 1
        assert mlfq.level(job) == expected


def test_a_prefill_that_takes_a_quantum_to_the_second_enters_its_level():
    mlfq = Mlfq(facts(settled(taught())))
    for level in range(5):
        assert mlfq.entry_level(mlfq.first_quantum * 2**level) == level


def test_long_answers_fall_as_the_iterations_take_their_time():
    world = small_world("mlfq")
    world.add(make_request("long", 4, 60))
    world.drain()
    policy = world.scheduler.state.queues.policy
    assert isinstance(policy, Mlfq)
    assert policy.num_demotions >= 3


def test_who_was_overdue_and_is_served_goes_back_to_its_level():
    mlfq = Mlfq(facts(max_wait_seconds=5.0))
    mlfq.enter(late := view(1), 0.0)
    mlfq.on_time(late, 60.0, 0.0)
    assert mlfq.level(late) == 1
    assert late in (mlfq.changed([], 0.0) or ())
    assert late in (mlfq.changed([], 5.0) or ())
    assert not mlfq.changed([], 5.1)
    mlfq.on_service(late, 1, 5.2)
    assert late in (mlfq.changed([], 5.3) or ()), "its rank is another now"
    assert mlfq.rank(late, 5.3)[0] == 1.0
    assert mlfq.level(late) == 0, "and from the highest level on"


def test_every_wait_between_two_services_is_bounded_where_there_is_capacity():
    """One long job and short ones that always rank before it: it is served every `max_wait_seconds` at the latest."""
    world = small_world("mlfq", max_batch_size=1, max_wait_seconds=0.05)
    world.add(make_request("long", 8, 60, seed=1))
    served, number = [0.0], 0
    while world.scheduler.groups() and number < 400:
        world.add(make_request(f"r{number}", 2, 2, seed=number + 2, arrived_at=world.now))
        number += 1
        for _ in range(4):
            decision = world.step()
            if isinstance(decision, Submit) and any(work.seq_id == 0 for work in decision.plan.work):
                served.append(world.now)
        for group in world.scheduler.groups():
            if group.number and group.number < number - 4:
                world.abort(group.request.request_id)
    gaps = [later - earlier for earlier, later in pairwise(served)]
    assert len(gaps) > 20
    assert max(gaps) <= 0.05 + 0.02
    world.drain()


def test_a_tenant_that_comes_back_has_saved_nothing_up():
    fair = Fair(facts())
    busy, away = view(0, tenant="busy"), view(1, tenant="away")
    fair.enter(busy, 0.0)
    fair.on_service(busy, 1000, 0.0)
    fair.enter(away, 1.0)
    assert fair.counter("away") == fair.counter("busy") == 1000
    fair.on_service(away, 10, 1.0)
    assert fair.rank(busy, 1.0) < fair.rank(away, 1.0)
    fair.leave(away)
    fair.enter(view(2, tenant="away"), 2.0)
    assert fair.counter("away") == 1010, "to leave is no way to be forgiven"


def test_the_order_is_anybodys_after_each_service_and_stays_until_the_next():
    fair = Fair(facts())
    for number, tenant in enumerate("ab"):
        fair.enter(view(number, tenant=tenant), 0.0)
    assert fair.changed([], 0.0) == ()
    fair.on_service(view(0, tenant="a"), 5, 0.0)
    assert fair.changed([], 0.0) is None
    assert fair.changed([], 0.0) == ()


@pytest.mark.parametrize(("lag", "running"), [(1, 2), (32, 2), (33, 3), (60, 3)])
def test_a_tenant_gets_its_share_of_the_slots_and_more_if_it_lags_by_half_an_iteration(lag, running):
    """Four slots, two tenants, iterations of 64 tokens: two slots each."""
    world = small_world("fair", max_batch_size=4)
    for number in range(4):
        world.add(make_request(f"a{number}", 4, 60, seed=number, tenant="a"))
    world.step(), world.step()
    for number in range(3):
        world.add(make_request(f"b{number}", 4, 60, seed=9, arrived_at=world.now, tenant="b"))
    fair = world.scheduler.state.queues.policy
    assert isinstance(fair, Fair)
    fair._tenants["a"].counter, fair._tenants["b"].counter, fair._has_changed = 100 + lag, 100, True
    world.advance()
    assert sum(group.request.tenant == "b" for group in world.scheduler.running) == running


def test_tenants_that_left_are_forgotten_in_the_end():
    fair = Fair(facts())
    for number in range(5000):
        fair.enter(each := view(number, tenant=f"t{number}"), 0.0)
        fair.on_service(each, 7, 0.0)
        fair.leave(each)
    assert len(fair._tenants) <= 200


def test_tenants_that_left_are_forgotten_though_one_stays_that_got_less():
    fair = Fair(facts())
    fair.enter(view(0, tenant="modest"), 0.0)
    for number in range(1, 1000):
        fair.enter(each := view(number, tenant=f"t{number}"), 0.0)
        fair.on_service(each, number, 0.0)
        fair.leave(each)
        assert len(fair._tenants) <= 2 * 1 + 64, "twice those that are here, and a few more"
    assert {"modest", "t999"} <= set(fair._tenants), "who got most is remembered, and who is here"


def test_few_tenants_that_left_are_all_remembered():
    fair = Fair(facts())
    for number in range(40):
        fair.enter(view(number, tenant=f"here{number}"), 0.0)
    for number in range(100, 200):
        fair.enter(each := view(number, tenant=f"t{number}"), 0.0)
        fair.leave(each)
    assert len(fair._tenants) == 40 + 100, "they might come back, as long as they are no more than those here and some"


def test_with_one_tenant_the_order_is_that_of_arrival():
    fair = Fair(facts())
    fair.enter(view(0, tenant="a"), 0.0)
    fair.on_service(view(0, tenant="a"), 5, 0.0)
    assert fair.changed([], 0.0) == ()


# ---- deadlines at the door


def knowing(pace: Pace, *others: View) -> Deadline:
    """A policy that was told of its pace at 5.0, and of others."""
    policy = Deadline(facts(pace, max_wait_seconds=10.0))
    for other in others:
        policy.enter(other, 5.0)
    policy.on_time(view(99), 0.1, 5.0)
    return policy


@settings(derandomize=True, deadline=None)
@given(prompt=st.integers(1, 500), answer=st.integers(1, 50), ahead=st.integers(1, 500), slack=st.floats(0.001, 10))
def test_the_door_refuses_just_what_cannot_be_met(prompt, answer, ahead, slack):
    """By hand: its prefill behind what is ahead, then one decode for each token but the first."""
    request, other = make_request("r", prompt, answer, seed=3), View(make_request("other", ahead), 1)
    soonest = 5.0 + 0.02 + 0.00004 * (prompt + ahead) + 0.0202 * (answer - 1)
    assert earliest_end(request, 5.0, taught(), prompt + ahead) == pytest.approx(soonest, rel=1e-3)
    for deadline, is_possible in ((soonest * 1.001 + slack, True), (soonest * 0.999 - slack, False), (None, True)):
        due = View(msgspec.structs.replace(request, deadline=deadline), 2)
        assert knowing(taught(), other, due).can_make_it(due, [other], 5.0) == is_possible


def test_the_shortest_answer_that_may_be_is_what_must_fit():
    pace, now = taught(), 5.0
    decode = 0.0202
    for request, answer in (
        (make_request("a", 4, 20), 20),
        (make_request("b", 4, 20, eos=(7,)), 1),
        (make_request("c", 4, 20, eos=(7,), min_tokens=5), 5),
        (make_request("d", 4, 20, stop="x"), 1),
        (make_request("e", 4, 20, resumed=(bytes(4 * 8),)), 12),
        (make_request("f", 4, 20, resumed=(bytes(4 * 8), bytes(4 * 3)), n=2), 12),
        (make_request("g", 4, 20, pooling=Pooling(type="last")), 1),
    ):
        assert earliest_end(request, now, pace, 4) == pytest.approx(now + 0.02016 + (answer - 1) * decode, rel=1e-3)


def test_of_prompts_that_begin_alike_only_the_longest_counts_as_ahead():
    """The others may find all of it in the cache: what is refused is impossible, however much they share."""
    shared = list(range(20))
    others = [View(make_request(f"o{number}", [*shared, *[number] * number]), number) for number in (5, 9, 7)]
    due = View(msgspec.structs.replace(make_request("r", 10, 1, seed=3), deadline=5.02 + 4e-5 * (29 + 10) + 1e-4), 20)
    assert knowing(taught(), *others, due).can_make_it(due, others, 5.0)
    due = View(msgspec.structs.replace(due.request, deadline=5.02 + 4e-5 * (29 + 10) - 1e-4), 20)
    assert not knowing(taught(), *others, due).can_make_it(due, others, 5.0)


def test_who_can_just_make_it_comes_in():
    pace = settled(taught())
    pace.num_seen = ENOUGH_SEEN
    request = make_request("r", 30, 5, seed=3)
    due = View(msgspec.structs.replace(request, deadline=earliest_end(request, 5.0, pace, 30)), 20)
    assert knowing(pace, due).can_make_it(due, [], 5.0)


@pytest.mark.parametrize(("shared", "ahead"), [(15, 17 + 18), (16, 18)])
def test_prompts_begin_alike_if_the_smallest_block_is_the_same(shared, ahead):
    """What is shorter can't be found in any cache."""
    begin = list(range(shared))
    others = [View(make_request(f"o{n}", begin + [50 + n] * (n - shared)), n) for n in (17, 18)]
    for extra, is_possible in ((1e-4, True), (-1e-4, False)):
        deadline = 5.02 + 4e-5 * 10 * (ahead + 10) + extra
        due = View(msgspec.structs.replace(make_request("r", 10, 1, seed=3), deadline=deadline), 20)
        assert knowing(taught(token=4e-4), *others, due).can_make_it(due, others, 5.0) == is_possible


def test_little_or_old_knowledge_refuses_nobody():
    due = View(msgspec.structs.replace(make_request("r", 10, 1), deadline=5.001), 20)
    assert not knowing(taught(), due).can_make_it(due, [], 15.0)
    assert knowing(taught(), due).can_make_it(due, [], 15.001), "an engine that refuses all would never learn"
    pace = Pace()
    for number in range(ENOUGH_SEEN):
        assert knowing(pace, due).can_make_it(due, [], 5.0)
        pace.observe(1, 10 * (number % 2), 0.5)
    assert not knowing(pace, due).can_make_it(due, [], 5.0)


def test_what_is_refused_leaves_no_trace_but_a_line_and_the_replay_refuses_it_too():
    record: list[bytes] = []
    config = SchedulerConfig(num_blocks=200, block_size=4, max_batch_size=2, max_batch_tokens=8, policy="deadline")
    world = World(config, record)
    world.add(make_request("warm", 4, 60))
    world.drain()
    late = msgspec.structs.replace(make_request("late", 4, 60, seed=2), arrived_at=world.now, deadline=world.now + 0.05)
    with pytest.raises(Overloaded) as refused:
        world.core.add(late, world.now)
    assert refused.value.code == "deadline_unreachable"
    assert [event.request_id for event in world.journal if isinstance(event, Refused)] == ["late"]
    assert not world.scheduler.groups()
    begun = msgspec.structs.replace(late, resumed=(pack_tokens([9]),))
    world.core.add(begun, world.now)
    world.core.abort("late", world.now)
    world.add(msgspec.structs.replace(late, request_id="in time", deadline=world.now + 9.0))
    world.drain()
    core, difference = replay(record)
    assert difference is None
    assert core.journal.counts == world.journal.counts
