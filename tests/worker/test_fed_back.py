"""Tokens sampled elsewhere reach the logs that they belong to, however late they come."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from orcinus.core.plan import FED_BACK, IterationPlan, NewSequence, Output, Work
from orcinus.core.request import SamplingParams, pack_tokens
from orcinus.errors import PlanError
from orcinus.parallel.stages import TokenReceiver, TokenSender
from orcinus.worker.fed_back import FedBack
from orcinus.worker.sequences import Sequences


class Station:
    """A worker that embeds, and the one that samples for it."""

    def __init__(self, ours: socket.socket, theirs: socket.socket) -> None:
        self.sequences = Sequences(4, 4)
        self.fed_back = FedBack(TokenReceiver(ours), self.sequences)
        self.sender = TokenSender([theirs])

    def run(self, plan: IterationPlan) -> None:
        self.sequences.apply(plan)
        self.fed_back.catch_up(plan)
        if any(work.output & Output.SAMPLE for work in plan.work):
            self.fed_back.expect()

    def tokens(self, seq_id: int) -> list[int]:
        return self.sequences[seq_id].tokens.tolist()


@pytest.fixture
def station() -> Iterator[Station]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield Station(ours, theirs)


def new(seq_id: int, tokens: list[int]) -> NewSequence:
    return NewSequence(seq_id, 0, 2, pack_tokens(tokens), b"", SamplingParams(), ())


def decode(seq_id: int, start: int) -> Work:
    return Work(seq_id, start, 1, FED_BACK, Output.SAMPLE)


def first_plan(*seq_ids: int, epoch: int = 0) -> IterationPlan:
    work = tuple(Work(seq_id, 0, 2, pack_tokens([5, 6]), Output.SAMPLE) for seq_id in seq_ids)
    return IterationPlan(epoch, 0, work, tuple(new(seq_id, [5, 6]) for seq_id in seq_ids))


def test_a_plan_waits_for_the_tokens_that_it_feeds_back(station: Station) -> None:
    station.run(first_plan(1, 2))

    def sample_late() -> None:
        time.sleep(0.05)
        station.sender.send(0, [(1, 2, 71), (2, 2, 72)])

    thread = threading.Thread(target=sample_late)
    thread.start()
    station.run(IterationPlan(0, 1, (decode(1, 2), decode(2, 2))))
    thread.join()
    assert (station.tokens(1), station.tokens(2)) == ([5, 6, 71], [5, 6, 72])


def test_tokens_that_nobody_needs_yet_are_taken_all_the_same(station: Station) -> None:
    for seq_id in range(10, 2000):
        station.run(first_plan(seq_id))
        station.sender.send(0, [(seq_id, 2, seq_id)])
        station.run(IterationPlan(0, 1, (), finished=(seq_id,)))
    assert len(station.sequences) == 0


def test_a_token_of_a_sequence_told_again_in_full_is_not_taken_twice(station: Station) -> None:
    station.run(first_plan(1))
    station.sender.send(0, [(1, 2, 71)])
    again = IterationPlan(
        0, 1, (Work(1, 0, 3, pack_tokens([5, 6, 71]), Output.SAMPLE),), (new(1, [5, 6, 71]),), finished=(1,)
    )
    station.run(again)
    assert station.tokens(1) == [5, 6, 71]
    station.sender.send(0, [(1, 3, 72)])
    station.run(IterationPlan(0, 2, (decode(1, 3),)))
    assert station.tokens(1) == [5, 6, 71, 72]


def test_tokens_of_an_older_epoch_are_dropped(station: Station) -> None:
    station.run(first_plan(1))
    station.sequences.clear()
    station.run(first_plan(1, epoch=1))
    station.sender.send(0, [(1, 2, 71)])
    station.sender.send(1, [(1, 2, 99)])
    station.run(IterationPlan(1, 1, (decode(1, 2),)))
    assert station.tokens(1) == [5, 6, 99]


def test_a_token_that_nobody_owes_is_not_waited_for(station: Station) -> None:
    station.run(first_plan(1))
    station.sender.send(0, [(1, 2, 71)])
    station.run(IterationPlan(0, 1, (Work(1, 3, 1, FED_BACK, Output.NOTHING),)))
    assert station.tokens(1) == [5, 6, 71]


def test_a_gap_is_reported(station: Station) -> None:
    station.run(first_plan(1))
    station.sender.send(0, [(1, 3, 71)])
    with pytest.raises(PlanError, match="only 2 are known"):
        station.run(IterationPlan(0, 1, (decode(1, 2),)))
