"""An engine over Ray, as a program: what it found, as JSON on its last line."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from test_layouts import config_of, greedy, run

from orcinus.core.clock import VirtualClock
from orcinus.engine.build import build_engine, engine_over, worker_config
from orcinus.engine.config import EngineConfig
from orcinus.engine.loop import Engine
from orcinus.errors import SystemFault
from orcinus.executor import WorkerDied
from orcinus.executor.network import NetworkWorkers


def start(config: EngineConfig) -> tuple[Engine, NetworkWorkers]:
    # Only a driver has connected Ray; the test that imports this module never does.
    from orcinus.executor.ray import start_ray_workers

    layout = config.tensor_parallel_size, config.pipeline_parallel_size
    workers = start_ray_workers(worker_config(config), *layout, lambda _: None, spread=config.ray_spread)
    return engine_over(workers, config, VirtualClock())[0], workers


def answer(config: EngineConfig) -> dict[str, object]:
    engine, workers = start(config)
    found = {**answered(engine), "hosts": workers.hosts, "pids": workers.pids}
    engine.close()
    return found


def answered(engine: Engine) -> dict[str, object]:
    """Tokens and their log-probabilities, every bit, and all decisions."""
    bits = {
        key: [(token, scores.logprob) for token, scores in answer] for key, answer in run(engine, greedy(12)).items()
    }
    decided = [str(entry) for entry in engine.scheduler.journal]
    return {"bits": sorted([*key, answer] for key, answer in bits.items()), "journal": decided}


def hurt(config: EngineConfig, number: signal.Signals, *, idle: bool) -> dict[str, object]:
    """Kill or stop the last worker, and wait for what is said of it."""
    engine, workers = start(config)
    if not idle:
        for request in greedy(8, max_tokens=1500):
            engine.add(request)
        for _ in range(20):
            engine.step()
    os.kill(workers.pids[-1], number)
    killed = time.monotonic()
    with pytest.raises(WorkerDied) as died:
        go_on(engine, workers, idle=idle)
    found = {"words": str(died.value), "by_others": died.value.by_others, "pids": workers.pids}
    found["seconds"] = time.monotonic() - killed
    engine.close()
    return found


def wait(config: EngineConfig) -> dict[str, object]:
    """Say who the workers are, and wait to be killed."""
    _, workers = start(config)
    print(json.dumps(workers.pids), flush=True)
    time.sleep(1000)
    return {}


def go_on(engine: Engine, workers: NetworkWorkers, *, idle: bool) -> None:
    """For good, or until somebody is missed."""
    while True:
        workers.check() if idle else engine.step()


def refused(config: EngineConfig) -> dict[str, object]:
    """What is said instead of a start, and whether anything of it is left."""
    import ray

    with pytest.raises(SystemFault) as refusal:
        build_engine(config, VirtualClock())
    return {"words": str(refusal.value), "is_connected": ray.is_initialized()}


def insecure(config: EngineConfig) -> dict[str, object]:
    engine, _ = build_engine(replace(config, insecure_ray=True), VirtualClock())
    found = answered(engine)
    engine.close()
    return found


def main(what: str, model: str, tensor_size: str, num_stages: str) -> None:
    config = config_of(Path(model), int(tensor_size), int(num_stages), executor="ray", ray_spread="spread")
    match what:
        case "answer":
            found = answer(config)
        case "kill" | "kill-idle":
            found = hurt(config, signal.SIGKILL, idle=what == "kill-idle")
        case "stop":
            found = hurt(config, signal.SIGSTOP, idle=False)
        case "wait":
            found = wait(config)
        case "refused":
            found = refused(config)
        case "insecure":
            found = insecure(config)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
