"""Recorded loads, in both forms, and the datasets made of them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tokenizer_files import write_tokenizer

from orcinus.bench.asks import is_ids
from orcinus.bench.config import OnlineConfig
from orcinus.bench.online import draw_arrivals, load_dataset
from orcinus.bench.traces import TraceEntry, read_trace
from orcinus.errors import ConfigurationError
from orcinus.text.tokenizer import Tokenizer

# The first lines of the two public traces have this form.
MOONCAKE = """{"timestamp": 27482, "input_length": 1100, "output_length": 52, "hash_ids": [46, 47, 48]}
{"timestamp": 30535, "input_length": 1030, "output_length": 26, "hash_ids": [46, 47, 2366]}

{"timestamp": 27482, "input_length": 7, "output_length": 0}
"""
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""


def written(folder: Path, name: str, content: str) -> Path:
    file = folder / name
    file.write_text(content, encoding="utf-8")
    return file


def test_mooncake_lines_are_milliseconds_and_come_in_order_of_arrival(tmp_path: Path) -> None:
    assert read_trace(written(tmp_path, "t.jsonl", MOONCAKE)) == [
        TraceEntry(0.0, 1100, 52, (46, 47, 48)),
        TraceEntry(0.0, 7, 0),
        TraceEntry(pytest.approx(3.053), 1030, 26, (46, 47, 2366)),
    ]


def test_azure_rows_have_seven_digits_of_a_second(tmp_path: Path) -> None:
    entries = read_trace(written(tmp_path, "t.csv", AZURE))
    assert [(e.num_prompt, e.num_output) for e in entries] == [(374, 44), (396, 109)]
    assert [e.at for e in entries] == [0.0, pytest.approx(4.314579, abs=1e-6)]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("t.jsonl", MOONCAKE + "{}", "line 5: .*timestamp"),
        ("t.jsonl", MOONCAKE + "no json", "line 5"),
        ("t.jsonl", '{"timestamp": 1, "input_length": 0, "output_length": 1}', "line 1: 0 tokens in"),
        ("t.csv", AZURE + "yesterday,1,1", "line 4: .*yesterday"),
        ("t.csv", AZURE + "2023-11-16 18:15:51,1", "line 4"),
        ("t.csv", "A,B\n1,2", "no column TIMESTAMP, ContextTokens, GeneratedTokens"),
        ("t.csv", AZURE.splitlines()[0], "has no entry"),
        ("t.jsonl", "\n", "is empty"),
    ],
)
def test_a_malformed_trace_names_the_line(tmp_path: Path, name: str, content: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        read_trace(written(tmp_path, name, content))


def test_a_trace_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="can't be read"):
        read_trace(tmp_path / "nothing.csv")


def test_equal_block_ids_are_equal_tokens_and_all_else_differs(tmp_path: Path) -> None:
    file = written(tmp_path, "t.jsonl", MOONCAKE)
    dataset = load_dataset(OnlineConfig(dataset="trace", dataset_path=file))
    prompts = [ask.prompt for ask in dataset.asks]
    assert all(map(is_ids, prompts))
    assert [len(prompt) for prompt in prompts] == dataset.prompt_lengths == [1100, 7, 1030]
    assert prompts[0][:1024] == prompts[2][:1024]
    assert prompts[0][1024:1030] != prompts[2][1024:]
    assert [ask.max_tokens for ask in dataset.asks] == [52, 1, 26]


def test_a_trace_arrives_as_recorded_unless_a_rate_is_given(tmp_path: Path) -> None:
    options = {"dataset": "trace", "dataset_path": written(tmp_path, "t.csv", AZURE)}
    recorded = OnlineConfig(**options)
    dataset = load_dataset(recorded)
    assert draw_arrivals(recorded, dataset) == dataset.instants
    stretched = OnlineConfig(**options, arrivals="trace", request_rate=2)
    assert draw_arrivals(stretched, dataset) == [0, pytest.approx(0.5)]
    drawn = OnlineConfig(**options, request_rate=2)
    assert draw_arrivals(drawn, dataset) == [0, random.Random("0:arrivals").gammavariate(1, 0.5)]


@pytest.mark.parametrize(
    ("line", "endpoint", "complaint"),
    [
        ('{"prompt": "a", "messages": []}', "chat", 'either "prompt" or "messages"'),
        ("{}", "chat", 'either "prompt" or "messages"'),
        ('{"messages": [{"role": "user", "content": "a"}]}', "completions", "need --endpoint chat"),
        ('{"prompt": [1, 2]}', "chat", "need --endpoint completions"),
        ('{"prompt": ""}', "chat", "empty"),
        ('{"prompt": 3}', "chat", "prompt"),
        ("{", "chat", "truncated"),
    ],
)
def test_a_malformed_line_of_prompts_is_named(tmp_path: Path, line: str, endpoint: str, complaint: str) -> None:
    file = written(tmp_path, "p.jsonl", '{"prompt": "good", "output_tokens": 4}\n' + line)
    with pytest.raises(ConfigurationError, match=f"line 2: .*{complaint}"):
        load_dataset(OnlineConfig(dataset="jsonl", dataset_path=file, endpoint=endpoint))


def test_lines_of_prompts_keep_their_own_length_or_take_the_given_one(tmp_path: Path) -> None:
    file = written(tmp_path, "p.jsonl", '{"prompt": "a", "output_tokens": 4}\n{"prompt": [1, 2], "answer": "x"}')
    dataset = load_dataset(OnlineConfig(dataset="jsonl", dataset_path=file, output_len=9))
    assert [(ask.prompt, ask.max_tokens) for ask in dataset.asks] == [("a", 4), ([1, 2], 9)]


def test_more_prompts_than_there_are_is_refused_rather_than_repeated() -> None:
    with pytest.raises(ConfigurationError, match="--num-prompts is 65; the dataset has 64"):
        load_dataset(OnlineConfig(dataset="W1", num_prompts=65))


def test_random_prompts_have_the_lengths_asked_for() -> None:
    equal = load_dataset(OnlineConfig(num_prompts=3, input_len=7, output_len=5))
    assert [(len(ask.prompt), ask.max_tokens) for ask in equal.asks] == [(7, 5)] * 3
    spread = load_dataset(OnlineConfig(num_prompts=2001, input_len=100, input_sigma=0.5))
    lengths = sorted(len(ask.prompt) for ask in spread.asks)
    # Of a log-normal distribution: the median itself, and 84 % below one sigma more.
    assert lengths[1000] == pytest.approx(100, rel=0.05)
    assert sum(length <= 100 * 2.718**0.5 for length in lengths) / 2001 == pytest.approx(0.841, abs=0.03)
    assert {ask.max_tokens for ask in spread.asks} == {128}


def test_chat_prompts_have_exactly_the_tokens_asked_for_and_keep_shared_beginnings(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "tokenizer")
    dataset = load_dataset(OnlineConfig(dataset="W3", endpoint="chat", tokenizer=folder))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer is not None
    prompts = [tokenizer.encode(ask.prompt, add_special_tokens=False) for ask in dataset.asks]
    assert [len(prompt) for prompt in prompts] == dataset.prompt_lengths == [400] * 32
    assert len({tuple(prompt[:380]) for prompt in prompts}) == 1


def test_a_tokenizer_bounds_the_random_ids_too(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "tokenizer")
    prompts = [ask.prompt for ask in load_dataset(OnlineConfig(dataset="W1", tokenizer=folder)).asks]
    assert all(map(is_ids, prompts))
    assert max(map(max, prompts)) == 399
    with pytest.raises(ConfigurationError, match=r"no tokenizer\.json"):
        load_dataset(OnlineConfig(tokenizer=tmp_path))


def test_chat_prompts_without_a_tokenizer_have_a_word_for_each_token() -> None:
    dataset = load_dataset(OnlineConfig(dataset="W2", endpoint="chat"))
    assert len(str(dataset.asks[0].prompt).split()) == 128


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"num_prompts": 0}, "--num-prompts is 0; it must be at least 1"),
        ({"request_rate": 0.0}, "--request-rate is 0.0; it must be above 0"),
        ({"request_rate": float("nan")}, "--request-rate is nan"),
        ({"burstiness": 0.5, "arrivals": "poisson"}, "needs --arrivals gamma"),
        ({"arrivals": "trace"}, "needs --dataset trace"),
        ({"dataset": "trace"}, "--dataset-path"),
        ({"dataset": "W1", "dataset_path": Path("x")}, "--dataset-path"),
        ({"max_concurrency": 0}, "--max-concurrency"),
    ],
)
def test_impossible_choices_are_refused_by_name(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        OnlineConfig(**options)


@pytest.mark.parametrize("percentiles", ["p99", "", "50,101", "-1"])
def test_percentiles_are_numbers_from_0_to_100(percentiles: str) -> None:
    with pytest.raises(ConfigurationError, match="--percentiles"):
        _ = OnlineConfig(percentiles=percentiles).percentile_list
