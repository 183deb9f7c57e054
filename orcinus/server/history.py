"""What a front end notes of each response, so that its time can be explained. No text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from orcinus.core.explain import Cause, Interval

# A request gets another name each time it is taken up again; the latest are asked for.
_MAX_NAMES = 256


@dataclass(slots=True)
class History:
    """What this front end notes of a response. Instants are of the engine's clock."""

    key: str
    received_at: float
    arrived_at: float
    request_ids: Sequence[str]
    ended_at: float | None = None
    num_resumptions: int = 0
    unheard: list[Interval] = field(default_factory=list)
    unheard_since: float | None = None

    def pause(self, now: float) -> None:
        """Its listener has left before the end."""
        self.unheard_since = now

    def resume(self, now: float) -> None:
        """Somebody listens again; the engine knows it under another name from here on."""
        if self.unheard_since is not None:
            self.unheard.append(Interval(Cause.UNHEARD, self.unheard_since, now))
            self.unheard_since = None
        self.num_resumptions += 1

    def end(self, now: float) -> None:
        """The last byte has left, or nobody wants it."""
        if self.ended_at is None:
            self.ended_at = now

    def interruptions(self, until: float) -> list[Interval]:
        """Times in which nobody listened."""
        since = self.unheard_since
        return self.unheard if since is None else [*self.unheard, Interval(Cause.UNHEARD, since, until)]

    def names(self, request_id: str) -> list[str]:
        """Under which engines know one of its requests."""
        resumed = range(1, self.num_resumptions + 1)
        return [request_id, *(f"{request_id}~{number}" for number in resumed)][-_MAX_NAMES:]
