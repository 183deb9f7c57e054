"""What a user chooses about an engine, parsed once. Imports without torch."""

from __future__ import annotations

import os
import sys
from dataclasses import KW_ONLY, dataclass, fields, replace
from typing import Literal

import msgspec

from orcinus.core.admission import AdmissionName
from orcinus.core.config import SchedulerConfig
from orcinus.engine.messages import EngineDescription
from orcinus.errors import ConfigurationError, nearest


@dataclass(frozen=True)
class EngineConfig:
    """The arguments of `LLM` and the flags of `orcinus serve` that concern the engine.

    Args:
        model: folder of a Hugging Face checkpoint.
        dtype: auto (the checkpoint's), float32 or bfloat16.
        device: auto, cpu or cuda.
        max_model_len: longest prompt + answer; None takes the checkpoint's, or what the memory holds if that is less.
        max_batch_tokens: token budget of an iteration; None measures what fits into 250 ms (on a GPU 2,048).
        max_batch_size: most sequences in one iteration.
        kv_cache_gib: memory for KV blocks; None chooses.
        swap_space_gib: memory of the host for KV blocks that the device has no room for; brought back when that is
            quicker than to compute them again.
        kv_disk_path: folder for KV blocks that are to be found again after a restart; of one engine alone, and private.
        kv_disk_gib: most that the folder takes.
        block_size: tokens a KV block, a multiple of 16.
        admission: on_demand (vLLM) or reserve (Orca).
        policy: order of service: fcfs, priority, prefix (longest cached prefix first), mlfq (short answers first), fair
            (among API keys) or deadline (earliest first).
        lookahead: 1 schedules a decoding sequence again before its token is back.
        enable_prefix_caching: prompts that begin alike share the KV blocks of what they have in common.
        target_iteration_seconds: cuts prompts so that an iteration takes no longer, as far as earlier ones tell; None
            fills max_batch_tokens.
        max_wait_seconds: whoever wasn't served for so long is next (policies priority, prefix, mlfq, deadline).
        max_overtakes: how often those that came later may pass one that waits, under the policy prefix.
        kernels: auto, cpu (native) or reference (plain torch).
        model_impl: orcinus (our own table of families), transformers (its modelling code over our KV: slower), or auto:
            ours where the model has an entry.
        quantization: int8 or int4 weights, made at load from a checkpoint of floats; None takes them as they are
            stored, quantised or not.
        threads: of the matrix kernels, in each worker process; None shares all cores among them.
        tensor_parallel_size: worker processes that each hold a slice of every layer.
        pipeline_parallel_size: stages that each hold some of the layers; each has tensor_parallel_size workers, and as
            many iterations are under way at a time.
        executor: processes keeps the workers on this machine; ray places them on the nodes of a Ray cluster.
        ray_spread: pack puts workers on few nodes, spread on many, strict_spread each on its own.
        insecure_ray: use a Ray cluster that asks nobody for a token.
        allow_batch_variance: start even if the kernels can't keep a request's bits apart from its company.
        record: file that everything core is told and decides is written to, for `orcinus replay`; no text, no tokens.
    """

    model: str
    _: KW_ONLY
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_model_len: int | None = None
    max_batch_tokens: int | None = None
    max_batch_size: int = 64
    kv_cache_gib: float | None = None
    swap_space_gib: float = 0.0
    kv_disk_path: str | None = None
    kv_disk_gib: float = 4.0
    block_size: int = 16
    admission: AdmissionName = "on_demand"
    policy: str = "fcfs"
    lookahead: Literal[0, 1] = 0
    enable_prefix_caching: bool = True
    target_iteration_seconds: float | None = None
    max_wait_seconds: float = 10.0
    max_overtakes: int = 256
    kernels: Literal["auto", "cpu", "reference"] = "auto"
    model_impl: Literal["auto", "orcinus", "transformers"] = "auto"
    quantization: Literal["int8", "int4"] | None = None
    threads: int | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    executor: Literal["processes", "ray"] = "processes"
    ray_spread: Literal["pack", "spread", "strict_spread"] = "pack"
    insecure_ray: bool = False
    allow_batch_variance: bool = False
    record: str | None = None

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigurationError(f"{name} is {value}; it must be between {low} and {high}")
        if self.block_size % 16:
            raise ConfigurationError(f"block_size is {self.block_size}; it must be a multiple of 16")
        if not self.model:
            raise ConfigurationError("model is empty; give the folder of a checkpoint")
        if self.kernels == "cpu" and self.device == "cuda":
            raise ConfigurationError("kernels is cpu, which can't run with device=cuda; use kernels=auto")
        self._check_tiers()
        # What core would refuse is refused now, not after the weights are loaded.
        self.scheduler_config(num_blocks=1, max_batch_tokens=self.max_batch_tokens or self.max_batch_size)

    def _check_tiers(self) -> None:
        if (self.swap_space_gib or self.kv_disk_path) and not self.enable_prefix_caching:
            raise ConfigurationError(
                "swap_space_gib and kv_disk_path keep KV that is found again by its prefix, so they need "
                "enable_prefix_caching"
            )
        if self.kv_disk_path and self.record:
            # Names of what lies on disk are made from tokens, and a recording has none.
            raise ConfigurationError("record can't repeat what depends on a disk; leave out kv_disk_path meanwhile")
        is_one = self.tensor_parallel_size * self.pipeline_parallel_size == 1 and self.executor == "processes"
        if self.kv_disk_path and not is_one:
            raise ConfigurationError(
                "kv_disk_path is for a model in one worker so far; leave it out, or use tensor_parallel_size and "
                "pipeline_parallel_size 1"
            )

    def scheduler_config(self, *, num_blocks: int, max_batch_tokens: int) -> SchedulerConfig:
        """What core is told, once the pool and the budget are known."""
        return SchedulerConfig(
            num_blocks=num_blocks,
            block_size=self.block_size,
            max_batch_tokens=max_batch_tokens,
            max_batch_size=self.max_batch_size,
            num_stages=self.pipeline_parallel_size,
            even_plans=True,
            lookahead=self.lookahead,
            enable_prefix_caching=self.enable_prefix_caching,
            admission=self.admission,
            policy=self.policy,
            target_iteration_seconds=self.target_iteration_seconds,
            max_wait_seconds=self.max_wait_seconds,
            max_overtakes=self.max_overtakes,
        )


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("max_model_len", 1, 2**24),
    ("max_batch_tokens", 1, 2**20),
    ("max_batch_size", 1, 4096),
    ("kv_cache_gib", 1e-6, 2**20),
    ("swap_space_gib", 0, 2**20),
    ("kv_disk_gib", 1e-6, 2**20),
    ("block_size", 16, 1024),
    ("target_iteration_seconds", 1e-6, 3600),
    ("max_wait_seconds", 1e-3, 86400),
    ("max_overtakes", 0, 2**20),
    ("threads", 1, 4 * (os.cpu_count() or 1)),
    ("tensor_parallel_size", 1, 64),
    ("pipeline_parallel_size", 1, 64),
)


def engine_config(options: dict[str, object]) -> EngineConfig:
    """The typed record from keyword arguments.

    Raises:
        ConfigurationError: an unknown option (it names the nearest one), a wrong type or an impossible value.
    """
    known = {field.name for field in fields(EngineConfig)}
    for name in options:
        if name not in known:
            raise ConfigurationError(
                f"unknown option {name!r}{nearest(name, known)}; known: {', '.join(sorted(known))}"
            )
    try:
        return msgspec.convert(options, EngineConfig)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"bad option: {error}") from error


def engine_command(config: EngineConfig, known: EngineDescription | None = None) -> list[str]:
    """The argv that starts an engine process, but for what `EngineSupervisor` adds.

    Args:
        known: what the first engine found out at its start; a later one takes it over instead of measuring again, so
            that whatever the first admitted fits.
    """
    if known is not None:
        config = replace(config, max_batch_tokens=known.max_batch_tokens, max_model_len=known.max_sequence_tokens)
    return [sys.executable, "-m", "orcinus.engine.process", "--config", msgspec.json.encode(config).decode()]
