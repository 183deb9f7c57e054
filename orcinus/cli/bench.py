"""`orcinus bench`: how fast is this engine, or that endpoint?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from orcinus.bench.config import OnlineConfig
from orcinus.bench.extra import require
from orcinus.cli.serve import API_KEY_VARIABLE
from orcinus.engine.config import EngineConfig

EXIT_NOTHING_MEASURED = 2
_ONLINE_DEFAULTS = OnlineConfig()
_ALL_WORKLOADS = ("W1", "W2", "W3", "W4")

bench = App(
    name="bench",
    help="Measure an engine in this process, or any OpenAI endpoint.",
    default_parameter=Parameter(negative=()),
)


@bench.command
def offline(
    engine: Annotated[EngineConfig, Parameter(name="*")],
    *,
    workloads: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = _ALL_WORKLOADS,
    repeats: int = 3,
    json: bool = False,
    plot: Path | None = None,
) -> int:
    """Run the workloads W1 to W4 in this process and print medians with their spread.

    W1: 64 requests of mixed lengths at once. W2: one request alone. W3: 32 requests with a common beginning. W4: one
    long prompt. Random token ids, greedy, end tokens ignored.

    Args:
        workloads: which of them.
        repeats: of each, after a warm-up; every one with new token ids.
        json: print JSON instead of the table.
        plot: .svg, .png, .pdf or .html file for a picture.
    """
    from orcinus.bench.offline import run_offline
    from orcinus.bench.offline_report import draw_offline, offline_json, offline_table
    from orcinus.bench.output import show, write_json
    from orcinus.bench.picture import check_suffix

    if plot is not None:
        check_suffix(plot)
    run = run_offline(engine, workloads, repeats)
    if json:
        write_json(offline_json(run), None)
    else:
        show(offline_table(run))
    if plot is not None:
        draw_offline(plot, run)
    return 0 if run.results else EXIT_NOTHING_MEASURED


@bench.command
def online(
    config: Annotated[OnlineConfig, Parameter(name="*")] = _ONLINE_DEFAULTS,
    *,
    goodput: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    api_key: str | None = None,
    json: Annotated[Path | None, Parameter(allow_leading_hyphen=True)] = None,
    save_detailed: bool = False,
    plot: Path | None = None,
) -> int:
    """Load an OpenAI endpoint and measure TTFT, TPOT, ITL, E2EL, throughput and goodput.

    Open loop: every arrival is drawn before the start, and no answer, however late, delays one. Failures are counted
    by kind and shown.

    Args:
        goodput: targets in milliseconds, as ttft:200 tpot:50 e2el:5000.
        api_key: sent as a bearer token; better given as ORCINUS_API_KEY.
        json: file for the result, with the keys of `vllm bench serve`; - prints it, and the table to standard error.
        save_detailed: the JSON lists every request too.
        plot: .svg, .png, .pdf or .html file for the latency distributions.
    """
    require("aiohttp")
    import uvloop

    from orcinus.bench.goal import Goal
    from orcinus.bench.online import run_online
    from orcinus.bench.output import show, write_json
    from orcinus.bench.picture import check_suffix, draw_latencies
    from orcinus.bench.report import load_in_words, online_json, online_tables

    if plot is not None:
        check_suffix(plot)
    run = uvloop.run(run_online(config, Goal.parse(goodput), api_key or os.environ.get(API_KEY_VARIABLE)))
    show(online_tables(run), to_stderr=json == Path("-"))
    if json is not None:
        write_json(online_json(run, detailed=save_detailed), json)
    if plot is not None:
        draw_latencies(plot, run.observations, run.goal, run.model, load_in_words(config))
    return 0 if run.figures.completed else EXIT_NOTHING_MEASURED
