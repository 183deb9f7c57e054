"""What became of each job, in a few bytes a job: a million of them fit, and nothing grows with their tokens."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orcinus.core.progress import Progress
from orcinus.core.request import FinishReason
from orcinus.simulate.jobs import Job

_COLUMNS = ("arrived_at", "first_at", "last_at", "ended_at", "num_prompt", "num_output", "num_answers")
# A percentile read from the histogram is within half of this share of the true one.
_BUCKET = 0.005
_PER_LOG = 1 / math.log1p(_BUCKET)
_LEAST_GAP = 1e-7


class GapHistogram:
    """Gaps between tokens, by size: there are too many to keep. Mean and maximum are exact."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.count = 0
        self.total = 0.0
        self.squares = 0.0
        self.maximum = 0.0

    def add(self, gap: float, times: int) -> None:
        """`times` equal gaps: all who decode in one iteration see the same one."""
        self.counts[int(math.log(max(gap, _LEAST_GAP) / _LEAST_GAP) * _PER_LOG)] += times
        self.count += times
        self.total += gap * times
        self.squares += gap * gap * times
        if gap > self.maximum:
            self.maximum = gap

    def percentile(self, percent: float) -> float:
        """The smallest bucket that so many gaps don't exceed; NaN of no gap."""
        wanted, seen = math.ceil(self.count * percent / 100), 0
        for bucket, count in sorted(self.counts.items()):
            seen += count
            if seen >= max(wanted, 1):
                return min(_LEAST_GAP * math.exp((bucket + 0.5) / _PER_LOG), self.maximum)
        return math.nan


@dataclass(slots=True)
class Live:
    """A job that has no end yet."""

    job: Job
    arrived_at: float
    open_answers: int
    num_output: int = 0
    num_cached: int = 0
    first_at: float = math.nan
    last_at: float = math.nan


class Ledger:
    """Live jobs by request id, and columns of those that came to an end by themselves."""

    def __init__(self) -> None:
        self._live: dict[str, Live] = {}
        self._columns = {name: array("d") for name in _COLUMNS}
        self.gaps = GapHistogram()
        self.reasons: Counter[str] = Counter()
        self.total_output = 0
        self.total_cached = 0

    @property
    def num_live(self) -> int:
        """Jobs that have come and not ended."""
        return len(self._live)

    def begin(self, request_id: str, job: Job, arrived_at: float) -> None:
        """A job has come."""
        self._live[request_id] = Live(job, arrived_at, job.n)

    def refuse(self, request_id: str) -> None:
        """Core didn't take it."""
        del self._live[request_id]
        self.reasons["refused"] += 1

    def column(self, name: str) -> NDArray[np.float64]:
        """One of arrived_at, first_at, last_at, ended_at, num_prompt, num_output, num_answers."""
        return np.frombuffer(self._columns[name]) if self._columns[name] else np.empty(0)

    def note(self, progress: list[Progress], now: float) -> list[tuple[Job, str]]:
        """Take in what one iteration gave; jobs and request ids that have ended with it."""
        ended: list[tuple[Job, str]] = []
        same_gap, times = 0.0, 0
        for part in progress:
            live = self._live[part.request_id]
            if part.tokens:
                if live.num_output == 0:
                    live.first_at = now
                    live.num_cached = part.cached_tokens
                else:
                    gap = now - live.last_at
                    if gap == same_gap:
                        times += 1
                    elif gap:
                        if times:
                            self.gaps.add(same_gap, times)
                        same_gap, times = gap, 1
                live.num_output += len(part.tokens)
                live.last_at = now
            if part.finish_reason is not None:
                live.open_answers -= 1
                if not live.open_answers:
                    ended.append((self._end(part.request_id, part.finish_reason, now), part.request_id))
        if times:
            self.gaps.add(same_gap, times)
        return ended

    def tokens_of(self, request_id: str) -> int:
        """Tokens that its client has seen; 0 once it has ended."""
        live = self._live.get(request_id)
        return 0 if live is None else live.num_output

    def live(self, request_id: str) -> Live:
        """One that has come and not ended."""
        return self._live[request_id]

    def is_live(self, request_id: str) -> bool:
        """It has come and not ended."""
        return request_id in self._live

    def _end(self, request_id: str, reason: FinishReason, now: float) -> Job:
        live = self._live.pop(request_id)
        self.reasons[str(reason)] += 1
        self.total_output += live.num_output
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            self.total_cached += live.num_cached
            self._enter(live, now)
        return live.job

    def _enter(self, live: Live, now: float) -> None:
        values = (
            live.arrived_at,
            live.first_at,
            live.last_at,
            now,
            live.job.num_prompt,
            live.num_output,
            live.job.n,
        )
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)

    def enter(self, job: Job, first_at: float, last_at: float, ended_at: float) -> None:
        """A job of a baseline, which has no core to tell of it."""
        self.reasons[str(FinishReason.STOP)] += 1
        self.total_output += job.output
        live = Live(job, job.at, open_answers=0, num_output=job.output, first_at=first_at, last_at=last_at)
        self._enter(live, ended_at)
