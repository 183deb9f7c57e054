"""A recording repeats a run exactly, tells where a run left it, and gives no client away."""

from __future__ import annotations

import msgspec
import pytest
from core_harness import VOCAB, World, expected_answer, make_request
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scheduler_invariants import live_a_life

from orcinus.core.config import SchedulerConfig
from orcinus.core.core import Core
from orcinus.core.journal import Finished, Preempted
from orcinus.core.plan import IterationResult, SequenceOutput, TokenLogprobs
from orcinus.core.recording import AddInput, AdvanceInput, Recorder, ResultInput, Started, read, replay
from orcinus.core.request import FinishReason, Request, SamplingParams, pack_tokens, unpack_tokens
from orcinus.errors import InvalidRequest

SECRET = 4_242_424_2


def small_world(lines: list[bytes], **config: object) -> World:
    return World(SchedulerConfig(**{"num_blocks": 20, "block_size": 4, **config}), lines)


def recorded_run() -> list[bytes]:
    lines: list[bytes] = []
    world = small_world(lines, max_batch_tokens=12, max_batch_size=4)
    for number in range(6):
        world.add(make_request(f"r{number}", 5 + number, 6, seed=number, n=1 + number % 2))
        world.step()
    world.abort("r3")
    world.drain()
    return lines


@pytest.mark.parametrize("first", range(1000, 1100, 25))
def test_recorded_lives_replay_without_a_difference_and_with_the_same_journal(first):
    for seed in range(first, first + 25):
        lines: list[bytes] = []
        world = live_a_life(seed, record=lines)
        core, difference = replay(lines)
        assert difference is None, f"seed {seed}: {difference}"
        assert core.journal.encode() == world.journal.encode(), f"seed {seed}"


def test_what_went_to_the_host_and_came_back_replays_too():
    lines: list[bytes] = []
    world = small_world(
        lines, num_blocks=8, enable_prefix_caching=True, num_host_blocks=16, host_block_seconds=0.0, lookahead=1
    )
    prompts = [[number] * 12 for number in range(4)]
    for turn in range(2):
        for number, prompt in enumerate(prompts):
            world.add(make_request(f"{turn}-{number}", prompt, 6, seed=number))
        world.drain()
    assert min(world.journal.counts["Restored"], world.journal.counts["Spilled"]) > 0
    core, difference = replay(lines)
    assert difference is None
    assert core.journal.encode() == world.journal.encode()


def test_a_refused_request_is_refused_again_in_the_replay():
    lines: list[bytes] = []
    world = small_world(lines)
    with pytest.raises(InvalidRequest):
        world.add(make_request("too-long", 100, 100))
    world.add(make_request("fits"))
    world.drain()
    assert replay(lines)[1] is None


def test_an_end_token_of_a_sequence_that_was_preempted_in_flight_is_kept():
    """The workers have been told to forget it when its last result comes back; core still takes the token."""
    lines: list[bytes] = []
    world = small_world(lines, num_blocks=6, max_batch_tokens=8, max_batch_size=4, lookahead=1)
    last = expected_answer(make_request("b", 1, 4, seed=3), 0)[0][3]
    assert last != 0
    world.add(make_request("f", 1, 12, seed=1))
    world.add(make_request("a", 12, 8, seed=2))
    world.add(make_request("b", 1, 8, seed=3, min_tokens=3, stop_token_ids=[last]))
    world.drain()
    preempted = next(event for event in world.journal if isinstance(event, Preempted))
    (ended,) = [event for event in world.journal if isinstance(event, Finished) and event.request_id == "b"]
    assert (preempted.request_id, ended.reason, ended.generated_tokens) == ("b", "stop", 4)
    assert replay(lines)[1] is None


def test_a_stale_result_leaves_the_surrogates_of_the_next_epoch_alone():
    def results(*, with_stale: bool) -> list[SequenceOutput]:
        lines: list[bytes] = []
        world = small_world(lines)
        world.add(make_request("r", 3, 6))
        world.advance()
        world.run_next()
        world.new_epoch(kv_lost=False)
        world.step()
        if with_stale:
            world.deliver_stale()
        world.drain()
        records = [record for record in read(lines) if isinstance(record, ResultInput)]
        return [output for record in records if record.result.epoch == 1 for output in record.result.outputs]

    assert results(with_stale=True) == results(with_stale=False)


