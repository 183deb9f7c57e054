"""What one stage hands over is what the next one gets, however much, and never before there is room."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest
import torch

from orcinus.parallel import PeerLost, stages
from orcinus.parallel.shared import make_memory
from orcinus.parallel.stages import LINK_BYTES, NUM_SLOTS, SLOT_BYTES, Inlet, Outlet, TokenReceiver, TokenSender

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield pair
    for end in pair:
        end.close()


def linked(ends: Ends) -> tuple[Outlet, Inlet]:
    memory = make_memory(LINK_BYTES)
    other = os.dup(memory)
    return Outlet(memory, ends[0]), Inlet(other, ends[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_arrive_as_they_left(dtype: torch.dtype, ends: Ends) -> None:
    outlet, inlet = linked(ends)
    for iteration, rows in enumerate((1, 3, 700, 1, 64)):
        x = torch.randn(rows, 768).to(dtype)
        outlet.send(5, iteration, x, (0.25, 0.5))
        found, times = inlet.receive(5, iteration, rows, 768, dtype)
        assert torch.equal(found, x)
        assert times == (0.25, 0.5)


def test_a_stage_may_be_ahead_until_the_ring_is_full_and_then_waits(ends: Ends) -> None:
    outlet, inlet = linked(ends)
    # A row fills a slot.
    width, num_sent = SLOT_BYTES // 4, 3 * NUM_SLOTS
    sent = threading.Semaphore(0)

    def send() -> None:
        for iteration in range(num_sent):
            outlet.send(0, iteration, torch.full((1, width), float(iteration)), ())
            sent.release()

    thread = threading.Thread(target=send)
    thread.start()
    for _ in range(NUM_SLOTS):
        assert sent.acquire(timeout=10)
    assert not sent.acquire(timeout=0.2), "the next one would overwrite what nobody has read"
    for iteration in range(num_sent):
        found, _ = inlet.receive(0, iteration, 1, width, torch.float32)
        assert found.unique().tolist() == [iteration]
    thread.join()


def test_states_of_another_iteration_are_not_taken(ends: Ends) -> None:
    outlet, inlet = linked(ends)
    outlet.send(0, 1, torch.ones(1, 8), ())
    with pytest.raises(AssertionError):
        inlet.receive(0, 2, 1, 8, torch.float32)


def test_neighbours_that_have_gone_are_noticed(ends: Ends) -> None:
    outlet, inlet = linked(ends)
    ends[0].close()
    with pytest.raises(PeerLost, match="before is gone"):
        inlet.receive(0, 0, 1, 8, torch.float32)
    ends[1].close()
    with pytest.raises(PeerLost, match="next stage is gone"):
        outlet.send(0, 0, torch.ones(1, 8), ())


def test_a_neighbour_that_stands_still_is_not_waited_for_for_good(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "STAGE_SECONDS", 0.05)
    outlet, inlet = linked(ends)
    with pytest.raises(PeerLost, match="said nothing"):
        inlet.receive(0, 0, 1, 8, torch.float32)
    with pytest.raises(PeerLost, match="said nothing"):
        outlet.send(0, 0, torch.ones(NUM_SLOTS + 1, SLOT_BYTES // 4), ())


def test_tokens_go_to_everybody_who_embeds() -> None:
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
    sender = TokenSender([ours for ours, _ in pairs])
    receivers = [TokenReceiver(theirs) for _, theirs in pairs]
    assert [receiver.take() for receiver in receivers] == [None, None]
    tokens = [(2**32 - 1 - i, i, 128_000 + i) for i in range(4096)]
    sender.send(3, tokens)
    for receiver in receivers:
        epoch, found = receiver.wait()
        assert epoch == 3
        assert [tuple(row) for row in found.tolist()] == tokens
    for ours, _ in pairs:
        ours.close()
    for receiver in receivers:
        with pytest.raises(PeerLost, match="samples is gone"):
            receiver.take()
    for _, theirs in pairs:
        theirs.close()
