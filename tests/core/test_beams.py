"""Beam search: core's choices against a plain one and against a search of everything; beams as sequences."""

from __future__ import annotations

import math
import random

import msgspec
import pytest
from beam_reference import Found, everything, reference_search
from core_harness import EOS, World, closed_form_values, make_request

from orcinus.core.beams import Beams, score
from orcinus.core.config import SchedulerConfig
from orcinus.core.core import Collect, Submit
from orcinus.core.journal import BeamsChosen
from orcinus.core.plan import TokenLogprobs
from orcinus.core.recording import replay
from orcinus.core.request import BeamSearch, FinishReason, Request, ServiceClass
from orcinus.errors import InvalidRequest


def searching(name: str = "r", prompt: list[int] | int = 4, max_tokens: int = 6, **options: object) -> Request:
    """A request for as many answers as there are beams, unless `n` says less."""
    fields = {key: options.pop(key) for key in ("width", "length_penalty", "early_stopping") if key in options}
    search = BeamSearch(**{"width": 3, **fields})  # type: ignore[arg-type]
    request = make_request(name, prompt, max_tokens, **{"n": search.width, "eos": (EOS,), **options})  # type: ignore[arg-type]
    return msgspec.structs.replace(request, beams=search)


def likeliest(values: list[float], count: int) -> TokenLogprobs:
    order = sorted(range(len(values)), key=lambda token: (-values[token], token))[:count]
    return TokenLogprobs(values[order[0]], 1, tuple(order), tuple(values[token] for token in order))


def run_beams(values, request: Request) -> tuple[list[Found], list[list[int]]]:
    """The answers of `Beams` when each beam is told what the model says; and the parents chosen at each step."""
    beams = Beams(request)
    lines: dict[int, tuple[int, ...]] = {0: ()}
    parents = []
    while True:
        for slot in sorted(lines, reverse=True):
            found = likeliest(values(lines[slot]), request.num_candidates)
            assert not beams.is_complete
            beams.offer(slot, found.top_ids[0], found)
        assert beams.is_complete
        moves = beams.choose()
        if not moves:
            break
        lines = {move.slot: (*lines[move.parent], move.token) for move in moves}
        assert len(lines) == len(moves) <= request.beams.width, "two beams in one slot"
        parents.append([move.parent for move in moves])
    read = [(answer, *answer.read()) for answer in beams.answers]
    for answer, tokens, logprobs in read:
        assert answer.score == pytest.approx(
            score(sum(each.logprob for each in logprobs), len(tokens), request.beams.length_penalty)
        )
    return [Found(t, tuple(each.logprob for each in lp), a.reason) for a, t, lp in read], parents


def random_values(seed: int, vocab: int, spread: float = 3.0):
    """A language model: whatever the beginning, a distribution of its own."""

    def values(tokens: tuple[int, ...]) -> list[float]:
        rng = random.Random(f"{seed} {tokens}")
        logits = [rng.uniform(0, spread) for _ in range(vocab)]
        total = math.log(sum(map(math.exp, logits)))
        return [logit - total for logit in logits]

    return values


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -1.0, 2.5])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_the_answers_are_those_of_a_plain_search(width, length_penalty, early_stopping):
    search = {"width": width, "length_penalty": length_penalty, "early_stopping": early_stopping}
    for seed in range(12):
        rng = random.Random(seed)
        values = random_values(seed, 12)
        ends = tuple(rng.sample(range(12), rng.choice([0, 1, 1, 3])))
        request = searching(max_tokens=rng.choice([1, 2, 9]), eos=ends, min_tokens=rng.choice([0, 0, 1]), **search)
        assert run_beams(values, request)[0] == reference_search(values, request), f"seed {seed}"


@pytest.mark.parametrize("eos", [(), (2,)])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_as_many_beams_as_beginnings_find_the_best_of_all_answers(eos, length_penalty):
    """V^T beams leave nothing out."""
    for seed in range(8):
        values = random_values(seed, 4)
        request = searching(max_tokens=3, width=64, eos=eos, length_penalty=length_penalty, early_stopping="never")
        best = everything(values, request, 4)
        found = run_beams(values, request)[0]
        assert [each.tokens for each in found] == [each.tokens for each in best][:64], f"seed {seed}"


def test_one_beam_is_greedy():
    values = random_values(5, 12)
    ((found, *_), parents) = run_beams(values, searching(max_tokens=9, width=1, eos=()))
    tokens: tuple[int, ...] = ()
    for _ in range(9):
        line = values(tokens)
        tokens += (line.index(max(line)),)
    assert found.tokens == tokens
    assert parents == [[0]] * 8


