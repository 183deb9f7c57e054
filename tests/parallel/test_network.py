"""Sums and links over TLS: the bits of shared memory, the words of the links on one host, and the same complaints."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import test_shared
import torch
from test_shared import added, parts
from torch import Tensor

from orcinus.parallel import PeerLost, Span, network
from orcinus.parallel.credentials import issue
from orcinus.parallel.handshake import Channel, Hello, Listener, dial
from orcinus.parallel.network import (
    NetworkGroup,
    NetworkInlet,
    NetworkOutlet,
    NetworkTokenReceiver,
    NetworkTokenSender,
)

Ends = tuple[ssl.SSLSocket, ssl.SSLSocket]
MEMBERS = issue([0, 1])


def connection() -> Ends:
    listener, hello = Listener("127.0.0.1", MEMBERS[0], 0), Hello(Channel.STATES, 1, 0)
    with ThreadPoolExecutor(1) as pool:
        dialed = pool.submit(dial, listener.address, hello, MEMBERS[1])
        (taken,) = listener.accept([hello], 20).values()
        return dialed.result(), taken


@pytest.fixture
def ends() -> Iterator[Ends]:
    pair = connection()
    yield pair
    for end in pair:
        end.close()


@contextmanager
def group(size: int) -> Iterator[list[NetworkGroup]]:
    peers: list[list[ssl.SSLSocket]] = [[] for _ in range(size)]
    for rank in range(size):
        for other in range(rank + 1, size):
            here, there = connection()
            peers[rank].append(here)
            peers[other].append(there)
    try:
        yield [NetworkGroup(rank, peers[rank]) for rank in range(size)]
    finally:
        for end in [end for ends in peers for end in ends]:
            end.close()


def on_all(ranks: list[NetworkGroup], call: Callable[[NetworkGroup], Tensor | None]) -> list[Tensor | None]:
    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(call, ranks))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_rank_gets_the_bits_of_shared_memory(size: int) -> None:
    with group(size) as ranks, test_shared.group(size) as shared:
        for rows, width in ((1, 1), (1, 33), (7, 160), (300, 257), (0, 8)):
            x = parts(size, rows, width)
            expected = test_shared.on_all(shared, lambda rank, x=x: rank.all_reduce(x[rank.rank]))[0]
            for found in on_all(ranks, lambda rank, x=x: rank.all_reduce(x[rank.rank])):
                assert torch.equal(found, expected)
                assert np.array_equal(found.numpy(), added(x))


def test_more_than_fits_between_two_ranks_goes_both_ways_at_once() -> None:
    # Far beyond the buffers of a connection: whoever sent all before he read would wait for good.
    x = [torch.randn(4096, 2048) for _ in range(2)]
    with group(2) as ranks:
        for found in on_all(ranks, lambda rank: rank.all_reduce(x[rank.rank])):
            assert torch.equal(found, x[0] + x[1])


@pytest.mark.parametrize("size", [2, 3])
def test_columns_of_unequal_shares_come_together_at_the_first_rank(size: int) -> None:
    whole = torch.randn(5, 1003)
    shares = [Span.share(1003, rank, size) for rank in range(size)]
    cut = [whole[:, share.start : share.stop] for share in shares]
    with group(size) as ranks:
        for _ in range(2):
            found = on_all(ranks, lambda rank: rank.gather(cut[rank.rank], shares[rank.rank]))
            assert torch.equal(found[0], whole)
            assert found[1:] == [None] * (size - 1)


def test_ranks_that_keep_no_step_are_found_out() -> None:
    with group(2) as ranks:
        ranks[1]._calls = 1
        with pytest.raises(AssertionError, match="is at"):
            on_all(ranks, lambda rank: rank.all_reduce(torch.ones(3)))


def test_a_rank_that_has_gone_or_stands_still_is_not_waited_for_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "TIMEOUT_SECONDS", 0.05)
    with group(2) as ranks:
        with pytest.raises(PeerLost, match="said nothing"):
            ranks[0].all_reduce(torch.ones(3))
        ranks[1]._peers[0].close()
        with pytest.raises(PeerLost, match="gone"):
            ranks[0].all_reduce(torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_arrive_as_they_left(dtype: torch.dtype, ends: Ends) -> None:
    outlet, inlet = NetworkOutlet(ends[0]), NetworkInlet(ends[1])
    for iteration, rows in enumerate((1, 3, 700, 5000, 64)):
        x = torch.randn(rows, 1536).to(dtype)[:, ::2]
        sending = threading.Thread(target=outlet.send, args=(5, iteration, x, (0.25, 0.5)))
        sending.start()
        found, times = inlet.receive(5, iteration, rows, 768, dtype)
        sending.join()
        assert torch.equal(found, x)
        assert times == (0.25, 0.5)


@pytest.mark.slow
def test_a_stage_that_is_busy_for_longer_than_a_host_may_be_silent_is_not_cut_off(ends: Ends) -> None:
    # More than fits between them, so that nothing at all can be handed over meanwhile.
    x = torch.randn(2**14, 2**10)
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(NetworkOutlet(ends[0]).send, 0, 0, x, ())
        time.sleep(6)
        found, _ = NetworkInlet(ends[1]).receive(0, 0, *x.shape, torch.float32)
        sending.result()
    assert torch.equal(found, x)


def test_states_of_another_iteration_are_not_taken(ends: Ends) -> None:
    NetworkOutlet(ends[0]).send(0, 1, torch.ones(1, 8), ())
    with pytest.raises(AssertionError):
        NetworkInlet(ends[1]).receive(0, 2, 1, 8, torch.float32)


def test_neighbours_that_have_gone_or_stand_still_are_noticed(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "STAGE_SECONDS", 0.05)
    outlet, inlet = NetworkOutlet(ends[0]), NetworkInlet(ends[1])
    with pytest.raises(PeerLost, match="silent"):
        inlet.receive(0, 0, 1, 8, torch.float32)
    with pytest.raises(PeerLost, match="next stage is gone"):
        outlet.send(0, 0, torch.ones(2**15, 2**10), ())
    ends[0].close()
    with pytest.raises(PeerLost, match="before is gone"):
        # More than the other side may have sent before it gave up.
        inlet._fill(memoryview(bytearray(2**28)))


def test_tokens_go_to_everybody_who_embeds_even_in_pieces() -> None:
    pairs = [connection() for _ in range(2)]
    sender = NetworkTokenSender([ours for ours, _ in pairs])
    receivers = [NetworkTokenReceiver(theirs) for _, theirs in pairs]
    assert [receiver.take() for receiver in receivers] == [None, None]
    many = [(2**32 - 1 - i, i, 128_000 + i) for i in range(4096)]
    for tokens in (many, [(1, 2, 3)], []):
        sender.send(3, tokens)
    for receiver in receivers:
        for tokens in (many, [(1, 2, 3)], []):
            epoch, found = receiver.wait()
            assert epoch == 3
            assert [tuple(row) for row in found.tolist()] == tokens
    frame = b"\x04\x00\x00\x00\x92\x05\xc4\x00"
    for i in range(len(frame)):
        assert receivers[0].take() is None
        pairs[0][0].sendall(frame[i : i + 1])
    epoch, found = receivers[0].wait()
    assert (epoch, len(found)) == (5, 0)
    for ours, _ in pairs:
        ours.close()
    for receiver in receivers:
        with pytest.raises(PeerLost, match="samples is gone"):
            receiver.wait()
    for _, theirs in pairs:
        theirs.close()
