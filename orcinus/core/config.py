"""What the scheduler is told once, at start."""

from __future__ import annotations

from typing import Literal

import msgspec

from orcinus.core.admission import ADMISSIONS, AdmissionName
from orcinus.core.policy import POLICIES
from orcinus.errors import ConfigurationError, nearest


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Budgets of an iteration, and which admission and policy decide.

    Args:
        num_blocks: KV blocks in the pool.
        block_size: tokens a block.
        max_batch_tokens: token budget of an iteration.
        max_batch_size: most sequences in one plan.
        num_stages: pipeline stages; as many plans of disjoint batches are in flight (Orca's n_workers).
        lookahead: 1 lets a decoding sequence be scheduled again before its token is back.

    Raises:
        ConfigurationError: naming the field, its value and the bound.
    """

    num_blocks: int
    block_size: int = 16
    max_batch_tokens: int = 512
    max_batch_size: int = 64
    num_stages: int = 1
    lookahead: Literal[0, 1] = 0
    admission: AdmissionName = "on_demand"
    policy: str = "fcfs"

    def __post_init__(self) -> None:
        for name in ("num_blocks", "block_size", "max_batch_tokens", "max_batch_size", "num_stages"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.lookahead not in (0, 1):
            raise ConfigurationError(f"lookahead is {self.lookahead}; it must be 0 or 1")
        if self.max_batch_tokens < self.max_batch_size:
            raise ConfigurationError(
                f"max_batch_tokens ({self.max_batch_tokens}) is below max_batch_size ({self.max_batch_size}): "
                "not every sequence could get its one token an iteration; raise the first or lower the second"
            )
        for name, value, known in (
            ("admission", self.admission, list(ADMISSIONS)),
            ("policy", self.policy, list(POLICIES)),
        ):
            if value not in known:
                raise ConfigurationError(
                    f"{name} {value!r} is unknown{nearest(value, known)}; known: {', '.join(known)}"
                )

    @property
    def plans_in_flight(self) -> int:
        """Most plans submitted and not yet collected."""
        return self.num_stages + self.lookahead

    @property
    def max_running(self) -> int:
        """Most sequences admitted at a time: a full batch for each stage."""
        return self.max_batch_size * self.num_stages
