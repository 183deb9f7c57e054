"""Five hundred simulated lives of core with planned trouble, and whether the net holds what it is meant to hold."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from lives import Arrive, Crash, Epoch, Life, Run, Step
from shrink import failure_of, made_plainer, shrink
from sim_world import World

from orcinus.core.kv.pool import BlockPool
from orcinus.core.scheduler import Scheduler

LIVES, CHUNK = 500, 50
TOOL = Path(__file__).resolve().parents[2] / "tools" / "simulation_test.py"


def trace_of(life: Life) -> str:
    world = World(life)
    world.live()
    return world.trace


@pytest.mark.parametrize("first", range(0, LIVES, CHUNK))
def test_no_life_breaks_an_invariant(first):
    for seed in range(first, first + CHUNK):
        failure = failure_of(Life.of(seed))
        assert failure is None, f"python tools/simulation_test.py --start {seed} --seeds 1\n{failure.text}"


def test_no_life_with_proactive_swap_breaks_an_invariant():
    """Under mlfq with a host's memory: few of the lives above have both, and a pool in which it comes to that."""
    fetched = 0
    for seed in range(120):
        life = swapping(Life.of(seed))
        failure = failure_of(life)
        assert failure is None, f"seed {seed}: {failure.text}"
        world = World(life)
        world.live()
        fetched += world.journal.counts["Fetched"]
    assert fetched > 20


def swapping(life: Life) -> Life:
    """The same with proactive swap on."""
    config = msgspec.structs.replace(
        life.config,
        policy="mlfq",
        admission="on_demand",
        enable_prefix_caching=True,
        num_host_blocks=(1, 3, 8, 64)[life.seed % 4],
        host_block_seconds=0.0,
        block_size=min(life.config.block_size, 2),
    )
    return replace(life, config=config)


def test_lives_are_eventful():
    """A net that nothing swims into holds nothing: each kind of trouble comes up, and core does all it can do."""
    events, journal = set(), set()
    for seed in range(60):
        world = World(life := Life.of(seed))
        world.live()
        events |= {type(event).__name__ for event in life.events}
        journal |= {*world.journal.counts}
    kinds = {
        "Arrive",
        "Abort",
        "Resume",
        "Advance",
        "Step",
        "Run",
        "Collect",
        "Hold",
        "Stale",
        "Epoch",
        "Crash",
        "Jump",
    }
    assert events == kinds
    assert journal >= {
        "Added",
        "Blocked",
        "CacheHit",
        "Evicted",
        "Admitted",
        "Forked",
        "Preempted",
        "EpochStarted",
        "BeamsChosen",
    }


@pytest.mark.parametrize("seed", range(20))
def test_a_seed_has_one_trace(seed):
    assert Life.of(seed) == Life.of(seed)
    assert trace_of(Life.of(seed)) == trace_of(Life.of(seed))


def test_traces_differ_between_seeds():
    assert len({trace_of(Life.of(seed)) for seed in range(20)}) == 20


@pytest.mark.slow
def test_the_trace_does_not_depend_on_pythons_hashes():
    code = "from test_simulation import *; print([trace_of(Life.of(seed)) for seed in range(40)])"
    folder = Path(__file__).parent
    outputs = set()
    for hash_seed in ("0", "1", "4711"):
        paths = (folder, folder.parent / "core", TOOL.parents[1])
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(map(str, paths))}
        run = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True, check=True
        )
        outputs.add(run.stdout)
    assert len(outputs) == 1


def forget_the_pins(monkeypatch):
    """Blocks that a plan in flight touches are free at once."""
    monkeypatch.setattr(BlockPool, "pin", lambda self, blocks: None)
    monkeypatch.setattr(BlockPool, "unpin", lambda self, blocks: None)


def first_failing(start=0):
    return next(
        (life, failure) for seed in range(start, 10_000) if (failure := failure_of(life := Life.of(seed))) is not None
    )


@pytest.mark.slow
def test_the_planted_bugs_have_their_places():
    """Code moves on; a bug whose text is gone would be planted nowhere, and caught by nobody."""
    run = subprocess.run(
        [sys.executable, str(TOOL.with_name("mutants.py")), "planted", "--minutes", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_a_failing_life_is_cut_down_to_what_matters(monkeypatch):
    forget_the_pins(monkeypatch)
    life, failure = first_failing()
    shrunk = shrink(life, failure.kind)
    assert len(shrunk.life.events) <= 6
    again = failure_of(made_plainer(life, shrunk.plainer).cut(shrunk.keep))
    assert again is not None
    assert again.kind.split(":")[0] == failure.kind.split(":")[0]
    assert shrink(life, failure.kind) == shrunk
    monkeypatch.undo()
    assert failure_of(shrunk.life) is None


def test_a_result_of_an_older_epoch_must_not_count(monkeypatch):
    """A planted bug that only the faults find."""
    update = Scheduler.update

    def forgetful(self, result, now):
        return update(self, type(result)(self.epoch, *list_of(result)[1:]), now)

    def list_of(result):
        return [getattr(result, name) for name in result.__struct_fields__]

    monkeypatch.setattr(Scheduler, "update", forgetful)
    _, failure = first_failing()
    assert failure is not None


def test_a_life_without_arrivals_ends_at_once():
    life = Life.of(1)
    assert failure_of(replace(life, events=(Crash(), Epoch(kv_lost=True, half_done=2), Run(None), Step(3)))) is None


def test_a_crash_loses_no_token():
    """The client of a request that lived through three engines has the same answer as if there had been one."""
    life = Life.of(1)
    events = (Arrive(1, 0, 0, 3, 8, n=1, ignore_eos=True), Step(5), Crash(), Step(7), Crash())
    config = type(life.config)(num_blocks=32, block_size=4)
    world = World(replace(life, config=config, events=events))
    world.live()
    (answer,) = world.clients["r1"].answers
    assert len(answer.tokens) == 8
    assert answer.num_resumed > 0
