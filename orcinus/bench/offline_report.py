"""The figures of the offline workloads: table, JSON and picture."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orcinus.bench.offline import FIGURES, OfflineRun, WorkloadResult

_TITLES = {
    "gen_tok_s": "generated tokens/s",
    "total_tok_s": "total tokens/s",
    "ttft_ms": "TTFT, ms",
    "tpot_ms": "TPOT, ms",
    "prefill_tok_s": "prefill tokens/s",
}


def offline_table(run: OfflineRun) -> RenderableType:
    """Medians with what they were between."""
    engine = run.engine
    size = f"{engine.num_parameters / 1e6:.1f} M parameters"
    title = f"{Path(engine.model).name}: {size}, {engine.dtype} on {engine.device}"
    table = Table(title=title, title_justify="left")
    for number, heading in enumerate(("workload", "figure", "median", "lowest", "highest", "repeats")):
        table.add_column(heading, justify="right" if number > 1 else "left")
    for result, figure, values in _rows(run):
        numbers = (statistics.median(values), min(values), max(values))
        label = f"{result.name} ({result.num_requests} request{'s' * (result.num_requests > 1)})"
        table.add_row(label, _TITLES[figure], *map(_number, numbers), str(len(values)))
    left_out = [Text(f"! {name} is left out: {why}", style="yellow") for name, why in run.left_out.items()]
    return Group(table, *left_out)


def _number(value: float) -> str:
    return f"{value:,.1f}" if value >= 100 else f"{value:.3g}"


def _rows(run: OfflineRun) -> Iterator[tuple[WorkloadResult, str, list[float]]]:
    for result in run.results:
        for figure in FIGURES[result.name]:
            yield result, figure, result.values(figure)


def offline_json(run: OfflineRun) -> dict[str, object]:
    """Medians, and every repeat."""
    engine = run.engine
    return {
        "engine": "orcinus",
        "version": run.version,
        "model": engine.model,
        "dtype": engine.dtype,
        "device": engine.device,
        "fingerprint": engine.fingerprint,
        "workloads": {result.name: _workload_json(result) for result in run.results},
        "left_out": run.left_out,
    }


def _workload_json(result: WorkloadResult) -> dict[str, object]:
    figures = {figure: result.values(figure) for figure in FIGURES[result.name]}
    return {
        "requests": result.num_requests,
        "repeats": len(result.repeats),
        "wall_s": [repeat.wall for repeat in result.repeats],
        "prompt_tokens": result.repeats[0].prompt_tokens,
        "gen_tokens": result.repeats[0].gen_tokens,
        "median": {figure: statistics.median(values) for figure, values in figures.items()},
        "spread": {figure: [min(values), max(values)] for figure, values in figures.items()},
    }


def draw_offline(file: Path, run: OfflineRun) -> None:
    """A panel a figure: the median as a bar, each repeat as a dot."""
    from matplotlib.figure import Figure

    from orcinus.bench.picture import INK, save, style_axes

    rows = list(_rows(run))
    figure = Figure(figsize=(2.2 * len(rows) + 0.6, 3.6), layout="constrained", facecolor="white")
    title = f"{Path(run.engine.model).name}, {run.engine.dtype} on {run.engine.device}"
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=13, fontweight="bold")
    for axes, (result, name, values) in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        style_axes(axes)
        median = statistics.median(values)
        axes.bar([0], [median], width=0.5, color="#0b7285", alpha=0.18)
        axes.hlines(median, -0.25, 0.25, color="#0b7285", linewidth=2)
        axes.plot([0] * len(values), values, "o", color="#0b7285", markersize=5, markeredgecolor="white")
        axes.text(0.3, median, _number(median), va="center", color=INK, fontsize=9)
        axes.set(xlim=(-0.5, 0.9), ylim=(0, max(values) * 1.1), xticks=[])
        axes.set_title(f"{result.name}: {_TITLES[name]}", loc="left", color=INK, fontsize=9)
    save(figure, file, title)
