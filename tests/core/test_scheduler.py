"""What the scheduler promises, one sentence a test, through its public calls."""

from __future__ import annotations

import msgspec
import pytest
from core_harness import EOS, VOCAB, World, closed_form_token, expected_answer, make_request
from test_scheduler_invariants import make_resumed

from orcinus.core.clock import VirtualClock
from orcinus.core.config import SchedulerConfig
from orcinus.core.core import Collect, Core, Idle, Submit
from orcinus.core.draft import chunk_end
from orcinus.core.journal import Admitted, Blocked, EpochStarted, Finished, Forked, Journal, Preempted, Scheduled
from orcinus.core.plan import FED_BACK, IterationPlan, IterationResult, Output, SequenceFailure, SequenceOutput
from orcinus.core.policy import POLICIES
from orcinus.core.policy.base import PlainPolicy
from orcinus.core.request import FinishReason, ServiceClass
from orcinus.errors import ConfigurationError, InvalidRequest


def world(**config: object) -> World:
    return World(SchedulerConfig(**{"num_blocks": 64, "block_size": 4, "max_batch_size": 8, **config}))


def submitted(world: World) -> IterationPlan:
    decision = world.advance()
    assert isinstance(decision, Submit)
    return decision.plan


def work_of(plan: IterationPlan) -> list[tuple[int, int, int]]:
    return [(work.seq_id, work.start, work.num_tokens) for work in plan.work]


def events(world: World, kind: type) -> list:
    return [event for event in world.journal if isinstance(event, kind)]


def tokens_of(world: World, request_id: str, index: int = 0) -> list[int]:
    return world.delivered[request_id, index].tokens


# ---- order and budget


def test_requests_start_in_order_of_arrival_whatever_the_order_of_add():
    w = world()
    for name, arrived_at in (("late", 3.0), ("early", 1.0), ("middle", 2.0)):
        w.add(make_request(name, arrived_at=arrived_at))
    submitted(w)
    assert [event.request_id for event in events(w, Admitted)] == ["early", "middle", "late"]


def test_a_realtime_request_starts_before_all_others_and_best_effort_after():
    w = world()
    for name in ("BESTEFFORT", "NORMAL", "REALTIME"):
        w.add(make_request(name, service_class=ServiceClass[name]))
    submitted(w)
    assert [event.request_id for event in events(w, Admitted)] == ["REALTIME", "NORMAL", "BESTEFFORT"]


def test_a_prompt_longer_than_the_budget_is_run_in_chunks_that_end_at_block_boundaries():
    w = world(max_batch_tokens=10)
    w.add(make_request("long", 19))
    chunks = []
    while not tokens_of(w, "long"):
        chunks += work_of(submitted(w))
        w.collect()
    assert chunks == [(0, 0, 8), (0, 8, 8), (0, 16, 3)]


def test_a_chunk_stops_where_budget_knowledge_or_block_say():
    assert chunk_end(0, 100, 30, 16) == 16
    assert chunk_end(0, 100, 10, 16) == 10
    assert chunk_end(10, 100, 4, 16) == 14
    assert chunk_end(10, 100, 10, 16) == 16
    assert chunk_end(10, 21, 30, 16) == 21
    assert chunk_end(10, 21, 0, 16) == 10


def test_decodes_get_their_token_before_any_prompt_gets_a_chunk():
    w = world(max_batch_tokens=8)
    w.add(make_request("stream", 1, 20, seed=2))
    w.step(), w.step()
    # It ranks before the stream and could use the whole budget.
    w.add(make_request("prompt", 40, seed=1, service_class=ServiceClass.REALTIME))
    for _ in range(3):
        plan = submitted(w)
        assert (0, 1) in [(work.seq_id, work.num_tokens) for work in plan.work]
        assert plan.num_tokens <= 8
        w.collect()
    assert len(tokens_of(w, "stream")) == 4


def test_newcomers_of_one_token_pay_for_it_from_the_budget():
    w = world(max_batch_tokens=8)
    w.add(make_request("long", 7))
    for number in range(7):
        w.add(make_request(f"short{number}", 1, seed=number))
    assert submitted(w).num_tokens == 8
    assert events(w, Blocked)[0].reason == "token_budget"


