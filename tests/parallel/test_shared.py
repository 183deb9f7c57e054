"""Sums over ranks, in threads that stand in for processes: the oracle adds numbers up one by one with numpy."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor

from orcinus.parallel import PeerLost, Span, shared
from orcinus.parallel.shared import SharedGroup, group_bytes, make_memory


@contextmanager
def group(size: int, spin_seconds: float = 0.0) -> Iterator[list[SharedGroup]]:
    memory = make_memory(group_bytes(size))
    peers: list[list[socket.socket]] = [[] for _ in range(size)]
    for rank in range(size):
        for other in range(rank + 1, size):
            here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            peers[rank].append(here)
            peers[other].append(there)
    try:
        yield [SharedGroup(rank, os.dup(memory), peers[rank], spin_seconds) for rank in range(size)]
    finally:
        os.close(memory)
        for end in [end for ends in peers for end in ends]:
            end.close()


def on_all(ranks: list[SharedGroup], call: Callable[[SharedGroup], Tensor | None]) -> list[Tensor | None]:
    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(call, ranks))


def parts(size: int, rows: int, width: int) -> list[Tensor]:
    """Numbers of such different sizes that each order of addition gives another sum."""
    generator = torch.Generator().manual_seed(size)
    return [
        torch.randn(rows, width, generator=generator) * 10.0 ** torch.randint(-6, 7, (rows, width), generator=generator)
        for _ in range(size)
    ]


def added(parts: list[Tensor]) -> np.ndarray:
    total = parts[0].numpy().copy()
    for part in parts[1:]:
        total = np.add(total, part.numpy(), dtype=np.float32)
    return total


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("spin_seconds", [0.0, 1e-3])
def test_every_rank_gets_the_sum_in_the_order_of_ranks(size: int, spin_seconds: float) -> None:
    with group(size, spin_seconds) as ranks:
        for rows, width in ((1, 1), (1, 33), (7, 160), (300, 257)):
            x = parts(size, rows, width)
            for found in on_all(ranks, lambda rank, x=x: rank.all_reduce(x[rank.rank])):
                assert np.array_equal(found.numpy(), added(x))
            if size > 2 and rows > 1:
                assert not np.array_equal(added(x), added(x[::-1])), "the order shows"


def test_a_row_has_the_bits_that_it_has_alone() -> None:
    x = parts(3, 50, 97)
    with group(3) as ranks:
        crowd = on_all(ranks, lambda rank: rank.all_reduce(x[rank.rank]))[0]
        for first, last in ((0, 1), (49, 50), (7, 20)):
            alone = on_all(ranks, lambda rank, a=first, b=last: rank.all_reduce(x[rank.rank][a:b]))[0]
            assert torch.equal(alone, crowd[first:last])


def test_tensors_larger_than_the_memory_go_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "REGION_BYTES", 4096)
    x = parts(2, 70, 31)
    with group(2) as ranks:
        for found in on_all(ranks, lambda rank: rank.all_reduce(x[rank.rank])):
            assert np.array_equal(found.numpy(), added(x))
        whole = torch.arange(70 * 61.0).view(70, 61)
        shares = [Span.share(61, rank, 2) for rank in range(2)]
        cut = [whole[:, share.start : share.stop] for share in shares]
        found, nothing = on_all(ranks, lambda rank: rank.gather(cut[rank.rank], shares[rank.rank]))
        assert torch.equal(found, whole)
        assert nothing is None


@pytest.mark.parametrize("size", [2, 3])
def test_columns_of_unequal_shares_come_together_at_the_first_rank(size: int) -> None:
    whole = torch.randn(5, 1003)
    shares = [Span.share(1003, rank, size) for rank in range(size)]
    with group(size) as ranks:
        found = on_all(
            ranks,
            lambda rank: rank.gather(whole[:, shares[rank.rank].start : shares[rank.rank].stop], shares[rank.rank]),
        )
    assert torch.equal(found[0], whole)
    assert found[1:] == [None] * (size - 1)


@pytest.mark.parametrize("spin_seconds", [0.0, 1e-3])
def test_a_peer_that_has_gone_is_noticed(spin_seconds: float) -> None:
    with group(2, spin_seconds) as ranks:
        ranks[1]._peers[0].close()
        with pytest.raises(PeerLost, match="gone"):
            ranks[0].all_reduce(torch.ones(3))


def test_a_peer_that_stands_still_is_not_waited_for_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "TIMEOUT_SECONDS", 0.05)
    with group(2) as ranks, pytest.raises(PeerLost, match="said nothing"):
        ranks[0].all_reduce(torch.ones(3))


@pytest.mark.parametrize(("size", "num_parts"), [(10, 3), (7, 7), (3, 2), (64, 4), (2, 3)])
def test_shares_are_neighbours_that_leave_nothing_out(size: int, num_parts: int) -> None:
    shares = [Span.share(size, part, num_parts) for part in range(num_parts)]
    assert [position for share in shares for position in range(share.start, share.stop)] == list(range(size))
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1
    assert lengths[0] == max(lengths)
