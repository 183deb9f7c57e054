"""A Ray cluster on this machine, with a token of its own: its nodes on addresses of the machine, or on other hosts."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from namespaces import Host

SECONDS = 90


@dataclass(frozen=True)
class Local:
    """An address of this machine as a host: where a node lives, by what command others run there."""

    address: str

    def command(self, *words: str) -> list[str]:
        """A command that runs there."""
        return list(words)


HERE = (Local("127.0.0.1"), Local("127.0.0.2"))


def free_port() -> int:
    """One that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextmanager
def ray_cluster(
    *, mode: str = "token", hosts: Sequence[Local | Host] = HERE, rooms: Sequence[int] = (4, 4)
) -> Iterator[dict[str, str]]:
    """The environment in which its drivers run, on the first of the hosts.

    Args:
        hosts: a node on each, with as many `rooms` for workers.
    """
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    own = {"RAY_AUTH_MODE": mode, "RAY_ADDRESS": f"{hosts[0].address}:{free_port()}"}
    if mode == "token":
        own["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | quiet | own
    with ExitStack() as stack:
        # Paths of Unix sockets are short.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True))
        head = ["--head", f"--port={own['RAY_ADDRESS'].rpartition(':')[2]}", f"--temp-dir={folder}"]
        head += ["--include-dashboard=false", f"--num-cpus={rooms[0]}"]
        stack.enter_context(_node(head, hosts[0], environment))
        _wait_for(hosts[0], environment, 1)
        for number, (host, room) in enumerate(list(zip(hosts, rooms, strict=False))[1:], 2):
            stack.enter_context(_node([f"--address={own['RAY_ADDRESS']}", f"--num-cpus={room}"], host, environment))
            _wait_for(hosts[0], environment, number)
        yield environment


@contextmanager
def _node(options: Sequence[str], host: Local | Host, environment: dict[str, str]) -> Iterator[None]:
    limits = ["--num-gpus=0", "--object-store-memory=80000000", f"--node-ip-address={host.address}"]
    command = host.command(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *limits, *options)
    environment = {key: value for key, value in environment.items() if key != "RAY_ADDRESS"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            # It takes the processes of its node with it.
            process.terminate()
            process.wait(SECONDS)


_COUNT = """
import ray
ray.init(address="auto", log_to_driver=False, configure_logging=False)
print(sum(node["Alive"] for node in ray.nodes()))
"""


def _wait_for(head: Local | Host, environment: dict[str, str], num_nodes: int) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        command = head.command(sys.executable, "-c", _COUNT)
        asked = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
        if asked.stdout.split()[-1:] == [str(num_nodes)]:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(asked.stderr)
        time.sleep(0.5)
