"""An engine whose workers live in other network namespaces, as a program: what cut links and halts do to it, as JSON.

link_driver.py ADDRESS NAME=ADDRESS,NAME=ADDRESS MODEL     (a host's name, and its address)
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from namespaces import Host
from test_layouts import config_of, greedy

from orcinus.core.clock import VirtualClock
from orcinus.core.request import Request, pack_tokens
from orcinus.engine.build import engine_over, worker_config
from orcinus.engine.loop import Engine
from orcinus.errors import SystemFault
from orcinus.executor import WorkerDied
from orcinus.executor.child import Child
from orcinus.executor.crew import died_of
from orcinus.executor.network import NetworkWorkers
from orcinus.parallel import places

Tokens = dict[str, list[int]]
ANSWERED = 40
MAX_TOKENS = 400


class NamespaceHosts:
    """Implements `Hosts`: each worker in a namespace of its own."""

    def __init__(self, hosts: Sequence[Host], invitations: Sequence[bytes]) -> None:
        self.children = [
            Child("orcinus.executor.joining", [host.address], said=invitation, host=host.command())
            for host, invitation in zip(hosts, invitations, strict=True)
        ]

    def lost(self) -> WorkerDied | None:
        return self.culprit()

    def culprit(self) -> WorkerDied | None:
        deeds = zip(places(1, len(self.children)), self.children, strict=True)
        return next((died_of(place, deed) for place, child in deeds if (deed := child.deed) is not None), None)

    def close(self) -> None:
        for child in self.children:
            child.end(3)


class Group:
    """T x P workers, each on a host of its own."""

    def __init__(self, own: Host, others: Sequence[Host], model: Path, layout: tuple[int, int]) -> None:
        self._hosts: list[NamespaceHosts] = []
        config = config_of(model, *layout)
        workers = NetworkWorkers.over(
            worker_config(config),
            *layout,
            lambda _: None,
            host=own.address,
            launch=lambda sent: self._launch(others, sent),
        )
        self.engine: Engine = engine_over(workers, config, VirtualClock())[0]
        self.pids = workers.pids

    def _launch(self, others: Sequence[Host], invitations: Sequence[bytes]) -> NamespaceHosts:
        self._hosts.append(NamespaceHosts(others, invitations))
        return self._hosts[0]


def answer(engine: Engine, requests: Sequence[Request], found: Tokens, amid: Callable[[], None] | None = None) -> None:
    """Into `found`, which holds what has come before a fault; amid the answers, do something."""
    for request in requests:
        assert engine.add(request) == []
    while (progress := engine.step()) is not None:
        for part in progress:
            assert not part.error_code, part.error_message
            found.setdefault(part.request_id, []).extend(part.tokens)
        if amid is not None and min(len(found.get(request.request_id, [])) for request in requests) >= ANSWERED:
            amid()
            amid = None


def resumed(requests: Sequence[Request], found: Tokens) -> list[Request]:
    """What a front end asks the next group for."""
    return [msgspec.structs.replace(request, resumed=(pack_tokens(found[request.request_id]),)) for request in requests]


def one_fault(
    own: Host, others: Sequence[Host], model: Path, layout: tuple[int, int], what: str, expected: Tokens
) -> dict[str, object]:
    """Amid answers, and from there on another group."""
    requests = greedy(6, max_tokens=MAX_TOKENS)
    group, found, begun = Group(own, others, model, layout), Tokens(), []
    cut = {"stages": (others[0], others[1]), "driver": (own, others[1])}.get(what)

    def hurt() -> None:
        begun.append(time.monotonic())
        if cut is None:
            os.kill(group.pids[1], signal.SIGSTOP)
        else:
            cut[0].cut_off(cut[1])
            cut[1].cut_off(cut[0])

    before = memory_left()
    try:
        answer(group.engine, requests, found, hurt)
        raise AssertionError("nothing was noticed")
    except WorkerDied as died:
        noticed, fault = time.monotonic() - begun[0], died
    had = {name: len(tokens) for name, tokens in found.items()}
    group.engine.close()
    left = [pid for pid in group.pids if Path(f"/proc/{pid}").exists()]
    if cut is not None:
        try:
            Group(own, others, model, layout)
            raise AssertionError("the link isn't cut")
        except SystemFault as refusal:
            refused, refused_by_others = str(refusal), refusal.by_others
        cut[0].heal(cut[1])
        cut[1].heal(cut[0])
    else:
        refused, refused_by_others = "", True
    group = Group(own, others, model, layout)
    answer(group.engine, resumed(requests, found), found)
    group.engine.close()
    return {
        "what": what,
        "layout": layout,
        "words": str(fault),
        "by_others": fault.by_others,
        "seconds": noticed,
        "refused": refused,
        "refused_by_others": refused_by_others,
        "had": had,
        "is_right": found == expected,
        "left": [*left, *(pid for pid in group.pids if Path(f"/proc/{pid}").exists())],
        "memory_left": sorted(memory_left() - before),
    }


def memory_left() -> set[str]:
    """Names of shared memory, and of our files for a start, which nobody else puts where this process does."""
    return {str(path) for folder in ("/dev/shm", tempfile.gettempdir()) for path in Path(folder).glob("*orcinus-*")}


def main(address: str, others: str, model: str) -> None:
    own = Host(os.environ["ORCINUS_TEST_HOST"], address)
    found = [Host(*pair.split("=")) for pair in others.split(",")]
    for layout, faults in {(1, 2): ["stages", "driver", "stop"], (2, 1): ["stages"]}.items():
        expected: Tokens = {}
        group = Group(own, found, Path(model), layout)
        answer(group.engine, greedy(6, max_tokens=MAX_TOKENS), expected)
        group.engine.close()
        for what in faults:
            print(json.dumps(one_fault(own, found, Path(model), layout, what, expected)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
