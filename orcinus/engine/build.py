"""Puts an engine together: checkpoint, kernels, memory plan, worker, core. Says what it does while it does it."""

from __future__ import annotations

import itertools
import secrets
import time
from dataclasses import replace
from io import FileIO
from pathlib import Path

import msgspec
import numpy as np
import torch

from orcinus.core.clock import Clock
from orcinus.core.core import Core
from orcinus.core.plan import IterationPlan, NewSequence, Output, Work
from orcinus.core.recording import Recorder
from orcinus.core.request import SamplingParams, pack_tokens
from orcinus.engine.config import EngineConfig
from orcinus.engine.loop import Engine
from orcinus.engine.messages import EngineDescription
from orcinus.errors import ConfigurationError, MemoryPlanError
from orcinus.executor import Executor
from orcinus.executor.inline import InlineWorkers
from orcinus.executor.processes import ProcessWorkers
from orcinus.executor.workers import Workers
from orcinus.models import ModelShape
from orcinus.models.generation import load_eos_token_ids
from orcinus.worker.build import DiskSpace, Memory, OnProgress, Say, WorkerConfig, WorkerDescription
from orcinus.worker.disk import slots_in
from orcinus.worker.memory import GIB, MemoryPlan, free_memory, make_memory_plan, work_area_bytes

# An iteration longer than this is felt as a stall by everybody who is reading along.
ITERATION_TARGET = 0.25
GPU_BATCH_TOKENS = 2048
MAX_MEASURED_BATCH_TOKENS = 4096
# Chunks smaller than this spend their time on reading earlier KV again (SYSTEMS.md, section 12), and one slow moment
# during the measurement must not cripple the engine for its lifetime.
MIN_MEASURED_BATCH_TOKENS = 256
# Row tiles of the kernels; a budget that is no multiple would waste the last one.
BUDGET_STEP = 32
# Where nothing was measured: a prompt on a GPU, a copy between device and host, and a read from an SSD. Which of them
# is quicker matters, not by how much.
PROMPT_TOKENS_PER_SECOND = 10_000
HOST_BYTES_PER_SECOND = 4e9
DISK_BYTES_PER_SECOND = 5e8


def build_engine(
    config: EngineConfig, clock: Clock, say: Say = lambda _: None, on_progress: OnProgress = lambda: None
) -> tuple[Engine, EngineDescription]:
    """Load and check everything that `config` names.

    Args:
        say: told in a line what is being done, for people who wait.
        on_progress: called whenever a layer is done, or by other processes now and then while layers are done.

    Raises:
        ConfigurationError, CheckpointError, MemoryPlanError, BatchVarianceError: what is wrong, and the remedy.
    """
    workers = _start_workers(config, say, on_progress)
    try:
        return engine_over(workers, config, clock, say)
    except BaseException:
        workers.close()
        raise


def _start_workers(config: EngineConfig, say: Say, on_progress: OnProgress) -> Workers:
    """In this process if it is one, else in processes of their own, here or on a cluster."""
    own = worker_config(config)
    if config.executor == "ray":
        return _start_on_ray(config, own, say, on_progress)
    if config.tensor_parallel_size * config.pipeline_parallel_size == 1:
        return InlineWorkers(own, say, on_progress)
    return ProcessWorkers.start(own, config.tensor_parallel_size, config.pipeline_parallel_size, say, on_progress)


def _start_on_ray(config: EngineConfig, own: WorkerConfig, say: Say, on_progress: OnProgress) -> Workers:
    try:
        # An extra, and slow to import.
        from orcinus.executor.ray import start_ray_workers
    except ModuleNotFoundError as error:
        if error.name not in ("ray", "cryptography"):
            raise
        raise ConfigurationError(
            f"executor is ray, and {error.name} isn't installed: pip install 'orcinus-llm[ray]'"
        ) from error
    return start_ray_workers(
        own,
        config.tensor_parallel_size,
        config.pipeline_parallel_size,
        say,
        on_progress,
        spread=config.ray_spread,
        insecure=config.insecure_ray,
    )


def worker_config(config: EngineConfig) -> WorkerConfig:
    """What concerns a worker."""
    return WorkerConfig(
        model=config.model,
        dtype=config.dtype,
        device=config.device,
        kernels=config.kernels,
        model_impl=config.model_impl,
        quantization=config.quantization,
        threads=config.threads,
        allow_batch_variance=config.allow_batch_variance,
        block_size=config.block_size,
        max_batch_size=config.max_batch_size,
    )