def test_decodes_that_could_take_the_whole_budget_leave_the_eldest_its_token():
    """Else it stands still while they run, and for good once they wait for blocks that only it may take from them."""
    w = world(max_batch_tokens=1, max_batch_size=1, num_stages=2)
    w.add(make_request("elder", 6, seed=1))
    w.add(make_request("younger", 1, 8, seed=2))
    while not tokens_of(w, "younger"):
        w.step()
    w.new_epoch(kv_lost=False)
    assert [seq_id for seq_id, _, _ in work_of(submitted(w))] == [0]
    w.drain()


# ---- who may not start, and why


def blocked_reasons(w: World) -> list[tuple[str, str]]:
    return [(event.request_id, event.reason) for event in events(w, Blocked)]


def test_the_first_request_that_does_not_fit_holds_up_those_behind_it_and_the_journal_says_why():
    w = world(num_blocks=6)
    w.add(make_request("running", 12, 8))
    w.add(make_request("large", 12, 8, seed=2))
    w.add(make_request("small", 1, 1, seed=3))
    w.step(), w.step()
    w.step()
    assert blocked_reasons(w) == [("large", "kv_blocks")]
    assert [event.request_id for event in events(w, Admitted)] == ["running"]
    w.drain()
    assert [event.request_id for event in events(w, Admitted)] == ["running", "large", "small"]


def test_a_full_batch_is_journalled_as_the_reason_to_wait():
    w = world(max_batch_size=2)
    w.add(make_request("pair", n=2))
    w.add(make_request("next", seed=2))
    submitted(w)
    assert blocked_reasons(w) == [("next", "batch_size")]


def test_reserve_admits_by_worst_case_and_on_demand_by_need():
    admitted = {}
    for admission in ("reserve", "on_demand"):
        w = world(num_blocks=10, admission=admission)
        for number in range(3):
            w.add(make_request(str(number), 4, 16, seed=number))
        submitted(w)
        admitted[admission] = len(events(w, Admitted))
    assert admitted == {"reserve": 2, "on_demand": 3}


def test_reserve_promises_each_branch_its_own_blocks():
    w = world(num_blocks=12, admission="reserve")
    w.add(make_request("branches", 4, 4, n=4))
    w.add(make_request("other", 13, 4, seed=2))
    submitted(w)
    assert events(w, Admitted)[0].reserved == 8
    assert blocked_reasons(w) == [("other", "kv_blocks")]


# ---- preemption


def crowd(w: World, count: int, max_tokens: int = 12) -> None:
    for number in range(count):
        w.add(make_request(f"r{number}", 4, max_tokens, seed=number, arrived_at=float(number)))


def test_the_latest_arrival_is_preempted_and_returns_by_recompute():
    w = world(num_blocks=7)
    crowd(w, 3)
    w.drain()
    first = events(w, Preempted)[0]
    assert (first.request_id, first.in_favour_of) == ("r2", "r1")
    restated = [e for e in events(w, Scheduled) if any(work[0] == 2 and work[1] == 0 for work in e.work)]
    assert len(restated) >= 2
    assert restated[1].work[-1][2] > 4, "prompt and answer are one prefill"


def test_no_newcomer_starts_before_the_preempted_return():
    w = world(num_blocks=7)
    crowd(w, 3)
    while not events(w, Preempted):
        w.step()
    w.add(make_request("newcomer", 1, 1, seed=9, arrived_at=9.0))
    w.drain()
    order = [event.request_id for event in events(w, Admitted)]
    assert order.index("newcomer") == len(order) - 1
    assert order.count("r2") >= 2


def test_nobody_is_preempted_for_blocks_that_are_about_to_be_free():
    """Blocks in limbo count as coming; the elder waits for them instead of chasing the next victim away."""
    w = world(num_blocks=7, block_size=2, lookahead=1)
    for number in range(3):
        w.add(make_request(f"r{number}", 2, 12, seed=number))
    while not events(w, Preempted):
        w.step()
    assert w.scheduler.pool.num_limbo > 0
    assert len(events(w, Preempted)) == 1
    w.drain()


