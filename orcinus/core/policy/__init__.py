"""The order in which requests are served: one small file a policy, one seam for all."""

from __future__ import annotations

from typing import Protocol

from orcinus.core.policy.fcfs import Fcfs
from orcinus.core.request import Request


class RequestView(Protocol):
    """What a policy may look at."""

    @property
    def request(self) -> Request:
        """What the client asked."""
        ...


class Policy(Protocol):
    """Lower rank runs first, the highest rank is preempted first.

    The total order is (class, rank, arrival, number of the request); the terms for overdue requests and for tenants
    join it with the policies that need them (DESIGN.md §3).
    """

    name: str

    def rank(self, view: RequestView, now: float) -> float:
        """The sort value at `now`."""
        ...

    def on_service(self, view: RequestView, tokens: int, now: float) -> None:
        """`tokens` of this request have just been scheduled."""
        ...

    def stable_until(self, now: float) -> float:
        """The earliest instant at which the order can change without an event."""
        ...


POLICIES: dict[str, type[Policy]] = {Fcfs.name: Fcfs}