def engine_over(
    workers: Workers, config: EngineConfig, clock: Clock, say: Say = lambda _: None
) -> tuple[Engine, EngineDescription]:
    """The rest, once the weights are loaded.

    Raises:
        ConfigurationError, MemoryPlanError: what is wrong, and the remedy.
    """
    plan = _plan_memory(config, workers.descriptions, say)
    answering = workers.descriptions[-config.tensor_parallel_size]
    executor = workers.with_memory(_memory(config, plan, _fingerprint(config, answering)))
    max_batch_tokens = config.max_batch_tokens or _measure_budget(executor, config, plan, answering.device, say)
    if not answering.shape.is_causal:
        # Whoever fits the model must fit an iteration.
        max_batch_tokens = max(max_batch_tokens, plan.max_sequence_tokens)
    tiers = _tiers(plan, None if config.max_batch_tokens else max_batch_tokens / ITERATION_TARGET)
    told = config.scheduler_config(num_blocks=plan.num_blocks, max_batch_tokens=max_batch_tokens)
    core = Core(msgspec.structs.replace(told, **tiers), on_disk=workers.on_disk)
    recorded = core if config.record is None else _recorder(core, Path(config.record), say)
    return Engine(recorded, executor, clock), _describe(config, answering, plan, max_batch_tokens)


def _recorder(core: Core, path: Path, say: Say) -> Recorder:
    """Writes to a new file: an engine that follows a dead one takes the next number."""
    paths = (path if number == 0 else path.with_name(f"{path.name}.{number}") for number in itertools.count())
    free = next(each for each in paths if not each.exists())
    try:
        # Unbuffered: what was written before a crash is what one wants to read after it.
        file = free.open("xb", buffering=0)
    except OSError as error:
        raise ConfigurationError(f"record is {path}, which can't be written: {error.strerror}") from error
    free.chmod(0o600)
    say(f"recording to {free}")
    return Recorder(core, secrets.token_bytes(32), lambda line: _write_line(file, line))


def _write_line(file: FileIO, line: bytes) -> None:
    file.write(line + b"\n")


def _memory(config: EngineConfig, plan: MemoryPlan, fingerprint: str) -> Memory:
    disk = None
    if config.kv_disk_path is not None:
        disk = DiskSpace(config.kv_disk_path, plan.num_disk_blocks, f"{fingerprint}/{plan.block_size}")
    return Memory(plan.num_blocks, plan.max_sequence_tokens, plan.num_host_blocks, disk)


def _tiers(plan: MemoryPlan, tokens_per_second: float | None) -> dict[str, int | float]:
    """What core has to know of KV beside the device's: how much there is, and what bringing it back costs."""
    if not plan.num_host_blocks + plan.num_disk_blocks:
        return {}
    return {
        "num_host_blocks": plan.num_host_blocks,
        "num_disk_blocks": plan.num_disk_blocks,
        "recompute_token_seconds": 1 / (tokens_per_second or PROMPT_TOKENS_PER_SECOND),
        "host_block_seconds": plan.block_bytes / HOST_BYTES_PER_SECOND,
        "disk_block_seconds": plan.block_bytes / DISK_BYTES_PER_SECOND,
    }


def _max_model_len(config: EngineConfig, shape: ModelShape) -> int:
    longest = shape.max_positions
    if config.max_model_len is not None and config.max_model_len > longest:
        raise ConfigurationError(
            f"max_model_len is {config.max_model_len}, but the checkpoint was made for {longest} positions"
        )
    return config.max_model_len or longest


def _plan_memory(config: EngineConfig, workers: list[WorkerDescription], say: Say) -> MemoryPlan:
    """One plan for all workers, who share this machine's memory."""
    shapes = [worker.shape for worker in workers]
    longest = _max_model_len(config, shapes[0])
    dtype = getattr(torch, workers[0].dtype)
    budget = config.max_batch_tokens or GPU_BATCH_TOKENS
    plan = make_memory_plan(
        weight_bytes=sum(worker.weight_bytes for worker in workers),
        work_bytes=sum(work_area_bytes(shape, dtype, budget, config.max_batch_size) for shape in shapes),
        block_bytes=sum(worker.block_bytes for worker in workers),
        block_size=config.block_size,
        max_sequence_tokens=longest,
        may_shorten=config.max_model_len is None,
        max_batch_size=config.max_batch_size,
        kv_cache_bytes=None if config.kv_cache_gib is None else int(config.kv_cache_gib * GIB),
        free_bytes=free_memory(torch.device(workers[0].device)),
    )
    plan = _with_tiers(plan, config)
    if plan.max_sequence_tokens < longest:
        say(f"the KV pool holds {plan.max_sequence_tokens} tokens, so max_model_len is lowered to that")
    return plan


