"""Prometheus metrics: vLLM's names with our prefix, where the meaning is equal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from orcinus.core.request import FinishReason
from orcinus.engine.messages import Outputs

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
PREFIX = "orcinus:"
_LATENCIES = (
    *(0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.5),
    *(10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0, 240.0, 640.0),
)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12)


class EngineState(Protocol):
    """Where the gauges read."""

    @property
    def stats(self) -> Outputs | None:
        """State of the queues after the latest iteration."""


class Metrics:
    """One registry a server. Children are made once: finding one by its labels costs more than counting.

    Args:
        engine: its figures are read when somebody asks for the metrics.
        model_name: the label of every series.
    """

    def __init__(self, engine: EngineState, model_name: str) -> None:
        self._registry = CollectorRegistry()
        labels = {"model_name": model_name}
        self._gauge("num_requests_running", "sequences in iterations", labels, lambda: _stats(engine).num_running)
        self._gauge("num_requests_waiting", "sequences waiting to start", labels, lambda: _stats(engine).num_waiting)
        self._gauge("kv_cache_usage_perc", "share of the KV blocks in use, 0 to 1", labels, lambda: _kv_usage(engine))
        self._gauge("kv_blocks_on_host", "KV blocks in the host's memory", labels, lambda: _stats(engine).host_blocks)
        self._gauge("kv_blocks_on_disk", "KV blocks on disk", labels, lambda: _stats(engine).disk_blocks)
        self._registry.register(_EngineCounters(engine, labels))
        self.prompt_tokens = self._counter("prompt_tokens", "tokens of prompts served", labels)
        self._prefix_queries = self._counter("prefix_cache_queries", "prompt tokens looked up", labels)
        self._prefix_hits = self._counter("prefix_cache_hits", "prompt tokens whose KV was there", labels)
        self.generation_tokens = self._counter("generation_tokens", "tokens generated", labels)
        self.time_to_first_token = self._histogram(
            "time_to_first_token_seconds", "arrival to first", labels, _LATENCIES
        )
        self.gap = self._histogram("inter_token_latency_seconds", "gap between two tokens", labels, _GAPS)
        self.time_per_output_token = self._histogram("time_per_output_token_seconds", "mean gap", labels, _GAPS)
        self.latency = self._histogram("e2e_request_latency_seconds", "arrival to last token", labels, _LATENCIES)
        ended = Counter(
            f"{PREFIX}request_success", "answers by how they ended", ("model_name", "finished_reason"),
            registry=self._registry,
        )  # fmt: skip
        self.ended = {reason.value: ended.labels(model_name, reason.value) for reason in FinishReason}

    def count_prefix(self, prompt_tokens: int, cached_tokens: int) -> None:
        """One prompt has begun."""
        self._prefix_queries.inc(prompt_tokens)
        self._prefix_hits.inc(cached_tokens)

    def exposition(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)

    def _gauge(self, name: str, text: str, labels: dict[str, str], read: _Read) -> None:
        Gauge(PREFIX + name, text, tuple(labels), registry=self._registry).labels(**labels).set_function(read)

    def _counter(self, name: str, text: str, labels: dict[str, str]) -> Counter:
        return Counter(PREFIX + name, text, tuple(labels), registry=self._registry).labels(**labels)

    def _histogram(self, name: str, text: str, labels: dict[str, str], buckets: tuple[float, ...]) -> Histogram:
        family = Histogram(PREFIX + name, text, tuple(labels), registry=self._registry, buckets=buckets)
        return family.labels(**labels)


class _Read(Protocol):
    def __call__(self) -> float: ...


class _EngineCounters(Collector):
    """Counters that the engine itself keeps."""

    def __init__(self, engine: EngineState, labels: dict[str, str]) -> None:
        self._engine = engine
        self._labels = labels

    def collect(self) -> Iterable[Metric]:
        """Read them now."""
        stats = _stats(self._engine)
        for name, text, value in (
            ("num_preemptions", "sequences that gave back their KV blocks", stats.preemptions),
            ("iterations", "iterations run", stats.iterations),
            ("kv_blocks_spilled", "KV blocks copied to the host's memory", stats.spilled_blocks),
            ("kv_blocks_stored", "KV blocks written to disk", stats.stored_blocks),
            ("kv_blocks_restored", "KV blocks brought back from host or disk", stats.restored_blocks),
            ("kv_blocks_lost", "KV blocks that the disk did not hold after all", stats.lost_blocks),
        ):
            family = CounterMetricFamily(PREFIX + name, text, labels=tuple(self._labels))
            family.add_metric(tuple(self._labels.values()), value)
            yield family
        idle = GaugeMetricFamily(
            PREFIX + "stage_idle_share", "of the time under load, by pipeline stage", labels=(*self._labels, "stage")
        )
        for stage, share in enumerate(stats.stage_idle):
            idle.add_metric((*self._labels.values(), str(stage)), share)
        yield idle


def _stats(engine: EngineState) -> Outputs:
    return engine.stats or Outputs(())


def _kv_usage(engine: EngineState) -> float:
    stats = _stats(engine)
    return 1 - stats.free_blocks / stats.total_blocks if stats.total_blocks else 0.0
