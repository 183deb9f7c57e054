"""Workers as processes: they answer as one process does, and die together, loudly."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_layouts import config_of, mixed, prompts, run, tokens_of
from thread_workers import engine_of_threads

from orcinus.core.clock import VirtualClock
from orcinus.core.request import Request, SamplingParams
from orcinus.engine.build import build_engine, engine_over, worker_config
from orcinus.engine.config import EngineConfig
from orcinus.engine.loop import Engine
from orcinus.errors import CheckpointError, ConfigurationError
from orcinus.executor import WorkerDied
from orcinus.executor.inline import InlineWorkers
from orcinus.executor.processes import ProcessWorkers

pytestmark = pytest.mark.slow


def start(config: EngineConfig, on_progress: Callable[[], None] = lambda: None) -> tuple[Engine, ProcessWorkers]:
    layout = (config.tensor_parallel_size, config.pipeline_parallel_size)
    workers = ProcessWorkers.start(worker_config(config), *layout, lambda _: None, on_progress)
    return engine_over(workers, config, VirtualClock())[0], workers


def is_gone(pid: int) -> bool:
    """Also if nobody has waited for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def wait_until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it doesn't come about"
        time.sleep(0.01)


def run_on(engine: Engine) -> None:
    while engine.step() is not None:
        pass


def endless(number: int) -> list[Request]:
    params = SamplingParams(temperature=0, max_tokens=1500, seed=0, ignore_eos=True)
    return [Request(request_id=f"e{i}", prompt=prompt, params=params) for i, prompt in enumerate(prompts(number))]


def test_processes_decide_and_answer_as_one_process_does(random_llama: Path) -> None:
    config = config_of(random_llama, 2, 2)
    # One worker in the engine's process, under a scheduler that fills two stages all the same.
    alone = config_of(random_llama, 1, 2)
    inline, _ = engine_over(InlineWorkers(worker_config(alone), lambda _: None), alone, VirtualClock())
    expected = run(inline, mixed(30))
    signs: list[None] = []
    engine, workers = start(config, lambda: signs.append(None))
    found = run(engine, mixed(30))
    assert len(signs) >= 4, "each of them has shown that it works"
    assert tokens_of(found) == tokens_of(expected)
    threads = engine_of_threads(config_of(random_llama, 2, 1))
    assert found == run(threads, mixed(30)), "the bits of two slices"
    threads.close()
    assert list(engine.scheduler.journal) == list(inline.scheduler.journal)
    pids = workers.pids
    assert len(pids) == 4
    shares = workers.idle_shares()
    assert len(shares) == 2
    assert all(0 <= share < 1 for share in shares)
    engine.close()
    assert all(map(is_gone, pids))


@pytest.mark.parametrize(
    ("layout", "victim", "number", "words"),
    [((2, 1), 1, signal.SIGKILL, "rank 1.*SIGKILL"), ((1, 2), 0, signal.SIGSTOP, "stage 0.*stopped")],
)
def test_what_is_done_to_one_worker_ends_all_and_is_named(
    layout: tuple[int, int], victim: int, number: signal.Signals, words: str, random_llama: Path
) -> None:
    engine, workers = start(config_of(random_llama, *layout))
    pids = workers.pids
    for request in endless(8):
        engine.add(request)
    for _ in range(20):
        engine.step()
    os.kill(pids[victim], number)
    with pytest.raises(WorkerDied, match=words) as died:
        run_on(engine)
    assert died.value.by_others
    engine.close()
    assert all(map(is_gone, pids))


def test_a_worker_that_fails_by_itself_is_no_foreign_deed(random_llama: Path) -> None:
    engine, workers = start(config_of(random_llama, 1, 2))
    workers.check()
    os.kill(workers.pids[1], signal.SIGSEGV)
    # Nothing runs, and it is noticed all the same.
    with pytest.raises(WorkerDied, match="SIGSEGV") as died:
        wait_until(lambda: workers.check() is not None)
    assert not died.value.by_others
    engine.close()


PARENT = """
import sys, time
from orcinus.executor.processes import ProcessWorkers
from orcinus.worker.build import WorkerConfig
workers = ProcessWorkers.start(WorkerConfig(model=sys.argv[1], threads=1), 1, 2, lambda _: None)
print(*workers.pids, flush=True)
time.sleep(1000)
"""


def test_workers_end_with_their_parent_even_when_one_stands_still(random_llama: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(random_llama)], stdout=subprocess.PIPE, text=True
    ) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        os.kill(pids[0], signal.SIGSTOP)
        parent.kill()
    wait_until(lambda: all(map(is_gone, pids)))


def test_a_layout_that_can_not_be_is_refused_before_anybody_is_started(random_llama: Path, tmp_path: Path) -> None:
    for options, words in (
        ({"tensor_parallel_size": 3}, "8 attention heads over 2 key-value heads.*1, 2, 4, 8 would do"),
        ({"pipeline_parallel_size": 5}, "only 4 layers"),
        ({"tensor_parallel_size": 2, "model_impl": "transformers"}, "one worker only"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            build_engine(EngineConfig(str(random_llama), **options), VirtualClock())
    with pytest.raises(CheckpointError, match="doesn't exist"):
        build_engine(EngineConfig(str(tmp_path / "none"), tensor_parallel_size=2), VirtualClock())


def test_what_a_worker_finds_wrong_is_what_the_engine_says(random_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(random_llama, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="damaged"):
        build_engine(EngineConfig(str(tmp_path), pipeline_parallel_size=2, threads=1), VirtualClock())