def test_of_equal_scores_the_lower_beam_and_then_the_lower_token_is_chosen():
    beams = Beams(searching(width=2, max_tokens=3, eos=()))
    beams.offer(0, 4, TokenLogprobs(-1.0, 1, (4, 6), (-1.0, -1.0)))
    assert [(move.slot, move.parent, move.token) for move in beams.choose()] == [(0, 0, 4), (1, 0, 6)]
    for slot in (1, 0):
        beams.offer(slot, 2, TokenLogprobs(-1.0, 1, (2, 3), (-1.0, -1.0)))
    moves = beams.choose()
    assert [(move.slot, move.parent, move.token) for move in moves] == [(0, 0, 2), (1, 0, 3)]
    assert [move.is_sampled for move in moves] == [True, False]


def test_ranks_and_the_likeliest_tokens_are_told_as_in_sampling():
    request = searching(width=2, max_tokens=1, eos=(), logprobs=1)
    beams = Beams(request)
    beams.offer(0, 4, TokenLogprobs(-0.5, 1, (4, 6, 9), (-0.5, -1.0, -1.0)))
    assert beams.choose() == []
    told = [answer.read() for answer in beams.answers]
    assert told == [
        ((4,), (TokenLogprobs(-0.5, 1, (4,), (-0.5,)),)),
        ((6,), (TokenLogprobs(-1.0, 3, (4,), (-0.5,)),)),
    ]


# ---- as sequences


def roomy(**options: object) -> SchedulerConfig:
    return SchedulerConfig(
        **{"num_blocks": 200, "block_size": 4, "max_batch_tokens": 64, "max_batch_size": 8, **options}
    )  # type: ignore[arg-type]


def finished(world: World, name: str) -> list[list[int]]:
    return [seen.tokens for (request_id, _), seen in sorted(world.delivered.items()) if request_id == name]


def test_answers_come_at_the_end_all_at_once_and_best_first():
    world = World(roomy())
    request = searching(n=2, width=3, logprobs=0)
    world.add(request)
    while not world.in_flight or not (progress := world.collect()):
        world.advance()
    assert [part.index for part in progress] == [0, 1]
    best = reference_search(closed_form_values(request), request)
    for part, answer in zip(progress, best, strict=False):
        assert part.tokens == answer.tokens
        assert [each.logprob for each in part.logprobs] == list(answer.logprobs)
        assert part.stop_token == (answer.tokens[-1] if answer.reason is FinishReason.STOP else None)
    assert world.scheduler.pool.num_free == 200, "a beam kept its blocks"
    assert not world.scheduler.groups()


def test_the_beams_of_a_request_run_in_one_iteration_or_wait():
    """Beside three others a gang of six doesn't fit a batch of eight at once; it never goes in parts."""
    world = World(roomy(max_batch_size=8, num_stages=2))
    for number in range(3):
        world.add(make_request(f"other{number}", 3, 40, seed=number + 50, n=2))
    world.add(searching("gang", width=6, max_tokens=20, eos=()))
    sizes = []
    for _ in range(200):
        decision = world.advance()
        if isinstance(decision, Submit):
            gang = next((g for g in world.scheduler.running if g.request.request_id == "gang"), None)
            ids = {each.seq_id for each in gang.sequences} if gang else set()
            sizes.append(sum(work.seq_id in ids for work in decision.plan.work))
        elif isinstance(decision, Collect):
            world.collect()
    assert set(sizes) == {0, 1, 6}
    assert sizes.count(6) == 19
    world.drain()


def test_beams_share_blocks_and_dropped_ones_free_theirs_at_once():
    world = World(roomy())
    world.add(searching(prompt=13, width=4, max_tokens=24, eos=()))
    world.drain()
    chosen = [event for event in world.journal if isinstance(event, BeamsChosen)]
    assert len(chosen) == 23
    for event in chosen:
        assert event.blocks < event.blocks_unshared, "the prompt's full blocks at least are shared"
        assert event.blocks_unshared <= 4 * math.ceil((13 + 24) / 4)
        assert set(event.parents) <= {-1, 0, 1, 2, 3}
    assert any(set(event.parents) != {0, 1, 2, 3} for event in chosen), "no beam was ever dropped"


def test_where_no_beam_is_yet_the_journal_names_no_parent():
    world = World(roomy())
    world.add(searching(prompt=13, width=4, max_tokens=2, eos=()))
    beams = world.scheduler.groups()[0].beams
    beams._search = BeamSearch(width=2)
    world.drain()
    (event,) = [event for event in world.journal if isinstance(event, BeamsChosen)]
    assert event.parents == (0, 0, -1, -1)


def test_a_beam_copies_a_shared_block_only_when_it_writes_into_it_and_the_last_one_not_at_all():
    """Three beams behind five tokens: the block of the fifth is shared, and one of the three may keep it."""
    world = World(roomy())
    world.add(searching(prompt=5, width=3, max_tokens=4, eos=()))
    world.step()
    world.collect()
    decision = world.advance()
    assert isinstance(decision, Submit)
    assert len(decision.plan.work) == 3
    assert len(decision.plan.copies) == 2


def test_a_pool_of_the_worst_case_is_enough():
    for prompt in range(1, 9):
        world = World(roomy(num_blocks=3 * math.ceil((prompt + 9) / 4)))
        world.add(searching(prompt=prompt, width=3, max_tokens=9, eos=()))
        world.drain()
        assert not any(event for event in world.journal if type(event).__name__ == "Preempted")


