"""Promise 1, one brain and two clocks: the twin at the recorded pace decides what the engine decided.

A real engine serves orcinus-tiny here, in this process, and writes a recording. The recording's arrivals, hang-ups and
times then go through the twin.
"""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest

from orcinus.core.config import SchedulerConfig
from orcinus.core.core import Core
from orcinus.core.journal import Admitted, CacheHit, Event, Finished, Forked, Journal, Preempted, Scheduled
from orcinus.core.recording import Recorder, replay
from orcinus.core.request import FinishReason, Request, SamplingParams, pack_tokens
from orcinus.engine.build import build_engine
from orcinus.engine.clock import MonotonicClock
from orcinus.engine.config import EngineConfig
from orcinus.engine.loop import Engine
from orcinus.simulate.recorded import RecordedHost, RecordedPace, RecordedRun
from orcinus.simulate.run import Simulation

pytestmark = pytest.mark.slow
MODEL = Path(__file__).parents[2] / "models" / "orcinus-tiny"


def recorded_requests(rng: random.Random) -> list[Request]:
    """Prompts of all lengths, some that begin alike, some with two answers; ended by a limit or by the model."""
    common = [rng.randrange(10, 2000) for _ in range(80)]
    return [
        Request(
            request_id=f"request-{number}",
            prompt=pack_tokens(
                common[: rng.choice((0, 40, 80))]
                + [rng.randrange(10, 2000) for _ in range(rng.choice((3, 20, 90, 220)))]
            ),
            params=SamplingParams(
                n=rng.choice((1, 1, 1, 2)), max_tokens=rng.randint(2, 60), seed=number, ignore_eos=number % 3 == 0
            ),
            eos_token_ids=tuple(range(40)),
        )
        for number in range(24)
    ]


def record_engine(admission: str, lookahead: int, num_blocks: int, *, caching: bool) -> list[bytes]:
    """Serve them for real: half at once, half while the others run; one hangs up, one is stopped by its text."""
    clock, lines = MonotonicClock(), list[bytes]()
    built, _ = build_engine(EngineConfig(str(MODEL), threads=1, kv_cache_gib=0.05, max_batch_tokens=64), clock)
    config = SchedulerConfig(
        num_blocks=num_blocks,
        max_batch_tokens=64,
        max_batch_size=8,
        admission=admission,
        lookahead=lookahead,
        enable_prefix_caching=caching,
    )
    engine = Engine(Recorder(Core(config), b"secret", lines.append), built.executor, clock)
    requests = recorded_requests(random.Random(5))
    for request in requests[:12]:
        engine.add(request)
    left, steps = requests[12:], 0
    while engine.step() is not None or left:
        steps += 1
        if left and steps % 7 == 0:
            engine.add(left.pop(0))
        if steps == 30:
            engine.abort("request-5")
        if steps == 41:
            engine.abort("request-7", cause=FinishReason.STOP)
    return lines


def decisions(journal: Journal) -> list[tuple[object, ...]]:
    """Who started, ran what, gave way and ended, without the instants; requests by the order of their numbers."""
    return [
        _timeless(event)
        for event in journal
        if isinstance(event, Admitted | CacheHit | Scheduled | Forked | Preempted | Finished)
    ]


def _timeless(event: Event) -> tuple[object, ...]:
    fields = {name: getattr(event, name) for name in event.__struct_fields__ if name not in ("at", "waited")}
    for name in ("request_id", "in_favour_of"):
        if name in fields:
            fields[name] = fields[name].removeprefix("request-")
    return type(event).__name__, *fields.values()


@pytest.mark.parametrize(
    ("admission", "lookahead", "num_blocks", "caching"),
    [("on_demand", 0, 24, False), ("on_demand", 1, 24, True), ("reserve", 1, 120, False)],
)
def test_the_twin_at_the_recorded_pace_decides_what_the_engine_decided(admission, lookahead, num_blocks, caching):
    lines = record_engine(admission, lookahead, num_blocks, caching=caching)
    engine, difference = replay(lines)
    assert difference is None
    run = RecordedRun.read(lines)
    twin = Simulation(
        run.config,
        RecordedPace(run.seconds),
        RecordedHost(run.decided_at),
        sees_arrivals_midway=False,
        leaps=False,
    )
    twin.run(run.jobs, run.hang_ups)
    expected, found = decisions(engine.journal), decisions(twin.journal)
    assert len(expected) > 100
    first = next((pair for pair in zip(expected, found, strict=False) if pair[0] != pair[1]), None)
    assert first is None
    assert len(found) == len(expected)
    if admission == "on_demand":
        assert engine.journal.counts["Preempted"] > 0, "the pool was large enough, so this compares too little"
    assert (engine.journal.counts["CacheHit"] > 0) == caching
    iterations = [event for event in engine.journal if isinstance(event, Scheduled)]
    assert any(len(later.work) > len(earlier.work) for earlier, later in pairwise(iterations))


def test_the_recorded_pace_matters():
    """Else the comparison above proves nothing: at another pace arrivals meet other batches."""
    lines = record_engine("on_demand", 0, 40, caching=False)
    engine, _ = replay(lines)
    run = RecordedRun.read(lines)
    twin = Simulation(run.config, RecordedPace([5 * each for each in run.seconds]), sees_arrivals_midway=False)
    twin.run(run.jobs, run.hang_ups)
    assert decisions(twin.journal) != decisions(engine.journal)
