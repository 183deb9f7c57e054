"""Workers as Ray actors on an existing cluster: Ray says where they run and that one has died, and is on the path of no
plan. Ray unpickles what it is handed, so it is handed one thing: an invitation, as bytes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orcinus.errors import ConfigurationError
from orcinus.executor import WorkerDied
from orcinus.executor.attendant import Attendant, own_address
from orcinus.executor.child import Deed
from orcinus.executor.crew import died_of
from orcinus.executor.network import NetworkWorkers
from orcinus.parallel import Place, places
from orcinus.worker.build import OnProgress, Say, WorkerConfig, check_layout

Spread = Literal["pack", "spread", "strict_spread"]

_PLACE_SECONDS = 60.0
_ANSWER_SECONDS = 30.0
_LEAVE_SECONDS = 3.0
# One logical core reserves a worker's room on a node. It is told its threads, so the number limits nothing.
_ROOM = {"CPU": 1.0}


def start_ray_workers(
    config: WorkerConfig,
    tensor_size: int,
    num_stages: int,
    say: Say,
    on_progress: OnProgress = lambda: None,
    *,
    spread: Spread = "pack",
    insecure: bool = False,
) -> NetworkWorkers:
    """T x P workers on the cluster that RAY_ADDRESS names, or else on the one that runs here.

    Args:
        spread: pack puts them on few nodes, spread on many, strict_spread each on its own.
        insecure: go ahead though anybody who reaches the cluster may run code on it.

    Raises:
        ConfigurationError: there is no such cluster, no room, or it asks nobody for a token.
        As `NetworkWorkers.over`.
    """
    check_layout(config, tensor_size, num_stages)
    with contextlib.ExitStack() as undo:
        _connect()
        undo.callback(ray.shutdown)
        if not insecure:
            _refuse_open_cluster(ray.get_runtime_context().gcs_address)
        grid = places(tensor_size, num_stages)
        group = _reserve(len(grid), spread)
        undo.callback(remove_placement_group, group)

        def launch(invitations: list[bytes]) -> RayHosts:
            hosts = RayHosts(group, grid, invitations)
            # It gives both back from here on.
            undo.pop_all()
            return hosts

        return NetworkWorkers.over(config, tensor_size, num_stages, say, on_progress, host=own_address(), launch=launch)


class RayHosts:
    """Implements `Hosts`: an actor for each worker, none of them ever started again."""

    def __init__(self, group: PlacementGroup, grid: Sequence[Place], invitations: Sequence[bytes]) -> None:
        self._group = group
        self._actors = [_actor(group, index) for index in range(len(invitations))]
        runs = [actor.run.remote(invitation) for actor, invitation in zip(self._actors, invitations, strict=True)]
        self._places = dict(zip(runs, grid, strict=True))

    def lost(self) -> WorkerDied | None:
        """See `Hosts`."""
        left = next(iter(self._ended()), None)
        words = "has left; its output on its host may say why"
        return self.culprit() or (None if left is None else WorkerDied(f"{left} {words}"))

    def culprit(self) -> WorkerDied | None:
        """See `Hosts`."""
        return next((died for died in self._ended().values() if died is not None), None)

    def _ended(self) -> dict[Place, WorkerDied | None]:
        ended, _ = ray.wait(list(self._places), num_returns=len(self._places), timeout=0)
        return {self._places[run]: _end(self._places[run], run) for run in ended}

    def close(self) -> None:
        """Those who haven't left in time are killed, and Ray forgets the rest."""
        runs = list(self._places)
        ray.wait(runs, num_returns=len(runs), timeout=_LEAVE_SECONDS)
        for actor in self._actors:
            ray.kill(actor)
        remove_placement_group(self._group)
        ray.shutdown()


def _end(place: Place, run: Any) -> WorkerDied | None:
    """What Ray knows of an end; None if the worker has left by itself."""
    try:
        deed = msgspec.msgpack.decode(ray.get(run), type=Deed | None)
    except ray.exceptions.RayError as error:
        # The actor runs nothing but a wait, so no request is to blame.
        return WorkerDied(f"{place} is gone: {' '.join(str(error).split())}", by_others=True)
    return None if deed is None else died_of(place, deed)


def _actor(group: PlacementGroup, index: int) -> Any:
    """Ray's handle, whose types promise nothing."""
    where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
    kind: Any = ray.remote(Attendant)
    return kind.options(num_cpus=0, max_restarts=0, scheduling_strategy=where).remote()


def _connect() -> None:
    ours = signal.getsignal(signal.SIGTERM)
    try:
        # Without an address Ray would start a cluster of its own.
        ray.init(address="auto", log_to_driver=False, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise ConfigurationError(
            f"executor is ray, but no cluster takes us: {' '.join(str(error).split())} Start one with `ray start`, or "
            "set RAY_ADDRESS"
        ) from error
    # Ray would make an ordinary exit of it, and who ends an engine is read from how it ended.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ours)


def _reserve(count: int, spread: Spread) -> PlacementGroup:
    group: PlacementGroup = placement_group([_ROOM] * count, strategy=spread.upper())
    if not group.wait(_PLACE_SECONDS):
        remove_placement_group(group)
        raise ConfigurationError(
            f"the Ray cluster has no room for {count} workers (a core each, placed by {spread}); add nodes, or use "
            "another ray_spread"
        )
    return group


def _refuse_open_cluster(address: str) -> None:
    """Ask the cluster itself, without a token: what our environment says may not be what it does.

    Raises:
        ConfigurationError: it answers, or anyhow doesn't ask for one.
    """
    said = _ask_without_token(address)
    if "AuthenticationError" not in said:
        raise ConfigurationError(
            f"the Ray cluster at {address} asks nobody for a token, so whoever reaches it may run code on it; start it "
            "with RAY_AUTH_MODE=token, or use insecure_ray"
        )


def _ask_without_token(address: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    try:
        asked = subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address],
            env=environment | {"RAY_AUTH_MODE": "disabled"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ANSWER_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return ""
    return "" if asked.returncode == 0 else asked.stderr
