"""Figures against numpy on the raw values, and pages that need nothing but themselves."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from twin_loads import figures, orca_load, simulate

from orcinus.bench.goal import Goal
from orcinus.cli.replay import replay
from orcinus.cli.simulate import simulate as simulate_command
from orcinus.core.config import SchedulerConfig
from orcinus.core.core import Core
from orcinus.core.plan import IterationResult, Output, SequenceOutput, TokenLogprobs, Work
from orcinus.core.recording import Recorder
from orcinus.core.request import BeamSearch, Pooling, Request, SamplingParams, pack_tokens
from orcinus.errors import ConfigurationError
from orcinus.simulate.config import TwinConfig, WorkloadConfig
from orcinus.simulate.figures import figures_of, to_json
from orcinus.simulate.ledger import GapHistogram
from orcinus.simulate.report import page, read_run
from orcinus.simulate.series import Series


def test_percentiles_of_gaps_are_within_a_quarter_of_a_percent():
    rng = np.random.default_rng(2)
    # A count of which no percentage is a whole number: there, definitions of a percentile part.
    gaps, histogram = rng.lognormal(-4, 1, 19_999), GapHistogram()
    for gap in gaps:
        histogram.add(float(gap), 1)
    for percent in (1, 25, 50, 90, 99, 99.9, 100):
        exact = np.percentile(gaps, percent, method="inverted_cdf")
        assert histogram.percentile(percent) == pytest.approx(exact, rel=0.0026)
    assert histogram.total / histogram.count == pytest.approx(gaps.mean())
    assert histogram.maximum == gaps.max()


def test_gaps_of_a_run_are_those_between_its_tokens():
    """In sum, every answer's gaps are its time from the first token to the last."""
    outcome = simulate(orca_load(rate=10.0, count=80))
    ledger = outcome.ledger
    assert ledger.gaps.total == pytest.approx((ledger.column("last_at") - ledger.column("first_at")).sum())
    assert ledger.gaps.count == (ledger.column("num_output") - 1).sum()


def test_goodput_counts_who_met_every_target():
    outcome = simulate(orca_load(rate=18.0, count=150), max_batch_size=16)
    ledger = outcome.ledger
    ttft = ledger.column("first_at") - ledger.column("arrived_at")
    e2el = ledger.column("ended_at") - ledger.column("arrived_at")
    found = figures_of(outcome, "", Goal(ttft=0.5, e2el=2.0))
    assert found.good == ((ttft <= 0.5) & (e2el <= 2.0)).sum()
    assert 0 < found.good < 150
    assert found.slo_attainment == found.good / 150


def test_a_long_run_keeps_its_peaks_in_a_bounded_series():
    series = Series()
    for at in range(50_000):
        series.add(float(at), waiting=900 if at == 33_333 else 1, running=at % 7, blocks=0, tokens=0)
    assert len(series.points) <= 1024
    assert max(point.waiting for point in series.points) == 900
    assert [point.at for point in series.points] == sorted(point.at for point in series.points)


def embedded(text: str) -> list[dict[str, object]]:
    match = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)
    assert match is not None
    found: list[dict[str, object]] = json.loads(match[1])
    return found


def test_a_page_fetches_nothing():
    text = page([figures(simulate(orca_load(rate=5.0, count=20)))], "Title")
    without_namespace = text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//cdn|\bsrc=|<link|@import|url\(", without_namespace)


def test_a_label_can_not_break_out_of_the_page():
    run = msgspec.structs.replace(figures(simulate(orca_load(rate=5.0, count=5))), label="</script><b>&\"'")
    text = page([run], "<i>title</i>")
    assert "<i>title" not in text
    assert "</script><b>" not in text
    assert embedded(text)[0]["label"] == run.label


def test_the_window_shows_what_the_journal_scheduled():
    outcome = simulate(orca_load(rate=30.0, count=60), num_blocks=200, max_batch_size=8)
    scheduled = {e.iteration: e.work for e in outcome.journal if type(e).__name__ == "Scheduled"}
    bars = outcome.window.bars()
    assert len(bars) == 96
    for bar in bars:
        # Numbers of jobs and of sequences are the same where every job has one answer.
        assert bar.work == scheduled[bar.iteration]


def test_a_result_is_read_as_it_was_written(tmp_path):
    run = figures(simulate(orca_load(rate=5.0, count=30)))
    (tmp_path / "run.json").write_bytes(msgspec.json.encode(to_json(run)))
    assert read_run(tmp_path / "run.json") == run


def test_a_run_without_answers_can_be_written_and_shown(tmp_path):
    empty = figures(simulate([]))
    (tmp_path / "run.json").write_bytes(msgspec.json.encode(to_json(empty)))
    again = read_run(tmp_path / "run.json")
    assert again.completed == 0
    assert np.isnan(again.ttft.p50)
    assert embedded(page([again], "nothing"))[0]["completed"] == 0


