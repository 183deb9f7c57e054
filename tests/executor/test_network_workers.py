"""Workers joined over the network answer as one worker does, bit for bit as over shared memory, and are all missed."""

from __future__ import annotations

import shutil
import socket
import time
from pathlib import Path

import pytest
import torch
from network_threads import HOST, engine_of_network, network_workers
from test_layouts import config_of, greedy, mixed, prompts, run, start, tokens_of

from orcinus.core.clock import VirtualClock
from orcinus.core.request import Request, SamplingParams
from orcinus.engine.build import engine_over, worker_config
from orcinus.engine.loop import Engine
from orcinus.errors import CheckpointError, ConfigurationError
from orcinus.executor import WorkerDied, worker_process
from orcinus.executor.inline import InlineWorkers
from orcinus.executor.joining import connections
from orcinus.executor.network import NetworkWorkers
from orcinus.parallel.handshake import Channel

LAYERS = 4
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("layout", [(2, 1), (1, 2), (2, 2), (1, 1)])
def test_they_decide_and_answer_as_one_worker_does(layout: tuple[int, int], random_llama: Path) -> None:
    alone = config_of(random_llama, 1, layout[1])
    inline, _ = engine_over(InlineWorkers(worker_config(alone), lambda _: None), alone, VirtualClock())
    expected = tokens_of(run(inline, greedy(24)))
    engine = engine_of_network(config_of(random_llama, *layout))
    assert tokens_of(run(engine, greedy(24))) == expected
    assert list(engine.scheduler.journal) == list(inline.scheduler.journal)
    engine.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", [(2, 2), (4, 1)])
def test_the_bits_are_those_of_shared_memory(dtype: str, layout: tuple[int, int], random_llama: Path) -> None:
    config = config_of(random_llama, *layout, dtype=dtype, lookahead=1)
    shared, network = start(config), engine_of_network(config)
    # With log-probabilities, so that sums that differ in the last bit show.
    assert run(network, mixed(20)) == run(shared, mixed(20))
    shared.close()
    network.close()


def test_an_iteration_shows_its_progress_layer_by_layer(random_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if each layer took that long.
    monkeypatch.setattr(worker_process, "SIGN_SECONDS", 0.0)
    config = config_of(random_llama, 2, 2)
    signs: list[None] = []
    workers = network_workers(config, lambda: signs.append(None))
    engine, _ = engine_over(workers, config, VirtualClock())
    signs.clear()
    params = SamplingParams(temperature=0, max_tokens=1, seed=0)
    engine.add(Request(request_id="r", prompt=prompts(1)[0], params=params))
    run_on(engine)
    # Of each rank all layers of its stage, in each iteration.
    expected = engine.scheduler.num_iterations * LAYERS * 2
    deadline = time.monotonic() + 60
    while len(signs) < expected:
        assert time.monotonic() < deadline, signs
        workers.check()
    assert len(signs) == expected
    engine.close()


def test_one_that_is_cut_off_is_named_and_the_others_leave(random_llama: Path) -> None:
    config = config_of(random_llama, 2, 2)
    workers = network_workers(config)
    engine, _ = engine_over(workers, config, VirtualClock())
    params = SamplingParams(temperature=0, max_tokens=500, seed=0, ignore_eos=True)
    for i, prompt in enumerate(prompts(4)):
        engine.add(Request(request_id=f"r{i}", prompt=prompt, params=params))
    for _ in range(5):
        engine.step()
    workers._workers[2].frames.socket.shutdown(socket.SHUT_RDWR)
    with pytest.raises(WorkerDied, match=r"stage 1, rank 0\).*gone"):
        run_on(engine)
    engine.close()


def test_what_a_worker_finds_wrong_is_what_the_driver_says(random_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(random_llama, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="damaged"):
        network_workers(config_of(tmp_path, 1, 2))


def run_on(engine: Engine) -> None:
    while engine.step() is not None:
        pass


class NoHosts:
    """Implements `Hosts`: nobody ever comes."""

    def lost(self) -> WorkerDied | None:
        return WorkerDied("nobody is there")

    def culprit(self) -> WorkerDied | None:
        return None

    def close(self) -> None:
        """There is nothing."""


def test_a_worker_that_never_comes_is_not_waited_for_once_its_host_says_so(random_llama: Path) -> None:
    own = worker_config(config_of(random_llama))
    with pytest.raises(WorkerDied, match="nobody is there"):
        NetworkWorkers.over(own, 1, 2, lambda _: None, host=HOST, launch=lambda _: NoHosts())
    with pytest.raises(ConfigurationError, match="all of them"):
        NetworkWorkers.over(own, 1, 2, lambda _: None, host="0.0.0.0", launch=lambda _: NoHosts())


def test_after_the_start_nobody_listens_any_more(random_llama: Path) -> None:
    before = listening()
    with socket.create_server((HOST, 0)):
        assert len(listening()) == len(before) + 1, "one that listens is seen"
    workers = network_workers(config_of(random_llama, 2, 2))
    assert listening() <= before
    workers.close()


def listening() -> set[str]:
    """Sockets of this process that take connections, by their inode."""
    own = {link.readlink().name for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text(encoding="utf-8").splitlines()[1:]]
    return {row[9] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own}


@pytest.mark.parametrize("layout", [(1, 1), (3, 1), (1, 3), (2, 3)])
def test_every_worker_has_the_connections_of_its_place(layout: tuple[int, int]) -> None:
    tensor_size, num_stages = layout
    made = connections(*layout)
    assert len(made) == len(set(made))
    assert all(hello.dialer > hello.listener for hello in made)
    by_channel = {channel: sum(hello.channel is channel for hello in made) for channel in Channel}
    between = tensor_size * (num_stages - 1)
    assert by_channel == {
        Channel.REPORTS: 0,
        Channel.PLANS: between,
        Channel.STATES: between,
        Channel.RANKS: num_stages * tensor_size * (tensor_size - 1) // 2,
        Channel.TOKENS: tensor_size - (num_stages == 1),
    }
