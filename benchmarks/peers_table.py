"""What `peers.py` measured, as a table: medians over the rounds, and ours against the best peer round by round."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Figure, what it is called, the direction that is better.
FIGURES = {
    "gen_tok_s": ("generated tokens/s", 1),
    "ttft_ms": ("TTFT, ms", -1),
    "tpot_ms": ("ms a token", -1),
    "prefill_tok_s": ("prompt tokens/s", 1),
}
# What is compared with what: same precision.
PRECISIONS = {"bf16": ("bf16",), "int8": ("int8", "q8_0"), "int4": ("int4",)}
OURS = "orcinus"
_BEGIN, _END = "<!-- peers: begin -->", "<!-- peers: end -->"

Line = dict[str, Any]


def markdown(lines: Sequence[Line]) -> str:
    """A section a model and precision: a row a figure, a column an engine, then the ratio to the best peer."""
    good = [line for line in lines if line["figures"]]
    parts = []
    for model in sorted({line["model"] for line in good}):
        for precision, dtypes in PRECISIONS.items():
            mine = [line for line in good if line["model"] == model and line["dtype"] in dtypes]
            if any(line["engine"] == OURS for line in mine):
                parts.append(_section(f"{model}, {precision}", mine))
    failed = {(line["engine"], line["dtype"], line["model"], line["workload"]) for line in lines if line["error"]}
    parts += [f"Failed: {', '.join(' '.join(each) for each in sorted(failed))}"] if failed else []
    return "\n\n".join([*parts, _limits(lines)])


def write_between_markers(file: Path, table: str) -> None:
    """Replace what is between them.

    Raises:
        ValueError: the file has no markers.
    """
    text = file.read_text()
    if _BEGIN not in text or _END not in text:
        raise ValueError(f"{file} lacks the lines {_BEGIN} and {_END}")
    pattern = re.compile(f"{re.escape(_BEGIN)}.*{re.escape(_END)}", re.DOTALL)
    file.write_text(pattern.sub(lambda _: f"{_BEGIN}\n{table}\n{_END}", text))


def _section(title: str, lines: Sequence[Line]) -> str:
    names = sorted({_name(line) for line in lines}, key=lambda name: (not name.startswith(OURS), name))
    rows = [f"| {title} | {' | '.join(names)} | ours against the best |", f"|{'---|' * (len(names) + 2)}"]
    rows += _rows(lines, names)
    return "\n".join(rows)


def _rows(lines: Sequence[Line], names: Sequence[str]) -> Iterator[str]:
    for workload in sorted({line["workload"] for line in lines}):
        for figure, (label, direction) in FIGURES.items():
            values: dict[str, dict[int, float]] = defaultdict(dict)
            for line in lines:
                if line["workload"] == workload and figure in line["figures"]:
                    values[_name(line)][line["round"]] = line["figures"][figure]
            if values:
                cells = [_cell(list(values.get(name, {}).values())) for name in names]
                yield f"| {workload} {label} | {' | '.join(cells)} | {_ratio(values, direction)} |"


def _ratio(values: dict[str, dict[int, float]], direction: int) -> str:
    """Above 1 is ahead. By medians, then the worst and the best round."""
    ours = next((name for name in values if name.startswith(OURS)), None)
    medians = {name: statistics.median(rounds.values()) for name, rounds in values.items() if name != ours}
    if ours is None or not medians:
        return "-"
    best = max(medians, key=lambda name: direction * medians[name])
    ratio = (statistics.median(values[ours].values()) / medians[best]) ** direction
    common = values[ours].keys() & values[best].keys()
    each = sorted((values[ours][number] / values[best][number]) ** direction for number in common)
    spread = f" ({each[0]:.2f} .. {each[-1]:.2f})" if each else ""
    return f"{ratio:.2f} × {best.split()[0]}{spread}"


def _limits(lines: Sequence[Line]) -> str:
    """The machine over all runs: the median and the worst."""
    parts = []
    for name, label in (("read_gb_s", "reads, GB/s"), ("gemm_bf16_gflop_s", "bf16 product of 2,048³, GFLOP/s")):
        values = [line["limits"][name] for line in lines if name in line["limits"]]
        if values:
            parts.append(f"{label}: {statistics.median(values):.0f} ({min(values):.0f} .. {max(values):.0f})")
    return f"Before each run the machine reached: {'; '.join(parts)}."


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    digits = 1 if max(values) < 1000 else 0
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low} .. {high})"


def _name(line: Line) -> str:
    return f"{line['engine']} {line['dtype']}"