def test_a_preempted_request_waits_until_its_plan_in_flight_is_back():
    w = world(num_blocks=4, block_size=2, lookahead=1, max_batch_tokens=8)
    crowd(w, 2, max_tokens=4)
    w.drain()
    assert ("r1", "in_flight") in blocked_reasons(w) or events(w, Preempted) == []


# ---- n > 1


def test_answers_to_one_prompt_share_its_blocks():
    w = world()
    w.add(make_request("r", 13, 6, n=4))
    w.step(), w.step()
    assert [(event.index, event.shared_blocks) for event in events(w, Forked)] == [(1, 3), (2, 3), (3, 3)]
    tables = [s.table.blocks for group in w.scheduler.groups() for s in group.sequences]
    assert [table[:3] for table in tables] == [tables[0][:3]] * 4
    submitted(w)
    assert w.config.num_blocks - w.scheduler.pool.num_free == 3 + 4
    w.drain()
    assert [tokens_of(w, "r", i) for i in range(4)] == [expected_answer(w.requests["r"], i)[0] for i in range(4)]


def test_a_half_filled_shared_block_is_copied_for_all_but_its_last_owner():
    w = world()
    w.add(make_request("r", 7, 6, n=3))
    assert not submitted(w).copies
    w.collect()
    copies = submitted(w).copies
    assert len(copies) == 2
    assert len({copy.source for copy in copies}) == 1
    assert len({copy.target for copy in copies}) == 2
    w.collect()
    assert not submitted(w).copies


def test_branches_of_a_one_token_prompt_run_it_themselves():
    w = world()
    w.add(make_request("r", 1, 5, n=3))
    assert work_of(submitted(w)) == [(0, 0, 1)]
    w.collect()
    assert work_of(submitted(w)) == [(0, 1, 1), (1, 0, 1), (2, 0, 1)]
    assert [event.shared_blocks for event in events(w, Forked)] == [0, 0]
    w.drain()


def test_a_branch_takes_the_lead_when_the_leader_is_aborted_in_its_prompt():
    w = world(max_batch_tokens=8)
    w.add(make_request("r", 30, 4, n=3))
    w.step(), w.step()
    w.abort("r", 0)
    w.drain()
    assert [tokens_of(w, "r", i) for i in (1, 2)] == [expected_answer(w.requests["r"], i)[0] for i in (1, 2)]
    assert [event.index for event in events(w, Forked)] == [2]


def test_all_answers_are_preempted_and_admitted_together():
    w = world(num_blocks=14, block_size=2)
    w.add(make_request("elder", 2, 16, seed=1))
    w.add(make_request("pair", 2, 8, seed=2, n=2, arrived_at=1.0))
    w.add(make_request("third", 2, 16, seed=3))
    w.drain()
    for event in events(w, Admitted) + events(w, Preempted):
        assert event.request_id in {"elder", "pair", "third"}
    assert "pair" in [event.request_id for event in events(w, Preempted)]


# ---- endings


def test_an_abort_frees_the_blocks_once_the_plan_in_flight_is_collected():
    w = world()
    w.add(make_request("r", 10))
    w.add(make_request("other", 3, seed=2))
    submitted(w)
    (progress,) = w.abort("r")
    assert (progress.finish_reason, progress.tokens) == (FinishReason.ABORT, ())
    assert w.scheduler.pool.num_limbo == 3
    assert {part.request_id for part in w.collect()} == {"other"}
    assert w.scheduler.pool.num_limbo == 0
    assert w.scheduler.pool.num_free == w.config.num_blocks - 1
    assert submitted(w).finished == (0,)


def test_an_abort_ends_a_request_that_has_not_started():
    w = world()
    w.add(make_request("r", n=2))
    assert [part.index for part in w.abort("r")] == [0, 1]
    assert isinstance(w.advance(), Idle)
    assert w.abort("r") == []
    assert w.abort("never seen") == []


