"""Figures for people: a table for the terminal, and a page that needs nothing but itself."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table

from orcinus.errors import ConfigurationError
from orcinus.simulate.figures import LATENCIES, Figures


def tables(runs: Sequence[Figures]) -> RenderableType:
    """Latencies and totals, runs side by side."""
    return Group(_totals(runs), _latencies(runs))


def _latencies(runs: Sequence[Figures]) -> Table:
    table = Table(title="Latency in ms, of virtual time", title_justify="left")
    table.add_column("")
    if len(runs) > 1:
        table.add_column("run")
    for heading in ("mean", "p50", "p90", "p95", "p99", "max"):
        table.add_column(heading, justify="right")
    for key, title in LATENCIES.items():
        for number, run in enumerate(runs):
            d = getattr(run, key)
            values = map(_ms, (d.mean, d.p50, d.p90, d.p95, d.p99, d.maximum))
            table.add_row("" if number else title, *([run.label] if len(runs) > 1 else []), *values)
    return table


def _ms(seconds: float) -> str:
    return "–" if math.isnan(seconds) else f"{seconds * 1000:,.1f}"


def _totals(runs: Sequence[Figures]) -> Table:
    table = Table(box=None, padding=(0, 2), title_justify="left", show_header=True)
    table.add_column("")
    for run in runs:
        table.add_column(run.label, justify="right")
    for name, values in _facts(runs).items():
        table.add_row(name, *values)
    return table


def _facts(runs: Sequence[Figures]) -> dict[str, list[str]]:
    facts = {
        "Completed requests": [f"{run.completed:,}" for run in runs],
        "Ended": [", ".join(f"{reason} {count:,}" for reason, count in sorted(run.ended.items())) for run in runs],
        "Duration": [f"{run.duration:,.2f} s" for run in runs],
        "Request throughput": [f"{run.request_throughput:,.2f} requests/s" for run in runs],
        "Output token throughput": [f"{run.output_throughput:,.1f} tokens/s" for run in runs],
        "Iterations, tokens in each": [f"{run.iterations:,}, {run.iteration_tokens:,.1f}" for run in runs],
        "Most waiting, most running": [f"{run.peak_waiting:,}, {run.peak_running:,}" for run in runs],
        "KV blocks, peak": [f"{run.peak_blocks:,} of {run.num_blocks:,}" for run in runs],
        "Prefix hits, of input tokens": [f"{run.hit_rate:.1%}" for run in runs],
        "Preemptions": [f"{run.preemptions:,}" for run in runs],
        "Stages idle": [f"{run.stage_idle:.1%}" for run in runs],
    }
    if any(run.good is not None for run in runs):
        facts["Goodput"] = ["–" if run.goodput is None else f"{run.goodput:,.2f} requests/s" for run in runs]
        facts["SLO attainment"] = ["–" if run.slo_attainment is None else f"{run.slo_attainment:.1%}" for run in runs]
    return facts


def page(runs: Sequence[Figures], title: str) -> str:
    """The whole report as HTML: style, script and data are inside, and nothing is fetched."""
    data = msgspec.json.encode([_finite(msgspec.to_builtins(run)) for run in runs]).decode()
    parts = {
        "title": html.escape(title),
        "style": _part("report.css"),
        "script": _part("report.js"),
        # A label could end the script element, were it not for this.
        "data": data.replace("</", "<\\/"),
    }
    return _part("report.html") % parts


def write_page(file: Path, runs: Sequence[Figures], title: str) -> None:
    """Raises ConfigurationError if it can't be written."""
    try:
        file.write_text(page(runs, title), encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"--report {file} can't be written: {error}") from error


def read_run(file: Path) -> Figures:
    """A run as `--json` wrote it, for `--compare`.

    Raises:
        ConfigurationError: another file.
    """
    try:
        return msgspec.convert(_nan(msgspec.json.decode(file.read_bytes())["run"]), Figures)
    except (OSError, KeyError, TypeError, msgspec.MsgspecError) as error:
        raise ConfigurationError(f"{file} is no result of orcinus simulate --json: {error!r}") from error


def _part(name: str) -> str:
    return (files("orcinus.simulate") / "page" / name).read_text(encoding="utf-8")


def _finite(value: object) -> object:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _nan(value: object) -> object:
    """Distributions of nothing, back from JSON."""
    if isinstance(value, dict):
        is_distribution = "curve" in value
        return {key: math.nan if each is None and is_distribution else _nan(each) for key, each in value.items()}
    return value
