"""A Ray cluster of two nodes on this machine, each with an address and a token of the test's own."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

SECONDS = 90


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def ray_cluster(*, mode: str = "token", num_nodes: int = 2) -> Iterator[dict[str, str]]:
    """The environment in which its drivers run."""
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    own = {"RAY_AUTH_MODE": mode, "RAY_ADDRESS": f"127.0.0.1:{free_port()}"}
    if mode == "token":
        own["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | quiet | own
    with ExitStack() as stack:
        # Paths of Unix sockets are short.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True))
        head = ["--head", f"--port={own['RAY_ADDRESS'].rpartition(':')[2]}", f"--temp-dir={folder}"]
        stack.enter_context(node([*head, "--include-dashboard=false"], "127.0.0.1", environment))
        wait_for(environment, 1)
        for number in range(2, num_nodes + 1):
            stack.enter_context(node([f"--address={own['RAY_ADDRESS']}"], f"127.0.0.{number}", environment))
            wait_for(environment, number)
        yield environment


@contextmanager
def node(options: list[str], address: str, environment: dict[str, str]) -> Iterator[None]:
    limits = ["--num-cpus=4", "--num-gpus=0", "--object-store-memory=80000000", f"--node-ip-address={address}"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *limits, *options]
    environment = {key: value for key, value in environment.items() if key != "RAY_ADDRESS"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            # It takes the processes of its node with it.
            process.terminate()
            process.wait(SECONDS)


COUNT = """
import ray
ray.init(address="auto", log_to_driver=False, configure_logging=False)
print(sum(node["Alive"] for node in ray.nodes()))
"""


def wait_for(environment: dict[str, str], num_nodes: int) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        asked = subprocess.run(
            [sys.executable, "-c", COUNT], env=environment, capture_output=True, text=True, timeout=SECONDS
        )
        if asked.stdout.split()[-1:] == [str(num_nodes)]:
            return
        assert time.monotonic() < deadline, asked.stderr
        time.sleep(0.5)


def drive(environment: dict[str, str], program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A driver in a process of its own: Ray reads its environment once in a process's life."""
    return subprocess.run(
        [sys.executable, str(program), *arguments], env=environment, capture_output=True, text=True, timeout=2 * SECONDS
    )
