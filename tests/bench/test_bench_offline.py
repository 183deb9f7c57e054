"""`orcinus bench offline` on a small random model."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from rich.console import Console

from orcinus.bench.offline import FIGURES, OfflineRun, Repeat, WorkloadResult, run_offline
from orcinus.bench.offline_report import draw_offline, offline_json, offline_table
from orcinus.engine.config import EngineConfig
from orcinus.errors import ConfigurationError


def printed(run: OfflineRun) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(offline_table(run))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_figures_of_a_repeat_are_those_of_the_peers_script() -> None:
    repeat = Repeat(prompt_tokens=128, gen_tokens=129, wall=5.0, ttft=1.0)
    assert repeat.gen_tok_s == pytest.approx(25.8)
    assert repeat.total_tok_s == pytest.approx(51.4)
    assert repeat.prefill_tok_s == pytest.approx(25.6)
    assert (repeat.ttft_ms, repeat.tpot_ms) == (1000.0, 31.25)


@pytest.mark.parametrize(("workloads", "repeats"), [(["W1", "W9"], 3), ([], 3), (["W1"], 0)])
def test_an_impossible_run_is_refused_before_the_model_is_loaded(workloads: list[str], repeats: int) -> None:
    with pytest.raises(ConfigurationError, match=r"--(workloads|repeats)"):
        run_offline(EngineConfig(model="nowhere"), workloads, repeats)


@pytest.mark.slow
def test_workloads_run_with_every_token_and_those_that_do_not_fit_are_left_out(
    random_llama: Path, tmp_path: Path
) -> None:
    engine = EngineConfig(
        model=str(random_llama), threads=1, kv_cache_gib=0.05, max_model_len=448, max_batch_tokens=512
    )
    run = run_offline(engine, ["W2", "W3", "W4"], 2)
    assert [result.name for result in run.results] == ["W2", "W3"]
    assert run.left_out == {"W4": "a request of 2049 tokens, the engine takes 448"}
    w2, w3 = run.results
    assert [(r.prompt_tokens, r.gen_tokens) for r in w2.repeats] == [(128, 128)] * 2
    assert [(r.prompt_tokens, r.gen_tokens) for r in w3.repeats] == [(12800, 1024)] * 2
    assert all(0 < r.ttft < r.wall for r in (*w2.repeats, *w3.repeats))
    check_outputs(run, w2, tmp_path / "picture.svg")


def check_outputs(run: OfflineRun, w2: WorkloadResult, picture: Path) -> None:
    fields = json.loads(json.dumps(offline_json(run), allow_nan=False))
    assert set(fields["workloads"]) == {"W2", "W3"}
    assert fields["workloads"]["W2"]["median"]["tpot_ms"] == pytest.approx(sum(w2.values("tpot_ms")) / 2)
    assert fields["workloads"]["W2"]["spread"]["ttft_ms"] == sorted(w2.values("ttft_ms"))
    text = printed(run)
    assert "W4 is left out: a request of 2049 tokens" in text
    draw_offline(picture, run)
    drawn = "".join(ET.parse(picture).getroot().itertext())
    for name in ("W2", "W3"):
        assert name in text
        assert drawn.count(f"{name}: ") == len(FIGURES[name])