def _with_tiers(plan: MemoryPlan, config: EngineConfig) -> MemoryPlan:
    """With room for KV beside the device's.

    Raises:
        MemoryPlanError: the host has less.
    """
    num_bytes = int(config.swap_space_gib * GIB)
    free = free_memory(torch.device("cpu")) - plan.kv_bytes
    if num_bytes > free:
        raise MemoryPlanError(
            f"swap_space_gib is {config.swap_space_gib}, but only {free / GIB:.2f} GiB of the host's memory are free "
            "beside the KV pool; lower it"
        )
    on_disk = 0 if config.kv_disk_path is None else slots_in(int(config.kv_disk_gib * GIB), plan.block_bytes)
    return replace(plan, num_host_blocks=num_bytes // plan.block_bytes, num_disk_blocks=on_disk)


def _measure_budget(executor: Executor, config: EngineConfig, plan: MemoryPlan, device: str, say: Say) -> int:
    """Tokens that an iteration runs within 250 ms here, by two prompts run for real (the first one warms up)."""
    if device != "cpu":
        return max(GPU_BATCH_TOKENS, config.max_batch_size)
    num_tokens = min(256, plan.max_sequence_tokens)
    seconds = min(_time_prompt(executor, num_tokens, config.block_size, seq_id) for seq_id in (0, 1))
    budget = int(num_tokens / seconds * ITERATION_TARGET) // BUDGET_STEP * BUDGET_STEP
    budget = max(min(budget, MAX_MEASURED_BATCH_TOKENS), MIN_MEASURED_BATCH_TOKENS, config.max_batch_size)
    say(f"{num_tokens / seconds:.0f} prompt tokens/s here, so {budget} tokens an iteration")
    return budget


def _time_prompt(executor: Executor, num_tokens: int, block_size: int, seq_id: int) -> float:
    """Seconds for one prompt of zeros, in an epoch of its own that the engine's first plan (epoch 0) clears away."""
    tokens = pack_tokens([0] * num_tokens)
    blocks = np.arange(-(-num_tokens // block_size), dtype=np.uint32).tobytes()
    new = NewSequence(seq_id, 0, num_tokens, tokens, blocks, SamplingParams(), ())
    plan = IterationPlan(-1 - seq_id, 0, (Work(seq_id, 0, num_tokens, tokens, Output.NOTHING),), (new,))
    started_at = time.perf_counter()
    executor.submit(plan)
    executor.collect()
    return time.perf_counter() - started_at


def _fingerprint(config: EngineConfig, worker: WorkerDescription) -> str:
    """What bits depend on. The number of stages is no part of it: it moves none."""
    dtype, degrees = worker.dtype, f"tp{config.tensor_parallel_size}-ep1"
    return f"{worker.weights_revision[:16]}/{dtype}/kv-{dtype}/{worker.kernels}/{degrees}/{worker.implementation}"


def _describe(
    config: EngineConfig, worker: WorkerDescription, plan: MemoryPlan, max_batch_tokens: int
) -> EngineDescription:
    """`worker` is the one that answers."""
    dtype, shape = worker.dtype, worker.shape
    return EngineDescription(
        model=config.model,
        architecture=shape.architecture,
        num_parameters=worker.num_parameters,
        dtype=dtype,
        device=worker.device,
        fingerprint=_fingerprint(config, worker),
        weights_revision=worker.weights_revision,
        vocab_size=shape.vocab_size,
        eos_token_ids=load_eos_token_ids(Path(config.model)),
        max_sequence_tokens=plan.max_sequence_tokens,
        max_request_tokens=plan.num_blocks * plan.block_size,
        max_batch_size=config.max_batch_size,
        max_batch_tokens=max_batch_tokens,
        memory_plan=str(plan),
        generates=shape.generates,
        hidden_size=shape.hidden_size,
        labels=shape.labels,
        pooling=shape.pooling,
        is_causal=shape.is_causal,
        pair_segments=shape.pair_segments,
    )
