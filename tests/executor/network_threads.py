"""Workers that join over the network, as threads of the test's process: real connections, no cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable

from orcinus.core.clock import VirtualClock
from orcinus.engine.build import engine_over, worker_config
from orcinus.engine.config import EngineConfig
from orcinus.engine.loop import Engine
from orcinus.executor import WorkerDied
from orcinus.executor.joining import be_worker
from orcinus.executor.network import NetworkWorkers

HOST = "127.0.0.1"


class ThreadHosts:
    """Implements `Hosts`. A thread that has ended is a worker that is lost."""

    def __init__(self, invitations: list[bytes]) -> None:
        # Each on an address of its own, as on a host of its own.
        self.threads = [
            threading.Thread(target=be_worker, args=(invitation, f"127.0.0.{2 + index}"), daemon=True)
            for index, invitation in enumerate(invitations)
        ]
        for thread in self.threads:
            thread.start()

    def lost(self) -> WorkerDied | None:
        return None if all(thread.is_alive() for thread in self.threads) else WorkerDied("a thread has ended")

    def culprit(self) -> WorkerDied | None:
        return None

    def close(self) -> None:
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive(), "a worker doesn't leave"


def network_workers(config: EngineConfig, on_progress: Callable[[], None] = lambda: None) -> NetworkWorkers:
    return NetworkWorkers.over(
        worker_config(config),
        config.tensor_parallel_size,
        config.pipeline_parallel_size,
        lambda _: None,
        on_progress,
        host=HOST,
        launch=ThreadHosts,
    )


def engine_of_network(config: EngineConfig) -> Engine:
    return engine_over(network_workers(config), config, VirtualClock())[0]