def test_one_answer_can_be_ended_alone_and_by_a_stop_string():
    w = world()
    w.add(make_request("r", n=2, max_tokens=8))
    w.step(), w.step()
    (progress,) = w.abort("r", 1, FinishReason.STOP)
    assert (progress.index, progress.finish_reason) == (1, FinishReason.STOP)
    w.drain()
    assert w.delivered["r", 0].finish_reason is FinishReason.LENGTH


def test_an_end_token_is_delivered_and_named():
    w = world()
    request = make_request("r", max_tokens=30, eos=(EOS,), stop_token_ids=[3])
    w.add(request)
    w.drain()
    seen = w.delivered["r", 0]
    assert seen.finish_reason is FinishReason.STOP
    assert seen.stop_token == seen.tokens[-1]
    assert seen.stop_token in (EOS, 3)


def test_ignore_eos_runs_to_the_limit_and_min_tokens_holds_off_the_end():
    w = world()
    w.add(make_request("ignores", max_tokens=20, eos=tuple(range(VOCAB)), ignore_eos=True))
    w.add(make_request("waits", max_tokens=20, eos=tuple(range(1, VOCAB)), min_tokens=6, seed=2))
    w.drain()
    assert len(tokens_of(w, "ignores")) == 20
    assert len(tokens_of(w, "waits")) == 7


def test_a_failed_row_ends_its_request_and_no_other():
    w = world()
    w.add(make_request("bad", n=2))
    w.add(make_request("good", seed=2))
    submitted(w)
    w.run_next(frozenset([0]))
    progress = w.collect()
    ended = [(p.request_id, p.index, p.finish_reason, p.error_code) for p in progress if p.finish_reason]
    assert ended == [("bad", 0, FinishReason.ERROR, "nan"), ("bad", 1, FinishReason.ERROR, "nan")]
    w.drain()
    assert w.delivered["good", 0].finish_reason is FinishReason.LENGTH


def test_a_result_without_the_sample_that_was_asked_for_is_a_fault():
    core = Core(SchedulerConfig(num_blocks=8))
    core.add(make_request("r"), 0.0)
    core.advance(0.0)
    with pytest.raises(AssertionError, match="no output came for sequence 0"):
        core.update(IterationResult(0, 0, ()), 0.0)


def test_results_are_collected_in_the_order_of_their_plans():
    core = Core(SchedulerConfig(num_blocks=8))
    core.add(make_request("r"), 0.0)
    core.advance(0.0)
    with pytest.raises(AssertionError, match="collected 5, the oldest is 0"):
        core.update(IterationResult(0, 5, ()), 0.0)


def test_prompt_logprobs_come_once_and_in_order_also_after_a_preemption_in_the_prompt():
    w = world(num_blocks=9, max_batch_tokens=9)
    w.add(make_request("elder", 4, 20, seed=1))
    w.add(make_request("r", 24, 4, seed=2, prompt_logprobs=0, arrived_at=1.0))
    w.drain()
    assert "r" in [event.request_id for event in events(w, Preempted)]
    assert [line.logprob for line in w.delivered["r", 0].prompt_logprobs] == [float(at) for at in range(1, 24)]


def test_prompt_logprobs_are_asked_for_while_the_prompt_lasts():
    w = world(max_batch_size=3, max_batch_tokens=3)
    w.add(make_request("r", 4, 3, prompt_logprobs=0))
    outputs = []
    for _ in range(3):
        outputs.append(submitted(w).work[0].output)
        w.collect()
    assert outputs == [Output.PROMPT_LOGPROBS, Output.SAMPLE, Output.SAMPLE]


# ---- look-ahead


def test_lookahead_schedules_the_next_token_before_the_last_one_is_back():
    w = world(lookahead=1)
    w.add(make_request("r", 4, 3))
    submitted(w)
    (ahead,) = submitted(w).work
    assert (ahead.start, ahead.num_tokens, ahead.tokens, ahead.output) == (4, 1, FED_BACK, Output.SAMPLE)
    assert isinstance(w.advance(), Collect)
    w.drain()


