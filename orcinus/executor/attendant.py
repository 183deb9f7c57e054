"""Who runs a worker on a node of a Ray cluster, and says how it ended: an actor that itself does nothing but wait, and
without torch. Ray unpickles what it hands on, so that is bytes both ways."""

from __future__ import annotations

from typing import Any

import msgspec
import ray

from orcinus.executor.child import Child


class Attendant:
    """The actor."""

    def run(self, invitation: bytes) -> bytes:
        """Have a worker that listens on this node's address in the cluster, to its end: a `Deed`, or None, packed."""
        child = Child("orcinus.executor.joining", [own_address()], said=invitation)
        return msgspec.msgpack.encode(child.wait())


def own_address() -> str:
    """This node's in the cluster."""
    ask: Any = ray.util.get_node_ip_address
    return str(ask())
