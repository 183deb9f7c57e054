"""Who waits and who runs, in the order of service (DESIGN.md §3, `Policy`; SYSTEMS.md, G1)."""

from __future__ import annotations

from bisect import insort

from orcinus.core.policy import Policy
from orcinus.core.sequence import SequenceGroup


def _order(group: SequenceGroup) -> tuple[float, ...]:
    return group.order


class Queues:
    """`waiting` and `running` hold groups in service order. A group is in exactly one of them until it leaves."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.waiting: list[SequenceGroup] = []
        self.running: list[SequenceGroup] = []
        self.num_running = 0
        # Every live group, in the order of `enter`.
        self.groups: dict[str, SequenceGroup] = {}

    def enter(self, group: SequenceGroup, now: float) -> None:
        """A request came."""
        self.groups[group.request.request_id] = group
        self.policy.enter(group, now)
        self._rank(group, now)
        insort(self.waiting, group, key=_order)

    def leave(self, group: SequenceGroup, *, was_running: bool) -> None:
        """It has ended."""
        (self.running if was_running else self.waiting).remove(group)
        self.policy.leave(group)
        del self.groups[group.request.request_id]

    def start(self, group: SequenceGroup, now: float) -> None:
        """From the queue to those that run."""
        self.waiting.remove(group)
        insort(self.running, group, key=_order)
        self.policy.on_start(group, self.waiting, now)

    def stop(self, group: SequenceGroup) -> None:
        """Back to the queue, place in the order kept."""
        self.running.remove(group)
        insort(self.waiting, group, key=_order)

    def refresh(self, now: float) -> None:
        """Put in order whose rank has changed by events or by time. O(changed), and a sort of what is nearly sorted."""
        changed = self.policy.changed(self.waiting, now)
        if changed is None:
            moved = list(self.groups.values())
        elif changed:
            # One that has ended since has a rank no more.
            found = [self.groups.get(view.request.request_id) for view in changed]
            moved = [group for group in found if group is not None]
        else:
            return
        for group in moved:
            self._rank(group, now)
        self.waiting.sort(key=_order)
        self.running.sort(key=_order)

    def _rank(self, group: SequenceGroup, now: float) -> None:
        request = group.request
        group.order = (request.service_class, *self.policy.rank(group, now), request.arrived_at, group.number)
