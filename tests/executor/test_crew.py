"""Whose fault it is when several workers leave at once: what one of them knows counts more than what another misses."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest

from orcinus.executor import WorkerDied
from orcinus.executor.crew import Crew, Reporter
from orcinus.executor.messages import FromWorker, GoesOn, WorkerFailed
from orcinus.parallel import LinkLost, PeerLost, places
from orcinus.parallel.shared import with_timeout

MISSED = WorkerFailed.of(PeerLost("another rank of this stage is gone"))
CUT = WorkerFailed.of(LinkLost("the next stage is gone: timed out"))


class Talkers(Crew[Reporter]):
    """Workers of whom nothing is known but what they say. `ends` are theirs."""

    def __init__(self, count: int) -> None:
        pairs = [socket.socketpair() for _ in range(count)]
        self.ends = [theirs for _, theirs in pairs]
        self.signs = 0
        reporters = [
            Reporter(place, with_timeout(ours, 60)) for place, (ours, _) in zip(places(1, count), pairs, strict=True)
        ]
        super().__init__(reporters, [], lambda _: None, self._count)

    def _count(self) -> None:
        self.signs += 1

    @property
    def pids(self) -> list[int]:
        return []

    def close(self) -> None:
        for end in (*self.ends, *(worker.frames.socket for worker in self._workers)):
            end.close()

    def _lost(self) -> WorkerDied | None:
        return None

    def _culprit(self) -> WorkerDied | None:
        return None

    def tell(self, index: int, message: FromWorker) -> None:
        packed = msgspec.msgpack.encode(message)
        self.ends[index].sendall(len(packed).to_bytes(4, "little") + packed)


@pytest.fixture
def crew() -> Iterator[Talkers]:
    made = Talkers(3)
    yield made
    made.close()


def test_a_cut_link_is_the_cause_though_somebody_missed_the_other_side_before(crew: Talkers) -> None:
    crew.tell(1, MISSED)
    crew.tell(0, GoesOn())
    crew.ends[1].close()
    # The other side of the cut is a little slower to say so.
    later = threading.Timer(0.1, crew.tell, (0, CUT))
    later.start()
    with pytest.raises(WorkerDied, match="timed out") as died:
        crew.collect()
    later.join()
    assert died.value.by_others


def test_where_nobody_knows_a_cause_what_was_missed_is_the_end(crew: Talkers) -> None:
    crew.tell(1, MISSED)
    crew.ends[2].close()
    with pytest.raises(WorkerDied, match="another rank of this stage is gone") as died:
        crew.collect()
    assert not died.value.by_others
    assert crew.signs, "who looks for the cause isn't hung"
