"""Thousands of random lives of a scheduler, every event followed by every check (DESIGN §4, RELIABILITY §5)."""

from __future__ import annotations

import random
from contextlib import suppress

import msgspec
import pytest
from core_harness import EOS, VOCAB, World, expected_answer, make_request
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from orcinus.core.config import SchedulerConfig
from orcinus.core.plan import NUMERICAL_ERROR
from orcinus.core.policy import POLICIES
from orcinus.core.request import (
    BeamSearch,
    FinishReason,
    Pooling,
    Request,
    SamplingParams,
    ServiceClass,
    pack_tokens,
    unpack_tokens,
)
from orcinus.errors import InvalidRequest


def random_config(rng: random.Random, policy: str = "fcfs") -> SchedulerConfig:
    max_batch_size = rng.choice([1, 2, 3, 8])
    block_size = rng.choice([1, 2, 4, 16])
    return SchedulerConfig(
        # At the least, a prompt of one token and its answer of one fit.
        num_blocks=max(rng.choice([1, 2, 4, 6, 9, 9, 14, 14, 20, 30, 64, 200]), 2 if block_size == 1 else 1),
        block_size=block_size,
        max_batch_tokens=max_batch_size + rng.choice([0, 1, 3, 10, 500]),
        max_batch_size=max_batch_size,
        num_stages=rng.choice([1, 1, 2, 4]),
        even_plans=rng.random() < 0.5,
        lookahead=rng.choice([0, 1]),
        admission=rng.choice(["reserve", "on_demand", "on_demand"]),
        enable_prefix_caching=rng.random() < 0.7,
        policy=policy,
        target_iteration_seconds=rng.choice([None, None, 0.001, 0.01]),
        max_wait_seconds=rng.choice([0.002, 0.02, 0.1, 10.0]),
        max_overtakes=rng.choice([0, 1, 3, 8]),
    )


def random_request(rng: random.Random, number: int, now: float) -> Request:
    n = rng.choice([1, 1, 1, 2, 3, 4])
    max_tokens = rng.choice([1, 2, 5, 12, 30])
    request = make_request(
        f"r{number}",
        rng.choice([1, 1, 2, 3, 4, 5, 8, 9, 17, 33]),
        max_tokens,
        seed=rng.choice([number, rng.randrange(4)]),
        arrived_at=now,
        service_class=rng.choice(list(ServiceClass)) if rng.random() < 0.2 else ServiceClass.NORMAL,
        eos=(EOS,),
        n=n,
        ignore_eos=rng.random() < 0.3,
        min_tokens=rng.choice([0, 0, 1, max_tokens]),
        stop_token_ids=[rng.randrange(VOCAB), EOS] if rng.random() < 0.3 else None,
        logprobs=0 if rng.random() < 0.3 else None,
        prompt_logprobs=0 if rng.random() < 0.15 else None,
        tenant=rng.choice(["", "", "", "a"]),
        cache_salt=rng.choice(["", "", "", "a"]),
    )
    request = msgspec.structs.replace(request, priority=rng.choice([0, 0, 0, -1, 5]))
    if rng.random() < 0.1:
        request = msgspec.structs.replace(request, deadline=now + rng.choice([0.0, 0.005, 0.05]))
    if rng.random() < 0.15:
        pooling = Pooling(type="last", whole=rng.random() < 0.7)
        return msgspec.structs.replace(request, pooling=pooling, params=SamplingParams())
    if number % 5 == 0:
        return search_instead(random.Random(f"{number} {now} {request.params.seed}"), request)
    return resume_midway(rng, request) if rng.random() < 0.2 else request


def search_instead(rng: random.Random, request: Request) -> Request:
    """The same request, its answers searched for."""
    search = BeamSearch(
        width=request.params.n + rng.choice([0, 0, 1, 3]),
        length_penalty=rng.choice([1.0, 0.0, -1.0, 2.0]),
        early_stopping=rng.choice([False, True, "never"]),
    )
    params = msgspec.structs.replace(request.params, prompt_logprobs=None)
    return msgspec.structs.replace(request, beams=search, params=params)


def resume_midway(rng: random.Random, request: Request) -> Request:
    """The same request as a front end re-submits it: some of each answer is there, perhaps all of one."""
    answers = [expected_answer(request, index)[0] for index in range(request.params.n)]
    kept = [answer[: rng.randint(0, len(answer))] for answer in answers]
    if kept == answers:
        kept[-1] = kept[-1][:-1]
    return make_resumed(request, kept)


def next_turn(rng: random.Random, world: World, number: int) -> Request:
    """A chat goes on: what was asked and answered so far, perhaps cut or turned elsewhere, and something new."""
    (request_id, _), seen = rng.choice(list(world.delivered.items()))
    before = world.requests[request_id]
    tokens = list(unpack_tokens(before.prompt)) + seen.tokens
    if rng.random() < 0.3:
        tokens = tokens[: rng.randint(1, len(tokens))]
    tokens += [rng.randrange(VOCAB) for _ in range(rng.choice([0, 1, 5]))]
    who = {"tenant": before.tenant, "cache_salt": before.cache_salt, "arrived_at": world.now}
    return make_request(f"r{number}", tokens, rng.choice([1, 5, 12]), seed=number, n=rng.choice([1, 1, 2]), **who)


