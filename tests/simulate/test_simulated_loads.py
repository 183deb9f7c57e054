"""Loads: equal for equal seeds, true to their distributions, and prefixes that are equal where they should be."""

from __future__ import annotations

import json
import random
from itertools import islice, pairwise

import numpy as np
import pytest

from orcinus.errors import ConfigurationError
from orcinus.simulate.arrivals import diurnal, on_off, regular_or_bursty
from orcinus.simulate.config import WorkloadConfig
from orcinus.simulate.lengths import LogNormal, Uniform, parse_lengths
from orcinus.simulate.workloads import make_jobs


def jobs(**fields):
    return list(make_jobs(WorkloadConfig(**fields)))


@pytest.mark.parametrize("workload", ["independent", "shared-prefix", "multi-turn"])
@pytest.mark.parametrize("arrivals", ["poisson", "gamma", "on-off", "diurnal"])
def test_equal_seeds_give_equal_loads(workload, arrivals):
    fields = {"workload": workload, "arrivals": arrivals, "num_requests": 30}
    assert jobs(**fields, seed=1) == jobs(**fields, seed=1)
    assert jobs(**fields, seed=1) != jobs(**fields, seed=2)


def test_changing_the_answers_leaves_arrivals_and_prompts():
    short, long = jobs(output_lengths="fixed:3"), jobs(output_lengths="fixed:300")
    assert [(each.at, each.prompt) for each in short] == [(each.at, each.prompt) for each in long]


def gaps(instants):
    return np.diff(np.array(list(instants)))


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_gaps_have_their_mean_and_variation(burstiness):
    found = gaps(regular_or_bursty(40_000, 5.0, burstiness, random.Random(3)))
    assert found.mean() == pytest.approx(1 / 5.0, rel=0.03)
    assert found.std() / found.mean() == pytest.approx(burstiness**-0.5, rel=0.03)


def test_nobody_comes_in_the_pauses_of_on_off():
    instants = np.array(list(on_off(20_000, 5.0, 2.0, 6.0, random.Random(3))))
    assert (instants % 8.0 < 2.0).all()
    assert len(instants) / instants[-1] == pytest.approx(5.0, rel=0.05)


def test_a_day_has_its_swing():
    """Twice the swing between the quarters around the peak and the trough: integrals of 1 - s cos over them."""
    instants = np.array(list(islice(diurnal(40_000, 5.0, 0.8, 100.0, random.Random(3)), 40_000)))
    phase = instants % 100.0
    high = ((phase > 37.5) & (phase < 62.5)).mean()
    low = ((phase < 12.5) | (phase > 87.5)).mean()
    share = 0.8 * 2**0.5 / np.pi / 2
    assert high == pytest.approx(0.25 + share, abs=0.01)
    assert low == pytest.approx(0.25 - share, abs=0.01)


def test_lengths_follow_their_distribution():
    rng = random.Random(1)
    drawn = np.array([LogNormal(120, 0.8, 4096).draw(rng) for _ in range(20_000)])
    assert np.median(drawn) == pytest.approx(120, rel=0.03)
    assert np.log(drawn).std() == pytest.approx(0.8, rel=0.03)
    uniform = [Uniform(3, 6).draw(rng) for _ in range(1000)]
    assert set(uniform) == {3, 4, 5, 6}


@pytest.mark.parametrize(
    "text", ["", "fixed", "fixed:0", "fixed:1.5", "uniform:9:3", "normal:3:4", "lognormal:0:1", "x"]
)
def test_lengths_that_make_no_sense_are_refused(text):
    with pytest.raises(ConfigurationError, match="--prompt-lengths"):
        parse_lengths(text, "--prompt-lengths")


def test_prompts_share_exactly_their_prefix():
    found = jobs(workload="shared-prefix", num_prefixes=3, prefix_tokens=40, num_requests=60)
    beginnings = {each.prompt[: 4 * 40] for each in found}
    assert len(beginnings) == 3
    assert len({each.prompt for each in found}) == 60
    assert all(each.num_prompt > 40 for each in found)


def test_every_turn_repeats_the_conversation_so_far():
    turn = jobs(workload="multi-turn", turns=5, num_requests=3)[1]
    turns = []
    while turn is not None:
        turns.append(turn)
        turn = turn.follow_up
    assert len(turns) == 5
    for earlier, later in pairwise(turns):
        assert later.prompt.startswith(earlier.prompt + earlier.answers[0])
        assert len(earlier.answers[0]) // 4 == earlier.output


def test_no_token_is_special():
    tokens = np.frombuffer(b"".join(each.prompt for each in jobs(num_requests=200)), dtype=np.uint32)
    assert tokens.min() >= 16
    assert tokens.max() < 2**31


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.68,10,2\n"
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,0,1087,API log\n118,ChatGPT,417,276,693,Conversation log\n"
)
MOONCAKE = (
    '{"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [1, 2, 3]}\n'
    '{"timestamp": 3000, "input_length": 1030, "output_length": 7, "hash_ids": [1, 2, 9]}\n'
)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("azure.csv", AZURE, [(0.0, 374, 44), (4.0, 10, 2)]),
        ("burst.csv", BURSTGPT, [(0.0, 472, 18), (113.0, 417, 276)]),
        ("mooncake.jsonl", MOONCAKE, [(0.0, 1100, 5), (3.0, 1030, 7)]),
    ],
)
def test_traces_are_read_as_they_were_recorded(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content)
    found = jobs(trace=tmp_path / name)
    assert [(round(each.at, 2), each.num_prompt, each.output) for each in found] == expected


def test_equal_blocks_of_mooncake_are_equal_tokens(tmp_path):
    (tmp_path / "mooncake.jsonl").write_text(MOONCAKE)
    first, second = jobs(trace=tmp_path / "mooncake.jsonl")
    assert first.prompt[: 4 * 1024] == second.prompt[: 4 * 1024]
    assert first.prompt[4 * 1024 : 4 * 1030] != second.prompt[4 * 1024 :]


def test_sharegpt_becomes_conversations(tmp_path):
    file = tmp_path / "sharegpt.json"
    turns = [("human", "a" * 40), ("gpt", "b" * 8), ("human", "c" * 4), ("gpt", "d" * 12)]
    talk = {"id": "x", "conversations": [{"from": who, "value": what} for who, what in turns]}
    file.write_text(json.dumps([talk, {"conversations": [{"from": "gpt", "value": "alone"}]}]))
    (first,) = jobs(trace=file)
    assert (first.num_prompt, first.output) == (10, 2)
    assert first.follow_up is not None
    assert (first.follow_up.num_prompt, first.follow_up.output) == (10 + 2 + 1, 3)


def test_a_trace_can_be_stretched_to_a_rate(tmp_path):
    (tmp_path / "azure.csv").write_text(AZURE)
    assert [each.at for each in jobs(trace=tmp_path / "azure.csv", rate=0.5)] == pytest.approx([0.0, 2.0])


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", "x,y\n1,2\n"), ("a.json", "[]"), ("a.json", "{"), ("b.csv", BURSTGPT[:70] + "\nx,y,z")],
)
def test_files_that_are_no_trace_are_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigurationError, match=name):
        jobs(trace=tmp_path / name)