def test_without_lookahead_a_sequence_is_in_one_plan_at_a_time():
    w = world(num_stages=2)
    w.add(make_request("r", 4, 3))
    submitted(w)
    assert w.advance() == Collect(has_room=True)


def test_a_late_stop_discards_the_surplus():
    w = world(lookahead=1)
    last = expected_answer(make_request("r", 4, 9), 0)[0][2]
    w.add(make_request("r", 4, 9, min_tokens=2, stop_token_ids=[last]))
    w.drain()
    assert tokens_of(w, "r") == expected_answer(w.requests["r"], 0)[0]
    assert len(tokens_of(w, "r")) == 3
    assert w.scheduler.num_iterations == 4, "one iteration was run in vain"


def test_lookahead_runs_nothing_past_max_tokens():
    w = world(lookahead=1)
    w.add(make_request("r", 4, 3))
    w.drain()
    assert w.scheduler.num_iterations == 3


# ---- stages


def test_as_many_plans_are_in_flight_as_there_are_stages():
    w = world(num_stages=3, max_batch_size=1, max_batch_tokens=8)
    for number in range(5):
        w.add(make_request(f"r{number}", seed=number))
    plans = [submitted(w) for _ in range(3)]
    assert [work_of(plan)[0][0] for plan in plans] == [0, 1, 2]
    assert w.advance() == Collect(has_room=False)


# ---- resumed requests


def resumed_request(kept: list[int], **params: object):
    request = make_request("r", 6, 8, n=len(kept), eos=(EOS,), **params)
    answers = [expected_answer(request, i)[0][:count] for i, count in enumerate(kept)]
    return make_resumed(request, answers)


def test_a_resumed_request_goes_on_from_its_tokens():
    w = world()
    request = resumed_request([3], ignore_eos=True)
    w.add(request)
    assert work_of(submitted(w)) == [(0, 0, 9)]
    w.drain()
    assert tokens_of(w, "r") == expected_answer(request, 0)[0]
    assert len(tokens_of(w, "r")) == 8


def test_an_answer_that_was_complete_before_the_failure_is_not_told_again():
    w = world()
    w.add(resumed_request([8, 2], ignore_eos=True))
    w.drain()
    assert [(event.index, event.generated_tokens) for event in events(w, Finished)] == [(1, 8)]


def test_an_answer_that_had_ended_by_its_stop_token_is_not_continued():
    first = expected_answer(make_request("r", 6, 8, n=2), 0)[0][0]
    w = world()
    w.add(resumed_request([1, 0], stop_token_ids=[first], seed=1))
    w.drain()
    assert {event.index for event in events(w, Finished)} == {1}


@pytest.mark.parametrize(("kept", "message"), [([8, 8], "nothing is left to generate"), ([1], "n is 2")])
def test_a_resumed_request_that_makes_no_sense_is_refused(kept, message):
    request = make_request("r", 6, 8, n=2, ignore_eos=True)
    answers = [expected_answer(request, i)[0][:count] for i, count in enumerate(kept)]
    w = world()
    with pytest.raises(InvalidRequest, match=message) as refusal:
        w.add(make_resumed(request, answers))
    assert refusal.value.param == "resumed"
    assert isinstance(w.advance(), Idle)


# ---- refusals


def test_a_request_that_could_not_run_alone_is_refused_with_the_numbers():
    w = world(num_blocks=4, max_batch_size=2, max_batch_tokens=8)
    with pytest.raises(InvalidRequest, match="may need 5 KV blocks and 1 sequences; this engine has 4 and 2"):
        w.add(make_request("long", 10, 7))
    with pytest.raises(InvalidRequest, match="3 sequences"):
        w.add(make_request("wide", 1, 1, n=3))
    w.add(make_request("fits", 10, 6))
    w.drain()


