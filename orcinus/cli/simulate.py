"""`orcinus simulate`: the engine's own scheduler under a virtual clock."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from orcinus.simulate.config import TwinConfig, WorkloadConfig

_TWIN, _WORKLOAD = TwinConfig(), WorkloadConfig()
_ENOUGH_TO_COMPARE = 2


def simulate(
    twin: Annotated[TwinConfig, Parameter(name="*")] = _TWIN,
    workload: Annotated[WorkloadConfig, Parameter(name="*")] = _WORKLOAD,
    *,
    goodput: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    label: str = "",
    compare: Annotated[tuple[Path, ...], Parameter(consume_multiple=True)] = (),
    report: Path | None = None,
    json: Annotated[Path | None, Parameter(allow_leading_hyphen=True)] = None,
) -> int:
    """Simulate a load: the scheduler that serves decides here too, and only time and tokens are modelled.

    Args:
        goodput: targets in milliseconds, as ttft:200 tpot:50 e2el:5000.
        label: name of this run in tables and reports.
        compare: results of earlier runs (--json) to show beside this one; two or more are shown without a new run.
        report: .html file for a page with the latencies, the queue, the KV pool and a window of iterations.
        json: file for the result, with the keys of `orcinus bench online`; - prints it.
    """
    from orcinus.bench.goal import Goal
    from orcinus.bench.output import show, write_json
    from orcinus.simulate.figures import to_json
    from orcinus.simulate.report import read_run, tables, write_page
    from orcinus.simulate.twin import run_twin

    runs = [read_run(file) for file in compare]
    if len(runs) < _ENOUGH_TO_COMPARE:
        runs.append(run_twin(twin, workload, Goal.parse(goodput), label))
    show(tables(runs), to_stderr=json == Path("-"))
    if json is not None:
        write_json(to_json(runs[-1]), json)
    if report is not None:
        write_page(report, runs, f"orcinus simulate: {workload.in_words()}" if not compare else "orcinus simulate")
    return 0
