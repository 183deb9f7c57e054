"""Workers on a real Ray cluster of two nodes: the tokens and decisions of one worker, and a death none survives."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra ray", exc_type=ModuleNotFoundError)
sys.path.append(str(Path(__file__).parents[2] / "tools"))

from ray_cluster import HERE, SECONDS, ray_cluster
from ray_driver import answered
from test_layouts import config_of, start
from test_processes import is_gone, wait_until

from orcinus.core.clock import VirtualClock
from orcinus.engine.build import engine_over, worker_config
from orcinus.executor.inline import InlineWorkers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DRIVER = Path(__file__).with_name("ray_driver.py")
Environment = dict[str, str]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Environment]:
    with ray_cluster() as environment:
        yield environment


@pytest.fixture(scope="module")
def open_cluster() -> Iterator[Environment]:
    with ray_cluster(mode="disabled", hosts=HERE[:1]) as environment:
        yield environment


def drive(environment: Environment, program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A driver in a process of its own: Ray reads its environment once in a process's life."""
    return subprocess.run(
        [sys.executable, str(program), *arguments], env=environment, capture_output=True, text=True, timeout=2 * SECONDS
    )


def driven(environment: Environment, what: str, model: Path, layout: tuple[int, int]) -> dict:
    done = drive(environment, DRIVER, what, str(model), *map(str, layout))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def inline(model: Path, num_stages: int) -> dict:
    """One worker in this process, under a scheduler that fills as many stages."""
    config = config_of(model, 1, num_stages)
    engine, _ = engine_over(InlineWorkers(worker_config(config), lambda _: None), config, VirtualClock())
    return json.loads(json.dumps(answered(engine)))


def tokens(found: dict) -> list[list[int]]:
    return [[token for token, _ in answer] for _, _, answer in found["bits"]]


@pytest.mark.parametrize("layout", [(2, 1), (1, 2), (2, 2)])
def test_two_nodes_decide_and_answer_as_one_worker_does(
    layout: tuple[int, int], cluster: Environment, random_llama: Path
) -> None:
    found = driven(cluster, "answer", random_llama, layout)
    alone = inline(random_llama, layout[1])
    assert found["journal"] == alone["journal"]
    assert tokens(found) == tokens(alone)
    # How many slices there are decides the bits, and nothing else does: neither stages nor what holds the workers.
    here = start(config_of(random_llama, layout[0], 1))
    assert found["bits"] == json.loads(json.dumps(answered(here)))["bits"]
    here.close()
    assert len(found["pids"]) == layout[0] * layout[1]
    assert len(set(found["hosts"])) == 2, "both nodes hold a part"
    wait_until(lambda: all(map(is_gone, found["pids"])))


@pytest.mark.parametrize(
    ("what", "layout"), [("kill", (2, 1)), ("kill", (1, 2)), ("kill-idle", (1, 2)), ("stop", (1, 2))]
)
def test_a_worker_that_is_killed_or_stopped_is_named_and_takes_the_others_along(
    what: str, layout: tuple[int, int], cluster: Environment, random_llama: Path
) -> None:
    found = driven(cluster, what, random_llama, layout)
    assert "worker 1 " in found["words"]
    assert ("was stopped" if what == "stop" else "was ended by SIGKILL") in found["words"]
    assert found["by_others"], "no request is to blame"
    print(f"{what} {layout}: noticed after {found['seconds']:.3f} s: {found['words']}")
    wait_until(lambda: all(map(is_gone, found["pids"])))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_driver(number: signal.Signals, cluster: Environment, random_llama: Path) -> None:
    command = [sys.executable, str(DRIVER), "wait", str(random_llama), "1", "2"]
    with subprocess.Popen(command, env=cluster, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as driver:
        pids = json.loads(driver.stdout.readline())
        assert not any(map(is_gone, pids))
        driver.send_signal(number)
    assert driver.returncode == -number
    wait_until(lambda: all(map(is_gone, pids)))


def test_a_cluster_that_asks_for_no_token_is_refused_unless_told(open_cluster: Environment, random_llama: Path) -> None:
    assert "asks nobody for a token" in driven(open_cluster, "refused", random_llama, (1, 2))["words"]
    # That our side has a token doesn't make the cluster ask for it.
    claimed = open_cluster | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    assert "asks nobody for a token" in driven(claimed, "refused", random_llama, (1, 2))["words"]
    assert driven(open_cluster, "insecure", random_llama, (1, 2)) == inline(random_llama, 2)


def test_what_a_worker_finds_wrong_is_said_and_nothing_is_left(
    cluster: Environment, random_llama: Path, tmp_path: Path
) -> None:
    shutil.copytree(random_llama, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    found = driven(cluster, "refused", tmp_path, (1, 2))
    assert "damaged" in found["words"]
    assert not found["is_connected"]


def test_without_a_cluster_or_its_token_the_remedy_is_said(cluster: Environment, random_llama: Path) -> None:
    without = cluster | {"RAY_AUTH_TOKEN": "0" * 64}
    assert "no cluster takes us" in driven(without, "refused", random_llama, (1, 2))["words"]
