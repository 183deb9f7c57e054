"""Every socket and every piece of shared memory between the workers of a model on one host, made by their parent.

No name, no port, no file: what a worker needs it inherits, and nothing is left when all have gone.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field

import msgspec

from orcinus.parallel import Place, TensorGroup, places
from orcinus.parallel.network import NetworkInlet, NetworkOutlet, NetworkTokenSender
from orcinus.parallel.shared import SharedGroup, group_bytes, make_memory
from orcinus.parallel.stages import LINK_BYTES, Inlet, Outlet, TokenReceiver, TokenSender


class Ends(msgspec.Struct, kw_only=True):
    """The descriptors that one worker inherits. -1 where it has none.

    Args:
        parent: what it is told before it starts, and what it reports.
        plans_in: plans, from the parent or the stage before.
        plans_out: plans, to the next stage.
        peers: to each other rank of its stage, by rank; `group_memory` is theirs in common.
        states_in: from the stage before, with `memory_in`; likewise to the next.
        tokens_in: sampled tokens, from the worker that samples.
        tokens_out: sampled tokens, to those who embed.
    """

    parent: int = -1
    plans_in: int = -1
    plans_out: int = -1
    peers: list[int] = msgspec.field(default_factory=list)
    group_memory: int = -1
    states_in: int = -1
    memory_in: int = -1
    states_out: int = -1
    memory_out: int = -1
    tokens_in: int = -1
    tokens_out: list[int] = msgspec.field(default_factory=list)

    @property
    def descriptors(self) -> list[int]:
        """All of them."""
        single = (self.parent, self.plans_in, self.plans_out, self.group_memory, self.states_in, self.memory_in)
        rest = (self.states_out, self.memory_out, self.tokens_in)
        return [end for end in (*single, *rest, *self.peers, *self.tokens_out) if end >= 0]


@dataclass
class Wiring:
    """The parent's side: its own ends, and those of each worker until it has been started."""

    ends: list[Ends]
    parents: list[socket.socket] = field(default_factory=list)
    plans: list[socket.socket] = field(default_factory=list)

    @classmethod
    def of(cls, tensor_size: int, num_stages: int) -> Wiring:
        """All that T x P workers need."""
        grid = places(tensor_size, num_stages)
        wiring = cls([Ends() for _ in grid])
        for place in grid:
            wiring._connect_parent(place)
            wiring._connect_next_stage(place)
            wiring._connect_tokens(place)
        for stage in range(num_stages):
            wiring._connect_ranks([place for place in grid if place.stage == stage])
        return wiring

    def started(self, index: int) -> None:
        """The worker has its ends; ours would keep its death from being noticed."""
        for descriptor in self.ends[index].descriptors:
            os.close(descriptor)
        self.ends[index] = Ends()

    def close(self) -> None:
        """Everything that is still open here."""
        for index in range(len(self.ends)):
            self.started(index)
        for end in (*self.parents, *self.plans):
            end.close()

    def _connect_parent(self, place: Place) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.parents.append(ours)
        self.ends[place.index].parent = theirs.detach()
        if place.is_first:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            self.plans.append(ours)
            self.ends[place.index].plans_in = theirs.detach()

    def _connect_next_stage(self, place: Place) -> None:
        if place.is_last:
            return
        mine, theirs = self.ends[place.index], self.ends[place.index + place.tensor_size]
        mine.plans_out, theirs.plans_in = _pair(socket.SOCK_STREAM)
        mine.states_out, theirs.states_in = _pair(socket.SOCK_SEQPACKET)
        mine.memory_out = make_memory(LINK_BYTES)
        theirs.memory_in = os.dup(mine.memory_out)

    def _connect_tokens(self, place: Place) -> None:
        """From the one that samples to all others that embed."""
        sampler = self.ends[-place.tensor_size]
        if place.is_first and not place.answers:
            end, self.ends[place.index].tokens_in = _pair(socket.SOCK_SEQPACKET)
            sampler.tokens_out.append(end)

    def _connect_ranks(self, stage: list[Place]) -> None:
        if len(stage) == 1:
            return
        memory = make_memory(group_bytes(len(stage)))
        for place in stage:
            self.ends[place.index].group_memory = os.dup(memory)
            for other in stage[place.tensor_rank + 1 :]:
                # By rank on both sides: lower ones have come before.
                here, there = _pair(socket.SOCK_SEQPACKET)
                self.ends[place.index].peers.append(here)
                self.ends[other.index].peers.append(there)
        os.close(memory)


def _pair(kind: int) -> tuple[int, int]:
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    return one.detach(), other.detach()


@dataclass(frozen=True, slots=True)
class Links:
    """A worker's way to the others, on its host or on several, but for its parent and its plans."""

    group: TensorGroup | None = None
    inlet: Inlet | NetworkInlet | None = None
    outlet: Outlet | NetworkOutlet | None = None
    tokens_in: TokenReceiver | None = None
    tokens_out: TokenSender | NetworkTokenSender | None = None
    sockets: tuple[socket.socket, ...] = ()

    @classmethod
    def open(cls, ends: Ends, place: Place, spin_seconds: float) -> Links:
        """Take over the inherited descriptors."""
        sockets: list[socket.socket] = []

        def take(*descriptors: int) -> list[socket.socket]:
            taken = [socket.socket(fileno=descriptor) for descriptor in descriptors if descriptor >= 0]
            sockets.extend(taken)
            return taken

        peers, tokens_out = take(*ends.peers), take(*ends.tokens_out)
        states_in, states_out, tokens_in = take(ends.states_in), take(ends.states_out), take(ends.tokens_in)
        return cls(
            group=SharedGroup(place.tensor_rank, ends.group_memory, peers, spin_seconds) if peers else None,
            inlet=Inlet(ends.memory_in, *states_in) if states_in else None,
            outlet=Outlet(ends.memory_out, *states_out) if states_out else None,
            tokens_in=TokenReceiver(*tokens_in) if tokens_in else None,
            tokens_out=TokenSender(tokens_out) if tokens_out else None,
            sockets=tuple(sockets),
        )

    def close(self) -> None:
        """The others notice."""
        for end in self.sockets:
            end.close()
