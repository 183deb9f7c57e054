"""Plans go on to the next stage whatever a stage is busy with, whole and in order, and so does their end."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from orcinus.executor.frames import Frames
from orcinus.executor.relay import Relay

Chain = tuple[Frames, Relay, Relay]


@pytest.fixture
def chain() -> Iterator[Chain]:
    """An engine, a first stage and a second one."""
    (engine_end, first_in), (first_out, second_in) = socket.socketpair(), socket.socketpair()
    second_in.settimeout(20)
    with engine_end:
        yield Frames(engine_end), Relay(first_in, first_out), Relay(second_in, None)
        engine_end.close()


def test_plans_reach_the_second_stage_though_the_first_has_taken_none(chain: Chain) -> None:
    engine, first, second = chain
    # The last one is larger than any socket's buffer.
    plans = [b"one", b"", bytes(range(256)) * 40_000]
    for plan in plans:
        engine.send(plan)
    assert [second.next() for _ in plans] == plans
    assert [first.next() for _ in plans] == plans
    engine.socket.close()
    assert (first.next(), second.next()) == (None, None)


def test_a_message_cut_short_is_the_end(chain: Chain) -> None:
    engine, first, second = chain
    engine.socket.sendall((100).to_bytes(4, "little") + b"half of it")
    engine.socket.close()
    assert (first.next(), second.next()) == (None, None)


def test_messages_that_come_at_once_are_told_apart() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender, receiver = Frames(ours), Frames(theirs)
        assert not receiver.has_message
        for frame in (b"a", b"bc"):
            sender.send(frame)
        assert receiver.receive() == b"a"
        assert receiver.has_message
        assert receiver.receive() == b"bc"
        assert not receiver.has_message
