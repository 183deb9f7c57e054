"""`orcinus bench online` against our real server over the fake engine, and the program as a user runs it."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from rich.console import Console
from served import Served
from strange_servers import DONE, serving, streams, text_chunk

from orcinus.bench.config import OnlineConfig
from orcinus.bench.extra import require
from orcinus.bench.goal import Goal
from orcinus.bench.online import OnlineRun, run_online
from orcinus.bench.report import online_json, online_tables
from orcinus.errors import ConfigurationError

pytestmark = pytest.mark.slow
VOCABULARY = 400


def run(base_url: str, *goal: str, **options: object) -> OnlineRun:
    config = OnlineConfig(base_url=base_url, vocab_size=VOCABULARY, **options)
    return asyncio.run(run_online(config, Goal.parse(goal), None))


def printed(one: OnlineRun) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(online_tables(one))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orcinus.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_every_token_of_our_server_is_counted(fake: Served, endpoint: str) -> None:
    options = {"num_prompts": 6, "input_len": 9, "output_len": 11, "output_sigma": 0.5, "max_concurrency": 4}
    one = run(fake.url, "ttft:60000", "tpot:60000", endpoint=endpoint, ignore_eos=True, **options)
    figures = one.figures
    assert (figures.completed, figures.failed, figures.good, figures.num_counted) == (6, 0, 6, 0)
    assert all(o.finish_reason == "length" for o in one.observations)
    assert [o.output_tokens for o in one.observations] == asked_outputs(one)
    assert figures.total_output == sum(asked_outputs(one))
    if endpoint == "completions":
        assert figures.total_input == 6 * 9
    assert all(0 < o.ttft <= o.e2el for o in one.observations)
    assert figures.peak_concurrency <= 4


def asked_outputs(one: OnlineRun) -> list[int | None]:
    from orcinus.bench.online import load_dataset

    return [ask.max_tokens for ask in load_dataset(one.config).asks]


def test_what_our_server_refuses_is_counted_by_status_and_not_dropped(fake: Served) -> None:
    # Each takes the engine a second at least, and all arrive within one: the ninth and later find it full.
    one = run(fake.url, num_prompts=40, input_len=5, output_len=1000, request_rate=50.0)
    assert one.figures.completed + one.figures.failed == len(one.observations) == 40
    assert min(one.figures.completed, one.figures.failed) >= 1
    assert one.figures.failures == {"HTTP 429": one.figures.failed}
    assert one.figures.total_output == 1000 * one.figures.completed
    text = printed(one)
    assert "HTTP 429" in text
    assert "requests are being served" in text


def test_a_prompt_too_long_for_the_server_fails_alone(fake: Served, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"prompt": [11] * 5000}) + "\n" + json.dumps({"prompt": [11, 12], "output_tokens": 3}))
    one = run(fake.url, dataset="jsonl", dataset_path=file)
    assert one.figures.failures == {"HTTP 400": 1}
    assert [o.failure is None for o in one.observations] == [False, True]


def test_tokens_beyond_the_vocabulary_are_found_before_the_load(fake: Served) -> None:
    with pytest.raises(ConfigurationError, match=r"outside 0\.\.511.*--vocab-size"):
        asyncio.run(run_online(OnlineConfig(base_url=fake.url), Goal(), None))


def test_a_model_that_is_not_served_is_named(fake: Served) -> None:
    with pytest.raises(ConfigurationError, match=r"doesn't serve 'other'\. HTTP 404"):
        run(fake.url, model="other")


def test_a_peer_that_sends_no_usage_is_measured_and_the_table_says_how() -> None:
    async def measure() -> OnlineRun:
        chunks = [text_chunk("a"), text_chunk("b"), text_chunk("c", "length"), DONE]
        async with serving(streams(*chunks)) as url:
            config = OnlineConfig(base_url=url, model="peer", num_prompts=5, input_len=8, max_concurrency=2)
            return await run_online(config, Goal(), None)

    one = asyncio.run(measure())
    assert (one.figures.total_output, one.figures.total_input, one.figures.num_counted) == (15, 40, 5)
    text = printed(one)
    assert "5 answers came without usage" in text
    assert "the loop is closed" in text


def test_json_has_the_keys_of_vllm_and_each_request_if_asked(fake: Served) -> None:
    one = run(fake.url, "ttft:60000", num_prompts=3, output_len=4, request_rate=1000.0, percentiles="50,99.9")
    fields = json.loads(json.dumps(online_json(one, detailed=True), allow_nan=False))
    for key in ("completed", "failed", "duration", "request_throughput", "request_goodput", "output_throughput"):
        assert fields[key] == getattr(one.figures, key), key
    assert fields["total_token_throughput"] == pytest.approx((3 * 4 + 3 * 128) / one.figures.duration)
    for name in ("ttft", "tpot", "itl", "e2el"):
        assert fields[f"p50_{name}_ms"] == fields[f"median_{name}_ms"] <= fields[f"p99.9_{name}_ms"]
    assert [request["output_tokens"] for request in fields["requests"]] == [4, 4, 4]
    assert "requests" not in online_json(one, detailed=False)


def test_the_program_prints_a_table_and_writes_json_and_pictures(fake: Served, tmp_path: Path) -> None:
    arguments = ["bench", "online", "--base-url", fake.url, "--num-prompts", "8", "--output-len", "20"]
    arguments += ["--vocab-size", str(VOCABULARY), "--request-rate", "100", "--goodput", "ttft:60000", "tpot:60000"]
    result, picture = tmp_path / "result.json", tmp_path / "picture.svg"
    done = program(*arguments, "--json", str(result), "--plot", str(picture))
    assert done.returncode == 0, done.stderr
    assert json.loads(result.read_text())["completed"] == 8
    for words in ("Completed requests", "TTFT: sent to first token", "Request goodput (ttft ≤ 60000 ms, tpot"):
        assert words in done.stdout
    drawn = "".join(ET.parse(picture).getroot().itertext())
    for words in ("TTFT: sent to first token", "ITL: gap between chunks", "E2EL", "p50", "p99", "target 60,000 ms"):
        assert words in drawn, words
    page = tmp_path / "picture.html"
    done = program(*arguments, "--json", "-", "--plot", str(page))
    assert json.loads(done.stdout)["completed"] == 8
    assert "Completed requests" in done.stderr
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--base-url", "http://127.0.0.1:1"], "no connection"),
        (["--base-url", "127.0.0.1"], "must begin with http"),
        (["--plot", "picture.gif"], "must end in one of .svg"),
        (["--goodput", "ttfb:2"], "did you mean 'ttft'"),
        (["--request-rate", "-1"], "above 0"),
    ],
)
def test_the_program_leaves_with_2_and_one_line_where_nothing_can_be_measured(
    arguments: list[str], complaint: str
) -> None:
    done = program("bench", "online", *arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_when_every_request_fails_the_program_says_why_and_leaves_with_2(fake: Served, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"prompt": [11] * 5000}))
    done = program("bench", "online", "--base-url", fake.url, "--dataset", "jsonl", "--dataset-path", str(file))
    assert done.returncode == 2
    assert "maximum context length" in done.stdout


def test_the_program_starts_without_the_libraries_of_the_bench_extra() -> None:
    code = "import sys, orcinus.cli; sys.exit(bool({'aiohttp', 'matplotlib', 'torch', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_library_is_named_with_what_to_install() -> None:
    with pytest.raises(ConfigurationError, match=r"needs no_such_library: pip install 'orcinus-llm\[bench\]'"):
        require("no_such_library")
