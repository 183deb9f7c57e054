"""What a policy is asked and told, and what it may look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal, Protocol

from orcinus.core.pace import Pace
from orcinus.core.request import Request

Rank = tuple[float, ...]
"""Sorts within a class: (0 if overdue else 1, tenant term, rank, more). All ranks of a policy compare with each other.

Those with equal first three numbers are a band: they give up their KV in the order of what they lose by it.
"""

Displacing = Literal["class", "order", "share"]
"""Before whom a newcomer is served, and who gives up slots and KV blocks for it.

`class`: who is of a lower class. `order`: whoever ranks behind it. `share`: of those, whoever belongs to a tenant that
holds more than its equal share, as long as the newcomer's tenant holds less.
"""


class RequestView(Protocol):
    """What a policy may look at."""

    @property
    def request(self) -> Request:
        """What the client asked."""
        ...

    @property
    def number(self) -> int:
        """Requests are numbered in the order of their coming."""
        ...


@dataclass(frozen=True, slots=True)
class Facts:
    """What a policy may know beyond the requests.

    Args:
        pace: what iterations took so far.
        missing_tokens: of a request: those known whose KV the prefix cache doesn't hold.
        matched_blocks: of a request: those that it does.
        cache_version: another number whenever `matched_blocks` may be another.
        max_wait_seconds: a request that wasn't served for so long is overdue.
        max_overtakes: of policy `prefix`.
    """

    pace: Pace
    missing_tokens: Callable[[RequestView], int]
    matched_blocks: Callable[[RequestView], int]
    cache_version: Callable[[], int]
    max_wait_seconds: float = 10.0
    max_overtakes: int = 256


class Policy(Protocol):
    """Lower rank runs first, the highest rank is preempted first.

    The total order is (class, *rank, arrival, number of the request), DESIGN.md §3 and SYSTEMS.md, G1. Each request
    enters once and leaves once; ranks change by what a policy is told, and by time as `stable_until` says.
    """

    name: str
    displacing: Displacing
    # Else, of those with equal rank, the one is preempted that loses least.
    keeps_arrival_order: bool
    # It wants `on_service`, or its ranks change otherwise; else they never do.
    watches_service: bool
    # It wants `on_time`, or others want the pace that it is told.
    watches_time: bool
    # Its order and `due_by` tell whose turn comes when, so that KV can be moved ahead of it.
    foresees: bool

    def __init__(self, facts: Facts) -> None: ...

    def enter(self, view: RequestView, now: float) -> None:
        """A request came."""
        ...

    def leave(self, view: RequestView) -> None:
        """It ended."""
        ...

    def can_make_it(self, view: RequestView, ahead: Iterable[RequestView], now: float) -> bool:
        """Whether a request that came just now, and has a deadline, may meet it; else it is refused.

        Args:
            ahead: those that wait before it, in order.
        """
        ...

    def rank(self, view: RequestView, now: float) -> Rank:
        """The sort value at `now`; changes nothing."""
        ...

    def on_start(self, view: RequestView, waiting: Sequence[RequestView], now: float) -> None:
        """A request left the queue, in which `waiting` are left."""
        ...

    def on_service(self, view: RequestView, tokens: int, now: float) -> None:
        """`tokens` of this request have just been scheduled."""
        ...

    def on_time(self, view: RequestView, seconds: float, now: float) -> None:
        """An iteration with work for this request took `seconds`."""
        ...

    def due_by(self, at: float) -> Sequence[RequestView]:
        """Those whose turn comes before `at` whoever else there is. O(their number)."""
        ...

    def changed(self, waiting: Sequence[RequestView], now: float) -> Sequence[RequestView] | None:
        """Whose rank may differ since this was asked last; None if it may be anybody's."""
        ...

    def stable_until(self, now: float) -> float:
        """The earliest instant at which the order can change without an event."""
        ...


class PlainPolicy:
    """Nothing matters and nothing changes: the part that policies have in common."""

    name: str
    displacing: Displacing = "class"
    keeps_arrival_order = False
    watches_service = True
    watches_time = False
    foresees = False

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def enter(self, view: RequestView, now: float) -> None:
        """Nothing to remember."""

    def leave(self, view: RequestView) -> None:
        """Nothing to forget."""

    def can_make_it(self, view: RequestView, ahead: Iterable[RequestView], now: float) -> bool:
        """Time will tell."""
        return True

    def on_start(self, view: RequestView, waiting: Sequence[RequestView], now: float) -> None:
        """Starting changes nothing."""

    def on_service(self, view: RequestView, tokens: int, now: float) -> None:
        """Service changes nothing."""

    def on_time(self, view: RequestView, seconds: float, now: float) -> None:
        """Time changes nothing."""

    def due_by(self, at: float) -> Sequence[RequestView]:
        """Nobody."""
        return ()

    def changed(self, waiting: Sequence[RequestView], now: float) -> Sequence[RequestView] | None:
        """Nobody's."""
        return ()

    def stable_until(self, now: float) -> float:
        """For ever."""
        return inf
