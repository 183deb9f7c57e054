"""How workers on several hosts come together: each calls the driver, says where it listens, and is told where the
others do. From then on it is a worker like any other, over connections instead of inherited sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress

import msgspec

from orcinus.errors import SystemFault
from orcinus.executor.frames import Frames
from orcinus.executor.messages import Start, WorkerFailed
from orcinus.executor.worker_process import Parent, work
from orcinus.parallel import PeerLost, Place, places
from orcinus.parallel.handshake import DRIVER, Address, Channel, Hello, Listener, close_all, dial
from orcinus.parallel.wiring import Ends
from orcinus.worker.build import WorkerConfig

# Others may still be importing torch on a slow machine.
JOIN_SECONDS = 120.0


class Invitation(msgspec.Struct, frozen=True):
    """All that whoever places a worker has to hand it. Whoever holds `secret` may be one."""

    secret: bytes
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


def be_worker(invitation: bytes, host: str) -> None:
    """Join, load, run plans, leave; what goes wrong is told to the driver.

    Args:
        invitation: an `Invitation`, packed.
        host: this machine's address between the workers.
    """
    invited = msgspec.msgpack.decode(invitation, type=Invitation)
    ends: dict[Hello, socket.socket] = {}
    try:
        _meet_driver(invited, ends)
        with_driver = Parent(os.dup(ends[to_driver(invited.place)[0]].fileno()))
    except SystemFault:
        # There is nobody to tell, and whoever placed us sees that we leave.
        close_all(ends.values())
        return
    try:
        work(_join(invited, host, ends), with_driver)
    except (SystemFault, OSError) as fault:
        told = WorkerFailed.of(fault) if isinstance(fault, SystemFault) else WorkerFailed(str(fault))
        with suppress(OSError):
            with_driver.tell(told)
    finally:
        close_all(ends.values())
        with_driver.close()


def _meet_driver(invited: Invitation, ends: dict[Hello, socket.socket]) -> None:
    for hello in to_driver(invited.place):
        ends[hello] = dial(invited.driver, hello, invited.secret)


def _join(invited: Invitation, host: str, ends: dict[Hello, socket.socket]) -> Start:
    """Every connection of this worker; `ends` keeps what has not been handed on."""
    place, me = invited.place, invited.place.index
    listener = Listener(host, invited.secret, me)
    try:
        team = _introduce(ends[Hello(Channel.REPORTS, me, DRIVER)], listener.address)
        mine = [
            hello for hello in connections(place.tensor_size, place.num_stages) if me in (hello.dialer, hello.listener)
        ]
        for hello in mine:
            if hello.dialer == me:
                ends[hello] = dial(team.addresses[hello.listener], hello, invited.secret)
        ends |= listener.accept([hello for hello in mine if hello.listener == me], JOIN_SECONDS)
    finally:
        listener.close()
    # Its copy is with the `Parent`; a second one would keep our end from being noticed.
    ends.pop(Hello(Channel.REPORTS, me, DRIVER)).close()
    start = Start(team.config, place, _inherited(place, ends), 0, 0.0)
    ends.clear()
    return start


def _introduce(reports: socket.socket, address: Address) -> Team:
    frames = Frames(reports)
    frames.send(msgspec.msgpack.encode(Joined(address, os.getpid())))
    frame = frames.receive()
    if frame is None:
        raise PeerLost("the driver is gone")
    return msgspec.msgpack.decode(frame, type=Team)


def _inherited(place: Place, ends: Mapping[Hello, socket.socket]) -> Ends:
    """The same table that a worker on one host gets from its parent."""
    me, before, after = place.index, place.index - place.tensor_size, place.index + place.tensor_size
    descriptors = {hello: end.detach() for hello, end in ends.items()}

    def between(channel: Channel, other: int) -> int:
        return descriptors.get(Hello(channel, max(me, other), min(me, other)), -1)

    def with_all(channel: Channel) -> list[int]:
        found = {
            hello.dialer + hello.listener - me: end for hello, end in descriptors.items() if hello.channel is channel
        }
        return [found[other] for other in sorted(found)]

    tokens = with_all(Channel.TOKENS)
    from_driver = descriptors.get(Hello(Channel.PLANS, me, DRIVER), -1)
    return Ends(
        over_network=True,
        plans_in=from_driver if place.is_first else between(Channel.PLANS, before),
        plans_out=between(Channel.PLANS, after),
        peers=with_all(Channel.RANKS),
        states_in=between(Channel.STATES, before),
        states_out=between(Channel.STATES, after),
        tokens_in=-1 if place.answers or not tokens else tokens[0],
        tokens_out=tokens if place.answers else [],
    )


def _are_peers(one: Place, other: Place) -> bool:
    return one.stage == other.stage
