"""The figures of a load as people read them, and as programs do: JSON with the keys of `vllm bench serve`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orcinus.bench.asks import Observation
from orcinus.bench.config import OnlineConfig
from orcinus.bench.figures import OnlineFigures, Summary
from orcinus.bench.online import OnlineRun

_FAILED = "Failed requests"
_LATENCIES = {
    "ttft": "TTFT: sent to first token",
    "tpot": "TPOT: each further token, mean of a request",
    "itl": "ITL: gap between chunks",
    "e2el": "E2EL: sent to end of answer",
}


def online_tables(run: OnlineRun) -> RenderableType:
    """Everything worth a look, and what to doubt."""
    config = run.config
    parts: list[RenderableType] = [
        Text(f"{run.model} at {config.base_url}, {config.endpoint}, {load_in_words(config)}", style="bold"),
        _throughput_table(run),
        _latency_table(run.figures),
    ]
    parts += [Text(f"! {remark}", style="yellow") for remark in remarks(run.figures, config)]
    return Group(*parts)


def load_in_words(config: OnlineConfig) -> str:
    """The dataset and its arrivals."""
    rate = math.inf if config.request_rate is None else config.request_rate
    if config.from_trace and config.request_rate is None:
        arrivals = "the trace's own arrivals"
    elif math.isinf(rate):
        arrivals = "all at once"
    elif config.from_trace:
        arrivals = f"{rate:g} requests/s (the trace, stretched)"
    else:
        process = "Poisson" if config.burstiness == 1 else f"Gamma, burstiness {config.burstiness:g}"
        arrivals = f"{rate:g} requests/s ({process})"
    return f"{config.dataset}, {arrivals}, seed {config.seed}"


def _throughput_table(run: OnlineRun) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    for name, value in _throughput_rows(run):
        table.add_row(name, value, style="red" if name == _FAILED and run.figures.failed else "")
    return table


def _throughput_rows(run: OnlineRun) -> Iterator[tuple[str, str]]:
    figures = run.figures
    yield "Completed requests", f"{figures.completed:,}"
    yield _FAILED, f"{figures.failed:,}"
    yield from ((f"  {label}", f"{count:,}") for label, count in figures.failures.items())
    yield "Benchmark duration", f"{figures.duration:.2f} s"
    yield "Request throughput", f"{figures.request_throughput:.2f} requests/s"
    if figures.request_goodput is not None and figures.slo_attainment is not None:
        yield f"Request goodput ({run.goal})", f"{figures.request_goodput:.2f} requests/s"
        yield "SLO attainment, failures included", f"{figures.slo_attainment:.1%}"
    yield "Input tokens", f"{figures.total_input:,}"
    yield "Output tokens", f"{figures.total_output:,}"
    yield "Input token throughput", f"{figures.input_throughput:,.1f} tokens/s"
    yield "Output token throughput", f"{figures.output_throughput:,.1f} tokens/s"
    yield "Total token throughput", f"{figures.input_throughput + figures.output_throughput:,.1f} tokens/s"
    yield "Peak concurrent requests", f"{figures.peak_concurrency:,}"
    yield "Generator late, p99 / maximum", _both_ms(figures.lateness, 99)
    yield "Generator stalled, p99 / maximum", _both_ms(figures.stalls, 99)
    if run.config.max_concurrency is not None:
        yield "Held back by --max-concurrency, mean", f"{_ms(figures.queueing.mean)} ms"


def _both_ms(summary: Summary, percentile: float) -> str:
    return f"{_ms(summary.percentiles[percentile])} / {_ms(summary.maximum)} ms"


def _latency_table(figures: OnlineFigures) -> Table:
    table = Table(title="Latency in ms", title_justify="left")
    table.add_column("")
    percentiles = list(figures.ttft.percentiles)
    for heading in ("mean", "std", *(f"p{p:g}" for p in percentiles), "max"):
        table.add_column(heading, justify="right")
    for name, title in _LATENCIES.items():
        summary: Summary = getattr(figures, name)
        values = (summary.mean, summary.std, *summary.percentiles.values(), summary.maximum)
        table.add_row(title, *map(_ms, values))
    return table


def _ms(seconds: float) -> str:
    return "–" if math.isnan(seconds) else f"{seconds * 1000:,.2f}"


def remarks(figures: OnlineFigures, config: OnlineConfig) -> Iterator[str]:
    """What a reader would otherwise not know."""
    yield from (f"{label}: {detail}" for label, detail in figures.examples.items())
    if figures.lags:
        yield (
            f"The generator itself lags: it sent up to {_ms(figures.lateness.maximum)} ms late and stalled for up to "
            f"{_ms(figures.stalls.maximum)} ms. Its machine is short of CPU, so the load was not quite the one asked "
            "for, and part of the latencies is its own."
        )
    if config.max_concurrency is not None:
        yield "With --max-concurrency the loop is closed: requests waited here, and that wait is in no latency."
    if figures.num_counted:
        yield (
            f"{figures.num_counted} answers came without usage: their output tokens are counted as chunks, prompt "
            "tokens as they were made."
        )
    # The end token comes with a chunk that shows nothing.
    elif figures.total_output > 1.05 * (figures.num_chunks + figures.completed):
        yield (
            f"{figures.total_output / figures.num_chunks:.2f} tokens a chunk: ITL is the gap between chunks, as a "
            "reader sees them, and TPOT counts every token."
        )


def online_json(run: OnlineRun, *, detailed: bool) -> dict[str, object]:
    """The keys of `vllm bench serve --save-result`, and ours beside them; NaN is null.

    Args:
        detailed: one entry a request as well.
    """
    figures, config = run.figures, run.config
    summaries = {name: getattr(figures, name) for name in (*_LATENCIES, "lateness", "stalls", "queueing")}
    fields: dict[str, object] = {
        "model_id": run.model,
        "base_url": config.base_url,
        "endpoint": config.endpoint,
        "dataset": config.dataset,
        "arrivals": load_in_words(config),
        "request_rate": None if config.request_rate is None else _number(config.request_rate),
        "burstiness": config.burstiness,
        "max_concurrency": config.max_concurrency,
        "num_prompts": figures.completed + figures.failed,
        "seed": config.seed,
    }
    fields |= _throughput_json(figures) | _latency_json(summaries)
    fields["remarks"] = list(remarks(figures, config))
    if detailed:
        fields["requests"] = [_request_json(o, run.observations[0].scheduled_at) for o in run.observations]
    return fields


def _throughput_json(figures: OnlineFigures) -> dict[str, object]:
    return {
        "duration": figures.duration,
        "completed": figures.completed,
        "failed": figures.failed,
        "failures": figures.failures,
        "total_input_tokens": figures.total_input,
        "total_output_tokens": figures.total_output,
        "request_throughput": figures.request_throughput,
        "request_goodput": figures.request_goodput,
        "slo_attainment": figures.slo_attainment,
        "input_throughput": figures.input_throughput,
        "output_throughput": figures.output_throughput,
        "total_token_throughput": figures.input_throughput + figures.output_throughput,
        "max_concurrent_requests": figures.peak_concurrency,
        "output_tokens_counted_by_chunks": figures.num_counted,
        "tokens_per_chunk": figures.total_output / figures.num_chunks if figures.num_chunks else None,
    }


def _latency_json(summaries: Mapping[str, Summary]) -> dict[str, object]:
    fields: dict[str, object] = {}
    for name, summary in summaries.items():
        values = {"mean": summary.mean, "median": summary.median, "std": summary.std, "max": summary.maximum}
        values |= {f"p{p:g}": value for p, value in summary.percentiles.items()}
        fields |= {f"{key}_{name}_ms": _number(value * 1000) for key, value in values.items()}
    return fields


def _number(value: float) -> float | str | None:
    """JSON has neither NaN nor infinity."""
    if math.isnan(value):
        return None
    return "inf" if math.isinf(value) else value


def _request_json(observation: Observation, start: float) -> dict[str, object]:
    """Instants in seconds after the first request was to arrive."""
    whole = observation.failure is None
    return {
        "scheduled_at": observation.scheduled_at - start,
        "sent_at": observation.sent_at - start,
        "ended_at": observation.ended_at - start,
        "ttft": observation.ttft if whole else None,
        "tpot": observation.tpot if whole else None,
        "itls": observation.gaps,
        "prompt_tokens": observation.prompt_tokens,
        "output_tokens": observation.num_output,
        "finish_reason": observation.finish_reason,
        "error": None if observation.failure is None else str(observation.failure),
    }