def test_nothing_is_sampled_ahead_of_a_choice():
    world = World(roomy(lookahead=1, num_stages=2))
    world.add(searching(width=3, max_tokens=8, eos=()))
    while world.scheduler.groups():
        decision = world.advance()
        if isinstance(decision, Submit):
            assert len(world.in_flight) == 1
        else:
            world.collect()


def test_a_preempted_gang_comes_back_to_the_same_answers():
    """What is served before it takes its blocks; `World` compares the answers with a plain search."""
    world = World(roomy(num_blocks=27, max_batch_size=6))
    world.add(searching("gang", prompt=6, width=3, max_tokens=30, eos=(), service_class=ServiceClass.BESTEFFORT))
    for number in range(2):
        while not world.scheduler.running or world.scheduler.running[0].request.request_id != "gang":
            world.step()
        for _ in range(12 - 6 * number):
            world.step()
        rival = make_request(f"rival{number}", 60, 45, seed=number + 7, arrived_at=world.now)
        world.add(msgspec.structs.replace(rival, service_class=ServiceClass.REALTIME))
    world.drain()
    preempted = [event.request_id for event in world.journal if type(event).__name__ == "Preempted"]
    assert set(preempted) == {"gang"}
    assert len(finished(world, "gang")) == 3


def test_an_abort_of_one_answer_ends_the_search():
    world = World(roomy())
    world.add(searching(width=3, n=2, max_tokens=30, eos=()))
    for _ in range(8):
        world.step()
    ends = world.abort("r", 1)
    assert [(end.index, end.finish_reason) for end in ends] == [(0, FinishReason.ABORT), (1, FinishReason.ABORT)]
    world.drain()


def test_an_abort_of_a_beam_that_is_no_answer_means_nobody():
    world = World(roomy())
    world.add(searching(width=3, n=2, max_tokens=5, eos=()))
    world.step()
    assert world.abort("r", 2) == []
    world.drain()
    assert len(finished(world, "r")) == 2


def test_a_beam_that_fails_ends_the_search_and_tells_it_once_for_each_answer():
    world = World(roomy())
    world.add(searching(width=4, n=2, max_tokens=30, eos=()))
    while not any(len(out.plan.work) == 4 for out in world.in_flight):
        world.step()
    victim = world.in_flight[-1].plan.work[-1].seq_id
    world.run_next(frozenset([victim]))
    ends = world.collect()
    assert [(end.index, end.finish_reason) for end in ends] == [(0, FinishReason.ERROR), (1, FinishReason.ERROR)]
    world.drain()


def test_fewer_answers_than_wanted_is_an_error_that_says_so():
    """The door refuses this; with masks of its own a model may still leave too little."""
    world = World(roomy())
    request = searching(width=3, max_tokens=1, eos=())
    world.add(request)
    world.advance()
    world.run_next()
    out = world.in_flight[0]
    poor = TokenLogprobs(-1.0, 1, (4,), (-1.0,))
    (output,) = out.result.outputs
    out.result = msgspec.structs.replace(out.result, outputs=(msgspec.structs.replace(output, logprobs=(poor,)),))
    ends = world.core.update(out.result, world.now)
    assert {(end.finish_reason, end.error_code) for end in ends} == {(FinishReason.ERROR, "no_candidates")}
    assert "found 1 answer" in ends[0].error_message
    assert world.scheduler.pool.num_free == 200


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (searching(width=9), "9 sequences"),
        (searching(width=2, n=3), "more than the 2 beams"),
        (searching(width=2, n=1, resumed=(b"\1\0\0\0",)), "can't be resumed"),
    ],
)
def test_what_a_search_can_not_do_is_refused(request_, words):
    with pytest.raises(InvalidRequest, match=words):
        World(roomy(num_stages=2)).add(request_)


def test_a_search_whose_engine_died_begins_again_and_ends_the_same():
    """Nothing was told before, so the front end sends empty answers along."""
    request = searching(width=3, n=2)
    world = World(roomy())
    world.add(msgspec.structs.replace(request, resumed=(b"", b"")))
    world.drain()
    best = reference_search(closed_form_values(request), request)
    assert finished(world, "r") == [list(answer.tokens) for answer in best[:2]]


def test_a_recorded_search_replays_to_the_same_decisions():
    lines: list[bytes] = []
    world = World(roomy(num_blocks=40, enable_prefix_caching=True), lines)
    world.add(searching("one", prompt=9, width=4, max_tokens=20))
    world.add(make_request("two", 9, 12, seed=4, n=2))
    for _ in range(9):
        world.step()
    world.new_epoch(kv_lost=True)
    world.add(searching("three", prompt=5, width=3, max_tokens=9, early_stopping=True))
    world.drain()
    assert replay(lines)[1] is None
    assert replay(lines)[0].journal.counts == world.journal.counts