def test_an_id_in_use_is_refused_and_free_again_after_the_end():
    w = world()
    w.add(make_request("r"))
    with pytest.raises(InvalidRequest, match="'r' is in use"):
        w.core.add(make_request("r"), 0.0)
    w.drain()
    w.add(make_request("r"))
    w.drain()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_blocks": 0}, "num_blocks is 0; it must be at least 1"),
        ({"num_stages": 0}, "num_stages is 0"),
        ({"lookahead": 2}, "lookahead is 2; it must be 0 or 1"),
        ({"max_batch_tokens": 4, "max_batch_size": 5}, r"max_batch_tokens \(4\) is below max_batch_size \(5\)"),
        ({"admission": "on-demand"}, r"admission 'on-demand' is unknown \(did you mean 'on_demand'\?\)"),
        ({"policy": "fcfc"}, r"policy 'fcfc' is unknown \(did you mean 'fcfs'\?\); known: fcfs"),
        ({"policy": "zzz"}, "policy 'zzz' is unknown; known: fcfs"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name_value_and_bound(options, message):
    with pytest.raises(ConfigurationError, match=message):
        SchedulerConfig(**{"num_blocks": 8, **options})


# ---- epochs


def test_after_an_epoch_change_with_kv_intact_work_goes_on_from_the_last_commit():
    w = world(max_batch_tokens=8)
    w.add(make_request("r", 20, 4))
    w.step(), w.step(), w.step()
    w.run_next()
    w.new_epoch(kv_lost=False)
    plan = submitted(w)
    assert (plan.epoch, work_of(plan)) == (1, [(0, 8, 8)])
    assert [new.seq_id for new in plan.new] == [0]
    w.deliver_stale()
    w.drain()


def test_after_an_epoch_change_with_kv_lost_every_sequence_starts_over():
    w = world(max_batch_tokens=8)
    w.add(make_request("r", 20, 4))
    w.step(), w.step(), w.step()
    w.new_epoch(kv_lost=True)
    assert work_of(submitted(w)) == [(0, 0, 8)]
    w.drain()
    (started,) = events(w, EpochStarted)
    assert (started.epoch, started.abandoned_plans, started.kv_lost) == (1, 1, True)


def test_a_request_whose_copy_was_abandoned_recomputes_and_no_block_waits_for_ever():
    w = world(num_blocks=6)
    w.add(make_request("r", 6, 6, n=2))
    w.step(), w.step()
    assert submitted(w).copies
    w.new_epoch(kv_lost=False, half_done=3)
    assert w.scheduler.pool.num_limbo == 0
    # The prompt and the one token that was committed.
    assert work_of(submitted(w)) == [(0, 0, 7)]
    w.drain()


def test_an_abandoned_copy_is_not_made_again_from_a_block_that_was_written_since():
    """Under look-ahead the leader's computed token lay in a shared block that its last owner then wrote."""
    w = world(block_size=8, lookahead=1)
    w.add(make_request("r", 3, 20, n=2))
    for _ in range(3):
        w.advance()
        if len(w.in_flight) == 2:
            w.collect()
    while not any(out.plan.copies for out in w.in_flight):
        w.step()
    while len(w.in_flight) < 2:
        assert isinstance(w.advance(), Submit)
    w.run_next(), w.run_next()
    w.new_epoch(kv_lost=False)
    w.drain()


def test_an_end_while_an_epoch_changes_is_final():
    w = world(lookahead=1)
    w.add(make_request("r", 6, 6, n=2))
    w.advance(), w.step()
    w.advance()
    w.abort("r", 0)
    w.new_epoch(kv_lost=False)
    w.drain()
    assert w.delivered["r", 0].finish_reason is FinishReason.ABORT


# ---- the loop, the journal, the policy


def test_an_empty_core_is_idle():
    assert Core(SchedulerConfig(num_blocks=8)).advance(0.0) == Idle()


def test_a_new_sequence_is_told_in_full_and_a_steady_decode_in_a_few_bytes():
    w = world(block_size=16)
    w.add(make_request("r", 20, 30, seed=5, temperature=0.5))
    (new,) = submitted(w).new
    assert (new.num_prompt_tokens, len(new.tokens), len(new.blocks)) == (20, 80, 8)
    assert new.params.temperature == 0.5
    w.collect()
    plan = submitted(w)
    assert (plan.new, plan.block_deltas, plan.copies, plan.finished) == ((), (), (), ())
    assert len(msgspec.msgpack.encode(plan.work[0])) <= 16


def test_the_journal_keeps_the_newest_events_and_counts_all():
    journal = Journal(capacity=3)
    for number in range(5):
        journal.write(Blocked(float(number), "r", "kv_blocks"))
    assert len(journal) == 3
    assert [event.at for event in journal] == [2.0, 3.0, 4.0]
    assert journal.counts == {"Blocked": 5}
    assert journal.encode().splitlines()[0] == b'{"type":"blocked","at":2.0,"request_id":"r","reason":"kv_blocks"}'


def test_the_policy_decides_and_is_asked_again_when_its_order_expires(monkeypatch):
    class Rotating(PlainPolicy):
        """Every ten seconds the other end of the queue comes first."""

        name = "rotating"

        def rank(self, view, now):
            return (1.0, 0.0, view.request.priority * (1 if now < 10 else -1))

        def on_service(self, view, tokens, now):
            served.append((view.request.request_id, tokens))

        def changed(self, waiting, now):
            return () if now < 10 else None

        def stable_until(self, now):
            return 10.0 if now < 10 else float("inf")

    served: list[tuple[str, int]] = []
    monkeypatch.setitem(POLICIES, "rotating", Rotating)
    core = Core(SchedulerConfig(num_blocks=64, max_batch_size=1, max_batch_tokens=64, policy="rotating"))
    for number in range(3):
        core.add(msgspec.structs.replace(make_request(f"r{number}", seed=number), priority=number), 0.0)
    core.advance(1.0)
    assert served == [("r0", 4)]
    core.abort("r0", 2.0)
    core.update(IterationResult(0, 0, (), (SequenceFailure(0, "late", ""),)), 3.0)
    core.advance(11.0)
    assert served == [("r0", 4), ("r2", 4)]


def test_a_virtual_clock_only_goes_forward():
    clock = VirtualClock(1.0)
    clock.advance_to(2.5)
    assert clock.now() == 2.5
    with pytest.raises(AssertionError, match="can't go back"):
        clock.advance_to(2.0)


def test_the_closed_form_model_is_sensitive_to_every_input():
    """Else the invariants would not see tokens that are crossed between requests, answers or positions."""
    params = [make_request("r", seed=seed).params for seed in (1, 2)]
    lines = {
        tuple(closed_form_token(p, (), 4, index, at) for at in range(first, first + 12))
        for p in params
        for index in (0, 1)
        for first in (4, 5)
    }
    assert len(lines) == 8


# ---- memory


def test_less_than_four_percent_of_the_kv_memory_in_use_is_empty():
    """vLLM (SYSTEMS.md §2): block 16, mean length ≥ 250, a saturated pool; measured at the pool at every iteration."""
    w = world(num_blocks=400, block_size=16, max_batch_size=64, max_batch_tokens=2048)
    for number in range(60):
        w.core.add(make_request(f"r{number}", 250 + 7 * number % 130, 60, seed=number), 0.0)
    wasted = owned = 0
    lengths: list[int] = []
    while w.scheduler.waiting or not lengths:
        decision = w.core.advance(0.0)
        if isinstance(decision, Submit):
            result = run_without_checks(decision.plan)
            sequences = [s for group in w.scheduler.running for s in group.sequences if s.table.blocks]
            slots = (w.config.num_blocks - w.scheduler.pool.num_free) * 16
            owned += slots
            wasted += slots - sum(s.num_scheduled for s in sequences)
            lengths += [s.num_tokens for s in sequences]
            w.core.update(result, 0.0)
    assert sum(lengths) / len(lengths) >= 250
    assert w.journal.counts["Preempted"] > 0, "the pool was never full"
    assert wasted / owned < 0.04, f"{wasted / owned:.2%} of the KV memory in use is empty"


def run_without_checks(plan: IterationPlan) -> IterationResult:
    outputs = tuple(SequenceOutput(work.seq_id, (1,)) for work in plan.work if work.output)
    return IterationResult(plan.epoch, plan.iteration, outputs)
