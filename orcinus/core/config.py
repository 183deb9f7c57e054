"""What the scheduler is told once, at start, and the requests that it can therefore never run."""

from __future__ import annotations

from math import inf
from typing import Literal

import msgspec

from orcinus.core.admission import ADMISSIONS, AdmissionName, worst_case_blocks
from orcinus.core.kv.tiers import TierSizes
from orcinus.core.policy import POLICIES
from orcinus.core.request import BeamSearch, Request
from orcinus.errors import ConfigurationError, InvalidRequest, nearest

_COSTS = ("recompute_token_seconds", "host_block_seconds", "disk_block_seconds")


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Budgets of an iteration, and which admission and policy decide.

    Args:
        num_blocks: KV blocks in the pool.
        block_size: tokens a block.
        max_batch_tokens: token budget of an iteration.
        max_batch_size: most sequences in one plan.
        num_stages: pipeline stages; as many plans of disjoint batches are in flight (Orca's n_workers).
        even_plans: a plan takes one stage's part of the work only, so that all stages have some (see `shares`). Off
            here, as Algorithm 1 has it and recordings from before; an engine turns it on.
        lookahead: 1 lets a decoding sequence be scheduled again before its token is back.
        enable_prefix_caching: blocks with equal beginnings are found and shared (SYSTEMS.md §3). Off here, as in
            recordings from before there was a cache and as Algorithm 1 has it; an engine turns it on.
        target_iteration_seconds: chunks of prompts are cut so that an iteration takes no longer than this, as far as
            those before it tell; None fills `max_batch_tokens`.
        max_wait_seconds: whoever wasn't served for so long comes first in its class (policies priority, prefix, mlfq
            and deadline).
        max_overtakes: of policy prefix: so often somebody who came later may start sooner.
        num_host_blocks: blocks of the host's memory for KV that had to leave the device.
        num_disk_blocks: blocks of a file for KV that is to outlive the engine.
        recompute_token_seconds: what it costs to compute the KV of one token again.
        host_block_seconds: what it costs to copy a block between device and host, either way.
        disk_block_seconds: what it costs to read a block from disk; it is written beside the work.

    Raises:
        ConfigurationError: naming the field, its value and the bound.
    """

    num_blocks: int
    block_size: int = 16
    max_batch_tokens: int = 512
    max_batch_size: int = 64
    num_stages: int = 1
    even_plans: bool = False
    lookahead: Literal[0, 1] = 0
    admission: AdmissionName = "on_demand"
    policy: str = "fcfs"
    enable_prefix_caching: bool = False
    target_iteration_seconds: float | None = None
    max_wait_seconds: float = 10.0
    max_overtakes: int = 256
    num_host_blocks: int = 0
    num_disk_blocks: int = 0
    recompute_token_seconds: float = 1e-4
    host_block_seconds: float = 1e-4
    disk_block_seconds: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("num_blocks", "block_size", "max_batch_tokens", "max_batch_size", "num_stages"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("num_host_blocks", "num_disk_blocks", *_COSTS):
            if not 0 <= getattr(self, name) < inf:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; it must be at least 0 and finite")
        if self.num_host_blocks + self.num_disk_blocks and not self.enable_prefix_caching:
            raise ConfigurationError(
                "KV that leaves the device is found again by its prefix: enable_prefix_caching, or leave out host and "
                "disk"
            )
        for name in ("target_iteration_seconds", "max_wait_seconds"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 < seconds < inf:
                raise ConfigurationError(f"{name} is {seconds}; it must be above 0 and finite")
        if self.max_overtakes < 0:
            raise ConfigurationError(f"max_overtakes is {self.max_overtakes}; it must be at least 0")
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
    def pieces_in_flight(self) -> int:
        """Most plans in flight with work for one sequence: a prompt's may be as many as there are stages."""
        return max(1 + self.lookahead, self.num_stages if self.even_plans else 1)

    @property
    def tiers(self) -> TierSizes:
        """What concerns the KV beside the device's."""
        return TierSizes(
            self.num_host_blocks,
            self.num_disk_blocks,
            self.block_size,
            self.recompute_token_seconds,
            self.host_block_seconds,
            self.disk_block_seconds,
        )

    @property
    def max_running(self) -> int:
        """Most sequences admitted at a time: a full batch for each stage."""
        return self.max_batch_size * self.num_stages


def refuse_impossible(request: Request, config: SchedulerConfig) -> None:
    """Turn away what could not run even alone.

    Raises:
        InvalidRequest: with the numbers, and what to shorten.
    """
    n = request.num_sequences
    worst = worst_case_blocks(request.num_prompt_tokens, request.max_tokens, n, config.block_size)
    # Beams go on together or not at all, so they must fit one plan.
    most = config.max_running if request.beams is None else config.max_batch_size
    if worst > config.num_blocks or n > most:
        raise InvalidRequest(
            f"the request may need {worst} KV blocks and {n} sequences; this engine has "
            f"{config.num_blocks} and {most}. Shorten the prompt, max_tokens or n.",
            code="context_length_exceeded",
        )
    if request.is_whole and request.num_prompt_tokens > config.max_batch_tokens:
        raise InvalidRequest(
            f"the {request.num_prompt_tokens} tokens must run in one iteration, and this engine's iterations have "
            f"{config.max_batch_tokens}. Shorten the input, or start with a larger max_batch_tokens.",
            param="prompt",
            code="context_length_exceeded",
        )
    if len(request.resumed) not in (0, request.params.n):
        raise InvalidRequest(f"resumed holds {len(request.resumed)} answers, n is {request.params.n}", param="resumed")
    if request.beams is not None:
        _refuse_impossible_search(request, request.beams)


def _refuse_impossible_search(request: Request, beams: BeamSearch) -> None:
    """What a search can't do, or what would make it another one."""
    if request.params.n > beams.width:
        raise InvalidRequest(f"n is {request.params.n}, more than the {beams.width} beams of the search", param="n")
    if any(request.resumed):
        raise InvalidRequest("a search tells nothing before its end, so it can't be resumed", param="resumed")
