"""The figures of one phase of `overload.py`, and its line in the table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise

from overload_server import EngineView, histogram_quantile
from raw_client import Reply

# The first seconds of a phase are not those of its load.
WARM_UP = 5.0
OVERLOADED, SERVED = 429, 200


def server_side(view: EngineView, moved: dict[str, float]) -> dict[str, object]:
    """What the server says of itself."""
    histogram = {
        f"{name}_p99": histogram_quantile(moved, f"{name}_seconds", 0.99)
        for name in ("time_to_first_token", "time_per_output_token")
    }
    count = moved["time_to_first_token_seconds_count"]
    return {
        "server_ttft": view.ttft,
        "server_gap": ranks(view.gaps),
        "iteration": ranks(view.iterations),
        "most_waiting": view.most_waiting,
        "histograms": histogram,
        "mean_ttft": moved["time_to_first_token_seconds_sum"] / count if count else None,
        "preemptions": moved["num_preemptions_total"],
    }


def client_side(
    first: Sequence[Reply], returns: Sequence[Sequence[Reply]], begun: float, seconds: float
) -> dict[str, object]:
    """What the client saw.

    Args:
        first: a reply for each request.
        returns: the further ones of each that came back.
    """
    replies = [*first, *(reply for each in returns for reply in each)]
    served = [reply for reply in replies if reply.status == SERVED and reply.events]
    refused = [reply for reply in replies if reply.status == OVERLOADED]
    first_returns = [each[0] for each in returns]
    warm, end = begun + min(WARM_UP, seconds / 2), begun + seconds
    return {
        "sent": len(replies),
        "served": len(served),
        "refused": len(refused),
        "others": len(replies) - len(served) - len(refused),
        "good_refusals": sum(map(is_good_refusal, refused)),
        "first_returns": len(first_returns),
        "first_returns_served": sum(reply.status == SERVED for reply in first_returns),
        "served_in_the_end": sum(reply.status == SERVED for reply in first)
        + sum(each[-1].status == SERVED for each in returns),
        "requests_a_second": sum(warm <= reply.events[0] < end for reply in served) / (end - warm),
        "tokens_a_second": tokens_between(served, warm, end) / (end - warm),
        "client_ttft": ranks([reply.events[0] - reply.sent_at for reply in served]),
        "client_gap": ranks([later - earlier for reply in served for earlier, later in pairwise(reply.events)]),
        "refusal": ranks([reply.ended_at - reply.sent_at for reply in refused]),
        "retry_after": ranks([reply.retry_after or 0.0 for reply in refused]),
    }


def tokens_between(replies: Sequence[Reply], begin: float, end: float) -> int:
    """Events that came in that time."""
    return sum(begin <= instant < end for reply in replies for instant in reply.events)


def ranks(values: Sequence[float]) -> dict[str, float]:
    """Percentiles by nearest rank."""
    ordered = sorted(values)
    if not ordered:
        return {}
    at = {f"p{percent}": ordered[-(-len(ordered) * percent // 100) - 1] for percent in (50, 90, 99)}
    return at | {"max": ordered[-1], "mean": sum(ordered) / len(ordered)}


def is_good_refusal(reply: Reply) -> bool:
    """Retry-After from 1 to 60, and OpenAI's shape."""
    error = json.loads(reply.body).get("error", {})
    shaped = set(error) == {"message", "type", "param", "code"} and error["type"] == "rate_limit_error"
    return shaped and reply.retry_after is not None and 1 <= reply.retry_after <= 60


COLUMNS = {
    "phase": "phase",
    "requests_a_second": "req/s",
    "tokens_a_second": "tok/s",
    "refused": "refused",
    "server_ttft": "TTFT p99",
    "server_gap": "gap p99",
    "client_ttft": "client TTFT",
    "client_gap": "client gap",
    "refusal": "refusal p99",
    "retry_after": "retry p99",
    "normal_after": "normal",
}


def line_of(figures: dict[str, object]) -> str:
    """One row of the table; of percentiles the 99th."""
    cells = []
    for name in COLUMNS:
        value = figures[name]
        value = value.get("p99", float("nan")) if isinstance(value, dict) else value
        cells.append(f"{value:11.3f}" if isinstance(value, float) else f"{value:>11}")
    return " ".join(cells)