def test_a_tampered_result_shows_the_first_difference():
    lines = recorded_run()
    records = list(read(lines))
    at = next(i for i, record in enumerate(records) if isinstance(record, ResultInput) and record.result.outputs)
    victim = records[at]
    emptied = msgspec.structs.replace(
        victim.result,
        outputs=(*victim.result.outputs[:-1], msgspec.structs.replace(victim.result.outputs[-1], tokens=())),
    )
    lines[at] = msgspec.json.encode(msgspec.structs.replace(victim, result=emptied))
    difference = replay(lines)[1]
    assert difference is not None
    following = next(i for i in range(at, len(records)) if isinstance(records[i], AdvanceInput))
    assert difference.line == following + 1
    assert difference.recorded == records[following]
    assert difference.replayed != difference.recorded


def test_a_tampered_decision_is_the_first_difference():
    lines = recorded_run()
    records = list(read(lines))
    at = max(i for i, record in enumerate(records) if isinstance(record, AdvanceInput) and record.plan)
    lines[at] = msgspec.json.encode(AdvanceInput(records[at].at, "Idle"))
    difference = replay(lines)[1]
    assert difference is not None
    assert (difference.line, difference.recorded.decision, difference.replayed.decision) == (at + 1, "Idle", "Submit")


def test_another_configuration_shows_the_first_difference():
    lines = recorded_run()
    started = next(read(lines))
    assert isinstance(started, Started)
    lines[0] = msgspec.json.encode(Started(msgspec.structs.replace(started.config, max_batch_tokens=8)))
    difference = replay(lines)[1]
    assert difference is not None
    assert difference.recorded.plan != difference.replayed.plan


def test_a_file_without_a_snapshot_is_no_recording():
    with pytest.raises(ValueError, match="first line"):
        replay([])
    with pytest.raises(ValueError, match="first line"):
        replay(recorded_run()[1:])


@pytest.mark.parametrize("missing", [1, 30])
def test_a_line_that_was_being_written_when_the_engine_died_is_left_out(missing):
    *lines, last = recorded_run()
    whole = [line + b"\n" for line in lines]
    core, difference = replay([*whole, last[:-missing]])
    assert difference is None
    assert core.journal.encode() == replay(whole)[0].journal.encode()


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_that_is_broken_in_the_middle_of_a_recording_is_told(end):
    first, *lines, last = (line + end for line in recorded_run())
    with pytest.raises(msgspec.DecodeError):
        replay([first, *lines, b'{"type":"adv' + end, last])
    with pytest.raises(msgspec.DecodeError):
        replay([first, *lines, last, b'{"type":"adv\n'])


def test_two_recordings_in_one_file_are_refused():
    lines = recorded_run()
    with pytest.raises(ValueError, match=f"line {len(lines) + 1} is a second snapshot"):
        replay([*lines, lines[0]])


def test_no_token_and_no_stop_string_of_a_client_is_written():
    lines: list[bytes] = []
    recorder = Recorder(Core(SchedulerConfig(num_blocks=20, block_size=4)), b"key", lines.append)
    params = SamplingParams(
        seed=1,
        max_tokens=3,
        stop="my secret stop",
        stop_token_ids=[77],
        logit_bias={SECRET: 1.0},
        allowed_token_ids=[SECRET, 77],
        banned_token_ids=[SECRET + 1],
    )
    prompt = pack_tokens([SECRET] * 5)
    recorder.add(Request(request_id="r", prompt=prompt, params=params, resumed=(pack_tokens([SECRET]),)), 0.0)
    recorder.advance(0.0)
    logprobs = (TokenLogprobs(-1.0, 0, (SECRET,), (-1.0,)),)
    recorder.update(IterationResult(0, 0, (SequenceOutput(0, (SECRET,), logprobs, logprobs),)), 1.0)
    recorder.advance(1.0)
    recorder.update(IterationResult(0, 1, (SequenceOutput(0, (77,)),)), 2.0)
    assert recorder.config.num_blocks == 20
    assert b"secret" not in b"".join(lines)
    assert str(SECRET).encode() not in b"".join(lines)
    for packed in _packed_fields(list(read(lines))):
        assert SECRET not in unpack_tokens(packed)
    (last,) = [record for record in read(lines) if isinstance(record, ResultInput)][-1].result.outputs
    assert last.tokens == (77,)