def make_resumed(request: Request, kept: list[list[int]]) -> Request:
    return Request(
        request_id=request.request_id,
        prompt=request.prompt,
        params=request.params,
        eos_token_ids=request.eos_token_ids,
        arrived_at=request.arrived_at,
        service_class=request.service_class,
        tenant=request.tenant,
        cache_salt=request.cache_salt,
        resumed=tuple(pack_tokens(line) for line in kept),
    )


def random_event(world: World, rng: random.Random, number: int) -> None:
    roll = rng.random()
    if roll < 0.12:
        chats = world.delivered and rng.random() < 0.3
        try:
            world.add(next_turn(rng, world, number) if chats else random_request(rng, number, world.now))
        except InvalidRequest as error:
            # Too large for this pool even alone; any other refusal is a bug.
            if error.code != "context_length_exceeded":
                raise
    elif roll < 0.16 and world.requests:
        request_id = rng.choice(list(world.requests))
        index = rng.choice([None, 0, 1, 2])
        world.abort(request_id, index, rng.choice([FinishReason.ABORT, FinishReason.STOP]))
    elif roll < 0.18:
        world.new_epoch(kv_lost=rng.random() < 0.4, half_done=rng.randint(0, 4))
    elif roll < 0.20:
        world.deliver_stale()
    elif roll < 0.35:
        world.run_next(random_failures(world, rng), rng.choice([NUMERICAL_ERROR, "no_token"]))
    elif roll < 0.6 and world.in_flight:
        world.collect()
    else:
        world.advance()


def random_failures(world: World, rng: random.Random) -> frozenset[int]:
    """Now and then a row of the next plan to run holds NaN."""
    unrun = next((out.plan for out in world.in_flight if out.result is None), None)
    if unrun is None or rng.random() > 0.05:
        return frozenset()
    return frozenset([rng.choice(unrun.work).seq_id])


def live_a_life(seed: int, events: int = 120, record: list[bytes] | None = None, policy: str = "fcfs") -> World:
    rng = random.Random(seed)
    world = World(random_config(rng, policy), record)
    for number in range(events):
        random_event(world, rng, number)
    world.drain()
    world.add(make_request("last", 1, 1, arrived_at=world.now))
    world.drain()
    assert len(world.worker.sequences) == 1, "the worker was not told to forget what has ended"
    return world


def live_lives(first: int, count: int, policy: str = "fcfs") -> None:
    for seed in range(first, first + count):
        try:
            live_a_life(seed, policy=policy)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_random_lives_break_no_invariant(first):
    live_lives(first, 50)


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "fcfs"])
def test_random_lives_break_no_invariant_under_any_policy(policy):
    live_lives(0, 60, policy)


@pytest.mark.slow
@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "fcfs"])
def test_many_more_random_lives_under_any_policy(policy):
    live_lives(20_000, 600, policy)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(10_000, 12_000, 500))
def test_many_more_random_lives_break_no_invariant(first):
    live_lives(first, 500)


class SchedulerMachine(RuleBasedStateMachine):
    """The same world, one event at a time, so that a failing life is shrunk to the few events that matter."""

    @initialize(seed=st.integers(0, 1 << 16), policy=st.sampled_from(list(POLICIES)))
    def start(self, seed, policy):
        self.rng = random.Random(seed)
        self.world = World(random_config(self.rng, policy))

    @rule(
        prompt=st.integers(1, 20),
        max_tokens=st.integers(1, 12),
        n=st.integers(1, 3),
        seed=st.integers(0, 3),
        stops=st.booleans(),
    )
    def add(self, prompt, max_tokens, n, seed, stops):
        world = self.world
        eos = (EOS, 1, 2) if stops else ()
        name = f"r{len(world.requests)}"
        with suppress(InvalidRequest):
            world.add(make_request(name, prompt, max_tokens, seed=seed, n=n, eos=eos, arrived_at=world.now))

    @precondition(lambda self: self.world.requests)
    @rule(data=st.data(), index=st.none() | st.integers(0, 2))
    def abort(self, data, index):
        self.world.abort(data.draw(st.sampled_from(list(self.world.requests))), index)

    @rule()
    def advance(self):
        self.world.advance()

    @precondition(lambda self: self.world.in_flight)
    @rule(fails=st.sampled_from([False, False, False, True]))
    def run_next(self, fails):
        unrun = [work.seq_id for out in self.world.in_flight if out.result is None for work in out.plan.work[:1]]
        self.world.run_next(frozenset(unrun[:1] if fails else ()))

    @precondition(lambda self: self.world.in_flight)
    @rule()
    def collect(self):
        self.world.collect()

    @rule(kv_lost=st.booleans(), half_done=st.integers(0, 3))
    def change_epoch(self, kv_lost, half_done):
        self.world.new_epoch(kv_lost=kv_lost, half_done=half_done)

    @precondition(lambda self: self.world.stale)
    @rule()
    def deliver_stale(self):
        self.world.deliver_stale()

    def teardown(self):
        if hasattr(self, "world"):
            self.world.drain()


SchedulerMachine.TestCase.settings = settings(derandomize=True, deadline=None, max_examples=60, stateful_step_count=40)
TestSchedulerMachine = SchedulerMachine.TestCase
