"""What the ledger knows of iterations that pass in a leap: all who decode see the same gap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from orcinus.core.progress import Progress
from orcinus.simulate.jobs import Job
from orcinus.simulate.ledger import Ledger, Live


class _Pending:
    """A job with so many sequences that decode; of `told` iterations it has its tokens."""

    __slots__ = ("live", "sequences", "told")

    def __init__(self, live: Live, sequences: int) -> None:
        self.live = live
        self.sequences = sequences
        self.told = 0

    def tell(self, steps: int, at: float) -> None:
        """The tokens up to iteration `steps`, which ended at `at`."""
        if steps > self.told:
            self.live.num_output += (steps - self.told) * self.sequences
            self.live.last_at = at
            self.told = steps


class Stride:
    """Jobs of which each sequence gets a token in each iteration, the last ones at `at`."""

    def __init__(self, ledger: Ledger, request_ids: Iterable[str], at: float) -> None:
        self._ledger = ledger
        self._pending = {
            request_id: _Pending(ledger.live(request_id), count) for request_id, count in Counter(request_ids).items()
        }
        self._steps = 0
        self._at = at
        # All have got their last token at the same time, so the next gap is one for all.
        self.is_even = all(each.live.last_at == at for each in self._pending.values())

    def pass_by(self, progress: list[Progress], now: float) -> list[tuple[Job, str]]:
        """One iteration ended at `now`, with `progress` of those whose answer is over; jobs that ended with it."""
        named = {part.request_id for part in progress}
        count = len(self._pending) - len(named)
        if count:
            self._ledger.gaps.add(now - self._at, count)
        for request_id in named:
            self._pending[request_id].tell(self._steps, self._at)
        ended = self._ledger.note(progress, now) if progress else []
        self._steps += 1
        self._at = now
        for part in progress:
            self._leave(part)
        for request_id in named & self._pending.keys():
            self._pending[request_id].tell(self._steps, now)
        return ended

    def close(self) -> None:
        """Everybody gets the tokens of all iterations."""
        for each in self._pending.values():
            each.tell(self._steps, self._at)

    def _leave(self, part: Progress) -> None:
        """The ledger has counted its token."""
        pending = self._pending[part.request_id]
        if part.finish_reason is None:
            pending.live.num_output -= 1
            return
        pending.sequences -= 1
        if not pending.sequences:
            del self._pending[part.request_id]