def test_the_command_writes_table_page_and_result(tmp_path, capsys):
    load, report, result = WorkloadConfig(num_requests=30), tmp_path / "out.html", tmp_path / "out.json"
    assert simulate_command(TwinConfig(), load, goodput=("ttft:100",), report=report, json=result) == 0
    assert "Output token throughput" in capsys.readouterr().out
    assert json.loads(result.read_bytes())["completed"] == 30
    assert embedded(report.read_text())[0]["completed"] == 30
    assert simulate_command(TwinConfig(baseline="buckets"), load, compare=(result,), report=report) == 0
    assert [run["label"] for run in embedded(report.read_text())] == ["fcfs", "buckets"]


def golden(name: str):
    return Path(__file__).parents[1] / "golden" / f"{name}.recording.jsonl"


def test_a_recording_replays_and_a_tampered_one_shows_where(tmp_path, capsys):
    file = golden("preemption_and_forks")
    assert replay(file) == 0
    assert "every decision is the recorded one" in capsys.readouterr().out
    lines = file.read_bytes().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if b'"Submit"' in line and i > 20)
    record = json.loads(lines[at])
    record["plan"][2][0][2] += 1
    tampered = tmp_path / "tampered.jsonl"
    tampered.write_bytes(b"".join([*lines[:at], json.dumps(record).encode() + b"\n", *lines[at + 1 :]]))
    assert replay(tampered) == 1
    said = capsys.readouterr().out
    assert f"line {at + 1}," in said
    assert "work: only recorded" in said


def test_what_if_shows_the_recording_and_the_change(tmp_path, capsys):
    report = tmp_path / "what-if.html"
    assert replay(golden("chunks_beside_decodes"), what_if="max_batch_size=1", report=report) == 0
    before, after = embedded(report.read_text())
    assert (before["label"], after["label"]) == ("as recorded", "max_batch_size=1")
    assert before["total_output"] == after["total_output"]
    assert after["iterations"] > before["iterations"]


def test_what_if_takes_a_vector_and_a_search_that_its_client_gave_up(tmp_path, capsys):
    """Of such a search no answer is known: it goes on until its client leaves. A vector has no first token."""
    lines: list[bytes] = []
    core = Recorder(Core(SchedulerConfig(num_blocks=8, max_batch_tokens=64)), b"key", lines.append)
    params, prompt = SamplingParams(n=2, max_tokens=20), pack_tokens([5, 6, 7])
    core.add(Request(request_id="v", prompt=prompt, params=SamplingParams(), pooling=Pooling(type="last")), 0.0)
    search = BeamSearch(width=2)
    core.add(Request(request_id="s", prompt=prompt, params=params, eos_token_ids=(2,), beams=search), 0.0)
    for iteration in range(9):
        plan = core.advance(0.1 * iteration).plan
        outputs = tuple(said(work) for work in plan.work)
        core.update(IterationResult(plan.epoch, plan.iteration, outputs), 0.1 * iteration + 0.05)
    core.abort("s", 1.0)
    recording = tmp_path / "search.jsonl"
    recording.write_bytes(b"\n".join(lines))
    assert replay(recording) == 0
    report = tmp_path / "what-if.html"
    assert replay(recording, what_if="policy=mlfq", report=report) == 0
    assert "inf" not in capsys.readouterr().out
    for run in embedded(report.read_text()):
        assert (run["completed"], run["ended"]) == (1, {"stop": 1, "abort": 1})


def said(work: Work) -> SequenceOutput:
    """A vector, or what a search chooses from."""
    if Output.POOLED in work.output:
        return SequenceOutput(work.seq_id, (), pooled=b"vector")
    return SequenceOutput(work.seq_id, (4,), (TokenLogprobs(-1.0, 1, (4, 9, 11), (-1.0, -1.5, -2.0)),))


@pytest.mark.parametrize("changes", ["policy", "speed=3", "max_batch_size=0", "policy=none", "num_blocks=many"])
def test_changes_that_core_refuses_are_refused(changes):
    with pytest.raises(ConfigurationError):
        replay(golden("chunks_beside_decodes"), what_if=changes)


def test_other_files_are_no_recordings(tmp_path):
    (tmp_path / "x").write_text('{"a": 1}\n')
    with pytest.raises(ConfigurationError):
        replay(tmp_path / "x")
    with pytest.raises(ConfigurationError):
        replay(tmp_path / "x", what_if="policy=fcfs")
    with pytest.raises(ConfigurationError):
        replay(tmp_path / "none")
