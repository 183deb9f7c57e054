"""The order in which requests are served: one small file a policy, one seam for all."""

from __future__ import annotations

from orcinus.core.policy.base import Displacing, Facts, Policy, Rank, RequestView
from orcinus.core.policy.deadline import Deadline
from orcinus.core.policy.fair import Fair
from orcinus.core.policy.fcfs import Fcfs
from orcinus.core.policy.mlfq import Mlfq
from orcinus.core.policy.prefix import Prefix
from orcinus.core.policy.priority import Priority

POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in (Fcfs, Priority, Prefix, Mlfq, Fair, Deadline)}

__all__ = ["POLICIES", "Displacing", "Facts", "Policy", "Rank", "RequestView"]
