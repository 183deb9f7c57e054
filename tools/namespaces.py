"""Two hosts on one machine: network namespaces joined by a pair of virtual cables, which can be cut.

Needs CAP_NET_ADMIN and the command `ip`.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_NOBODY = "02:00:00:00:00:01"


class NoNamespaces(Exception):
    """This machine doesn't let us make them; the message says why."""


@dataclass(frozen=True)
class Host:
    """A network namespace with one address."""

    name: str
    address: str

    def command(self, *words: str) -> list[str]:
        """A command that runs there."""
        return ["ip", "netns", "exec", self.name, *words]

    def enter(self) -> None:
        """This thread, and all that it starts from here on, live there."""
        with Path(f"/run/netns/{self.name}").open("rb") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns to {self.name} failed")

    def cut_off(self, other: Host) -> None:
        """What it sends to the other is lost without a word: it goes to a card that isn't there."""
        _ip("-n", self.name, "neigh", "replace", other.address, "lladdr", _NOBODY, "dev", "eth0", "nud", "permanent")

    def heal(self, other: Host) -> None:
        """Undo `cut_off`."""
        _ip("-n", self.name, "neigh", "del", other.address, "dev", "eth0")


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """So many, on a network of their own: a bridge that nothing else is connected to.

    Raises:
        NoNamespaces: they can't be made here.
    """
    run = uuid.uuid4().hex[:6]
    hub = f"hub{run}"
    made = [Host(f"orcinus-{run}-{index}", f"10.83.0.{index + 1}") for index in range(count)]
    try:
        try:
            _make(hub, run, made)
        except (OSError, subprocess.CalledProcessError) as error:
            raise NoNamespaces(f"network namespaces need root and iproute2: {_words(error)}") from error
        yield made
    finally:
        for name in [*(host.name for host in made), hub]:
            # The cables go with them.
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _make(hub: str, run: str, made: Sequence[Host]) -> None:
    _ip("netns", "add", hub)
    _ip("-n", hub, "link", "add", "bridge", "type", "bridge")
    _ip("-n", hub, "link", "set", "bridge", "up")
    for index, host in enumerate(made):
        _ip("netns", "add", host.name)
        cable = f"port{index}"
        _ip("-n", hub, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", host.name)
        _ip("-n", hub, "link", "set", cable, "master", "bridge", "up")
        _ip("-n", host.name, "link", "set", "lo", "up")
        _ip("-n", host.name, "link", "set", "eth0", "up")
        _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
        # Who wants to know his own address asks for the way to anywhere.
        _ip("-n", host.name, "route", "add", "default", "dev", "eth0")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})


def _words(error: Exception) -> str:
    return error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
