"""How workers on several hosts come together: each calls the driver, says where it listens, and is told where the
others do. From then on it is a worker like any other, over connections instead of inherited sockets."""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Mapping
from contextlib import suppress

import msgspec

from orcinus.errors import SystemFault
from orcinus.executor.child import UNHEARD
from orcinus.executor.frames import Frames
from orcinus.executor.messages import WorkerFailed
from orcinus.executor.relay import Relay
from orcinus.executor.worker_process import Parent, leave, live_with, serve
from orcinus.parallel import PeerLost, Place, places
from orcinus.parallel.credentials import Credentials
from orcinus.parallel.handshake import DRIVER, Address, Channel, Hello, Listener, close_all, dial
from orcinus.parallel.network import (
    NetworkGroup,
    NetworkInlet,
    NetworkOutlet,
    NetworkTokenReceiver,
    NetworkTokenSender,
)
from orcinus.parallel.wiring import Links
from orcinus.worker.build import WorkerConfig

# Others may still be importing torch on a slow machine.
JOIN_SECONDS = 120.0


class Invitation(msgspec.Struct, frozen=True):
    """All that whoever places a worker has to hand it. Whoever holds it may be that worker."""

    own: Credentials
    driver: Address
    place: Place

    def __repr__(self) -> str:
        return f"Invitation({self.place})"


class Joined(msgspec.Struct, frozen=True, tag="joined"):
    """A worker's first words: where it waits for the others."""

    address: Address
    pid: int


class Team(msgspec.Struct, frozen=True, tag="team"):
    """The driver's answer: what to load, and where everybody waits, by index."""

    config: WorkerConfig
    addresses: list[Address]


Greeting = Joined | WorkerFailed
"""To the driver, before anything else."""


def connections(tensor_size: int, num_stages: int) -> list[Hello]:
    """All between workers. The higher index dials, so that nobody waits in a circle."""
    grid = places(tensor_size, num_stages)
    sampler = next(place.index for place in grid if place.answers)
    found: list[Hello] = []
    for place in grid:
        me, after = place.index, place.index + tensor_size
        if not place.is_last:
            found += [Hello(Channel.PLANS, after, me), Hello(Channel.STATES, after, me)]
        if place.is_first and not place.answers:
            found.append(Hello(Channel.TOKENS, max(me, sampler), min(me, sampler)))
        found += [
            Hello(Channel.RANKS, other.index, me) for other in grid if _are_peers(place, other) and other.index > me
        ]
    return found


def to_driver(place: Place) -> list[Hello]:
    """Those of one worker to the driver."""
    channels = (Channel.REPORTS, Channel.PLANS) if place.is_first else (Channel.REPORTS,)
    return [Hello(channel, place.index, DRIVER) for channel in channels]


def main(arguments: list[str]) -> int:
    """`PARENT ADDRESS`, and an invitation as input: what it holds is for no command line."""
    live_with(int(arguments[0]))
    return be_worker(sys.stdin.buffer.read(), arguments[1])


def be_worker(invitation: bytes, host: str) -> int:
    """Join, load, run plans, leave with an exit code; what goes wrong is told to the driver.

    Args:
        invitation: an `Invitation`, packed.
        host: this machine's address between the workers.
    """
    invited = msgspec.msgpack.decode(invitation, type=Invitation)
    ends: dict[Hello, ssl.SSLSocket] = {}
    try:
        for hello in to_driver(invited.place):
            ends[hello] = dial(invited.driver, hello, invited.own)
    except SystemFault:
        close_all(ends.values())
        return UNHEARD
    reports = Frames(ends[to_driver(invited.place)[0]])
    parent = Parent(reports)
    try:
        config = _join(invited, host, reports, ends)
        relay = _relay(invited.place, ends)
        serve(config, invited.place, _links(invited.place, ends), relay, parent)
    except (SystemFault, OSError) as fault:
        told = WorkerFailed.of(fault) if isinstance(fault, SystemFault) else WorkerFailed(str(fault))
        with suppress(OSError):
            parent.tell(told)
    finally:
        close_all(ends.values())
    return 0


def _join(invited: Invitation, host: str, reports: Frames, ends: dict[Hello, ssl.SSLSocket]) -> WorkerConfig:
    """Make every connection of this worker, and hear what to load."""
    place, me = invited.place, invited.place.index
    listener = Listener(host, invited.own, me)
    try:
        team = _introduce(reports, listener.address)
        mine = [
            hello for hello in connections(place.tensor_size, place.num_stages) if me in (hello.dialer, hello.listener)
        ]
        for hello in mine:
            if hello.dialer == me:
                ends[hello] = dial(team.addresses[hello.listener], hello, invited.own)
        ends |= listener.accept([hello for hello in mine if hello.listener == me], JOIN_SECONDS)
    finally:
        listener.close()
    return team.config


def _introduce(reports: Frames, address: Address) -> Team:
    reports.send(msgspec.msgpack.encode(Joined(address, os.getpid())))
    frame = reports.receive()
    if frame is None:
        raise PeerLost("the driver is gone")
    return msgspec.msgpack.decode(frame, type=Team)


def _relay(place: Place, ends: dict[Hello, ssl.SSLSocket]) -> Relay:
    """The way of the plans, which belongs to its thread from here on."""
    me, before, after = place.index, place.index - place.tensor_size, place.index + place.tensor_size
    incoming = Hello(Channel.PLANS, me, DRIVER if place.is_first else before)
    return Relay(ends.pop(incoming), ends.pop(Hello(Channel.PLANS, after, me), None))


def _links(place: Place, ends: Mapping[Hello, ssl.SSLSocket]) -> Links:
    """The same that a worker on one host makes of what it inherits."""
    me, before, after = place.index, place.index - place.tensor_size, place.index + place.tensor_size
    states_in, states_out = ends.get(Hello(Channel.STATES, me, before)), ends.get(Hello(Channel.STATES, after, me))
    ranks, tokens = _by_other(Channel.RANKS, me, ends), _by_other(Channel.TOKENS, me, ends)
    return Links(
        group=NetworkGroup(place.tensor_rank, ranks) if ranks else None,
        inlet=NetworkInlet(states_in) if states_in else None,
        outlet=NetworkOutlet(states_out) if states_out else None,
        tokens_in=NetworkTokenReceiver(*tokens) if tokens and not place.answers else None,
        tokens_out=NetworkTokenSender(tokens) if tokens and place.answers else None,
    )


def _by_other(channel: Channel, me: int, ends: Mapping[Hello, ssl.SSLSocket]) -> list[ssl.SSLSocket]:
    """All of a channel, by the index of who is at the other end."""
    found = {hello.dialer + hello.listener - me: end for hello, end in ends.items() if hello.channel is channel}
    return [found[other] for other in sorted(found)]


def _are_peers(one: Place, other: Place) -> bool:
    return one.stage == other.stage


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
