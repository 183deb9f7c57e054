"""Virtual token counters: each tenant gets its share of the tokens (Sheng et al., OSDI '24)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orcinus.core.policy.base import Displacing, Facts, PlainPolicy, Rank, RequestView

# Tenants that are away are remembered up to this many more than those that are here.
_SLACK = 64


@dataclass(slots=True)
class _Tenant:
    counter: int
    num_live: int = 0


class Fair(PlainPolicy):
    """The tenant that got the fewest tokens comes first; within a tenant, arrival decides.

    A tenant that comes back is raised to the lowest counter of those that are here: nobody saves up by staying away.
    Nobody becomes overdue, for a tenant with a long queue of its own making would pass all others. The bound on waiting
    is the counters': a tenant that wants something is behind another by what one iteration may run, and within it the
    first comes first.
    """

    name = "fair"
    displacing: Displacing = "share"

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self._tenants: dict[str, _Tenant] = {}
        self._has_changed = False

    def counter(self, tenant: str) -> int:
        """Tokens that a tenant was given, and those that it was raised by."""
        return self._tenants[tenant].counter

    def enter(self, view: RequestView, now: float) -> None:
        """Raise its tenant, if it had nothing here."""
        name = view.request.tenant
        tenant = self._tenants.setdefault(name, _Tenant(0))
        if tenant.num_live == 0:
            tenant.counter = max(tenant.counter, self._floor())
        tenant.num_live += 1

    def leave(self, view: RequestView) -> None:
        """Its tokens stay counted as long as that can matter."""
        self._tenants[view.request.tenant].num_live -= 1
        num_here = sum(tenant.num_live > 0 for tenant in self._tenants.values())
        if len(self._tenants) > 2 * num_here + _SLACK:
            self._forget_some()

    def rank(self, view: RequestView, now: float) -> Rank:
        """The tenant's counter."""
        return (1.0, self._tenants[view.request.tenant].counter, 0.0)

    def on_service(self, view: RequestView, tokens: int, now: float) -> None:
        """Count the tokens."""
        self._tenants[view.request.tenant].counter += tokens
        self._has_changed = True

    def changed(self, waiting: Sequence[RequestView], now: float) -> Sequence[RequestView] | None:
        """Everybody's, once anything was served; with one tenant the order is arrival's."""
        has_changed = self._has_changed and len(self._tenants) > 1
        self._has_changed = False
        return None if has_changed else ()

    def _floor(self) -> int:
        """The lowest counter of those that are here; if nobody is, the highest: an idle engine owes nobody anything."""
        here = [tenant.counter for tenant in self._tenants.values() if tenant.num_live]
        return min(here) if here else max(tenant.counter for tenant in self._tenants.values())

    def _forget_some(self) -> None:
        """Those away whose counter the floor has passed would be raised on return; beyond the slack, the lowest go."""
        floor = self._floor()
        away = [(tenant.counter, name) for name, tenant in self._tenants.items() if not tenant.num_live]
        spare = len(away) - _SLACK // 2
        for place, (counter, name) in enumerate(sorted(away)):
            if counter <= floor or place < spare:
                del self._tenants[name]
        if not self._tenants:
            self._tenants[""] = _Tenant(floor)
