"""Pictures of latency distributions: SVG, PNG or PDF by suffix, or a page (.html) around the SVG."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orcinus.bench.asks import Observation
from orcinus.bench.goal import Goal
from orcinus.errors import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

SUFFIXES = (".svg", ".png", ".pdf", ".html")
_MARKED = (50, 99)
INK, _FAINT = "#24303c", "#d8dee4"
_COLOURS = {"TTFT": "#0b7285", "ITL": "#5f3dc4", "E2EL": "#c2410c"}
_MEANINGS = {"TTFT": "sent to first token", "ITL": "gap between chunks", "E2EL": "sent to end of answer"}
# Behind labels, so that they can be read on top of a curve.
_PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
# More would only make the file larger.
_CURVE_POINTS = 1000
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>body {{ margin: 2rem auto; max-width: 80rem; background: #fff }} svg {{ width: 100%; height: auto }}</style>
{svg}
</html>
"""


def check_suffix(file: Path) -> None:
    """Before anything is measured.

    Raises:
        ConfigurationError: a kind of picture that isn't made here.
    """
    if file.suffix not in SUFFIXES:
        raise ConfigurationError(f"--plot {file}: the name must end in one of {', '.join(SUFFIXES)}")


def draw_latencies(file: Path, observations: Sequence[Observation], goal: Goal, title: str, subtitle: str) -> None:
    """Cumulative distributions of TTFT, ITL and E2EL over the requests that succeeded, p50 and p99 marked."""
    # Imported here, without pyplot: it takes a second and keeps state of its own.
    from matplotlib.figure import Figure

    whole = [o for o in observations if o.failure is None]
    panels = {
        "TTFT": ([o.ttft for o in whole], goal.ttft),
        "ITL": ([gap for o in whole for gap in o.gaps], None),
        "E2EL": ([o.e2el for o in whole], goal.e2el),
    }
    figure = Figure(figsize=(12, 4.2), layout="constrained", facecolor="white")
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=13, fontweight="bold")
    figure.supxlabel(subtitle, x=0.01, ha="left", color=INK, fontsize=9)
    for axes, (name, (values, target)) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
        _draw_panel(axes, name, np.sort(values), target)
    save(figure, file, title)


def _draw_panel(axes: Axes, name: str, values: NDArray[np.float64], target: float | None) -> None:
    style_axes(axes)
    axes.set_title(f"{name}: {_MEANINGS[name]}", loc="left", color=INK, fontsize=10)
    axes.yaxis.set_major_formatter("{x:.0%}")
    if not len(values):
        axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, ha="center", color=INK)
        return
    median, tail = (float(value) for value in np.percentile(values, _MARKED))
    unit, factor = ("s", 1.0) if tail >= 1 else ("ms", 1000.0)
    # A single straggler shall not press everybody else against the axis; the p99's label needs room on its right.
    reach = max(tail, target or 0.0)
    right = max(reach * 1.45, min(float(values[-1]) * 1.05, reach * 1.8)) * factor or 1.0
    axes.set(xlabel=unit, xlim=(0, right), ylim=(0, 1.03))
    share = np.linspace(0, 1, min(len(values), _CURVE_POINTS) + 1)
    edges = np.quantile(values, share, method="inverted_cdf") * factor
    axes.step(edges, share, where="post", color=_COLOURS[name], linewidth=2)
    axes.fill_between(edges, share, step="post", color=_COLOURS[name], alpha=0.08, linewidth=0)
    for percentile, value in zip(_MARKED, (median, tail), strict=True):
        _mark(axes, percentile, value * factor, unit, _COLOURS[name])
    notes = [f"maximum {_number(float(values[-1]) * factor)} {unit}", f"{len(values):,} measured"]
    if target is not None:
        axes.axvline(target * factor, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        notes.insert(0, f"target {_number(target * factor)} {unit} (dashed)")
    axes.text(0.985, 0.04, "\n".join(notes), transform=axes.transAxes, ha="right", color=INK, fontsize=8, bbox=_PAPER)


def _mark(axes: Axes, percentile: int, value: float, unit: str, colour: str) -> None:
    """A dot on the curve with its value."""
    height = percentile / 100
    axes.plot([value, value], [0, height], color=colour, linewidth=1, linestyle=(0, (1, 2)))
    axes.plot(value, height, "o", color=colour, markersize=7, markeredgecolor="white", zorder=4)
    axes.annotate(
        f"p{percentile}  {_number(value)} {unit}",
        (value, height),
        xytext=(8, -20),
        textcoords="offset points",
        color=INK,
        fontsize=10,
        fontweight="bold",
        bbox=_PAPER,
    )


def _number(value: float) -> str:
    """Three digits are more than a latency can promise."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def style_axes(axes: Axes) -> None:
    """Light: a grid to read values from, no frame."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_FAINT)
    axes.grid(color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0, labelsize=8)
    axes.xaxis.label.set_color(INK)


def save(figure: Figure, file: Path, title: str) -> None:
    """By suffix; the text of an SVG stays text, without dates, so that equal figures make equal files.

    Raises:
        ConfigurationError: the file can't be written.
    """
    from matplotlib import rc_context

    metadata = {"Date": None} if file.suffix in (".svg", ".html") else {}
    buffer = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "orcinus"}):
        figure.savefig(buffer, format="svg" if file.suffix == ".html" else file.suffix[1:], dpi=150, metadata=metadata)
    content = buffer.getvalue()
    if file.suffix == ".html":
        svg = content.decode()
        content = _PAGE.format(title=html.escape(title), svg=svg[svg.index("<svg") :]).encode()
    try:
        file.write_bytes(content)
    except OSError as error:
        raise ConfigurationError(f"--plot {file} can't be written: {error}") from error