def _packed_fields(records: list[object]) -> list[bytes]:
    packed: list[bytes] = []
    for record in records:
        if isinstance(record, AddInput):
            packed += [record.request.prompt, *record.request.resumed]
        if isinstance(record, AdvanceInput) and record.plan:
            packed += [work.tokens for work in record.plan.work] + [new.tokens for new in record.plan.new]
    return packed


TOKENS = st.lists(st.integers(0, 5), min_size=1, max_size=12)


def recorded_prompt(key: bytes, tokens: list[int], stop_token_ids: list[int] | None = None) -> list[int]:
    lines: list[bytes] = []
    recorder = Recorder(Core(SchedulerConfig(num_blocks=20)), key, lines.append)
    recorder.add(make_request("r", tokens, stop_token_ids=stop_token_ids), 0.0)
    added = list(read(lines))[1]
    assert isinstance(added, AddInput)
    return list(unpack_tokens(added.request.prompt))


def common_prefix(left: list[int], right: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


@settings(derandomize=True, deadline=None, max_examples=150)
@given(TOKENS, TOKENS, st.none() | st.lists(st.integers(0, 5), max_size=2))
def test_surrogates_keep_equal_prefixes_equal_and_others_apart(left, right, stop_token_ids):
    """Whatever the end tokens: two requests share as many blocks in the replay as they did in the run."""
    disguised = recorded_prompt(b"k", left), recorded_prompt(b"k", right, stop_token_ids)
    assert common_prefix(*disguised) == common_prefix(left, right)
    assert not {*disguised[0], *disguised[1]} & set(range(6))


def test_no_surrogate_of_an_answer_passes_for_an_end_token():
    """The replay would end where the run went on."""
    sampled, unlucky = 2, recorded_prompt(b"k", [1, 2])[1]
    lines: list[bytes] = []
    recorder = Recorder(Core(SchedulerConfig(num_blocks=20)), b"k", lines.append)
    recorder.add(make_request("r", [1], 4, stop_token_ids=[unlucky]), 0.0)
    recorder.advance(0.0)
    recorder.update(IterationResult(0, 0, (SequenceOutput(0, (sampled,)),)), 1.0)
    recorder.advance(1.0)
    written = [record for record in read(lines) if isinstance(record, ResultInput)]
    assert written[0].result.outputs[0].tokens == (unlucky + 1,)
    assert replay(lines)[1] is None


def test_surrogates_of_another_key_are_others():
    assert common_prefix(recorded_prompt(b"one", [1, 2, 3]), recorded_prompt(b"two", [1, 2, 3])) == 0


def test_an_answer_has_the_surrogates_that_it_has_as_part_of_the_next_prompt():
    """A chat's next turn shares the KV of its last one; so must its recording."""
    lines: list[bytes] = []
    world = small_world(lines)
    first = make_request("turn1", [1, 2, 3], 4)
    world.add(first)
    world.drain()
    world.add(make_request("turn2", [1, 2, 3, *expected_answer(first, 0)[0]], 2))
    world.drain()
    records = list(read(lines))
    prompts = [list(unpack_tokens(r.request.prompt)) for r in records if isinstance(r, AddInput)]
    outputs = [o for r in records if isinstance(r, ResultInput) for o in r.result.outputs if o.seq_id == 0]
    assert prompts[1] == prompts[0] + [token for output in outputs for token in output.tokens]


def test_an_ending_from_outside_replays():
    lines: list[bytes] = []
    world = small_world(lines)
    world.add(make_request("r", 3, 30, n=2, eos=(VOCAB,)))
    world.step(), world.step(), world.step()
    world.abort("r", 1, FinishReason.STOP)
    world.step()
    world.new_epoch(kv_lost=True)
    world.drain()
    assert replay(lines)[1] is None
