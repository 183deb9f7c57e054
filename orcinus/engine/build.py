"""Puts an engine together: checkpoint, kernels, memory plan, worker, core. Says what it does while it does it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from orcinus.core.clock import Clock
from orcinus.core.core import Core
from orcinus.core.plan import IterationPlan, NewSequence, Output, Work
from orcinus.core.request import SamplingParams, pack_tokens
from orcinus.engine.config import EngineConfig
from orcinus.engine.loop import Engine
from orcinus.engine.messages import EngineDescription
from orcinus.errors import BatchVarianceError, ConfigurationError, UnknownModel
from orcinus.executor.inline import InlineExecutor
from orcinus.kernels import KernelSet
from orcinus.kernels.select import select_kernels
from orcinus.models import Model, ModelShape
from orcinus.models.config import ModelConfig, load_config
from orcinus.models.decoder import Decoder
from orcinus.models.foreign.check import checked_config, foreign_dtype
from orcinus.models.foreign.decoder import ForeignDecoder
from orcinus.models.generation import load_eos_token_ids
from orcinus.models.loader import resolve_dtype
from orcinus.worker.kv import KVCache, KVShape
from orcinus.worker.memory import GIB, MemoryPlan, free_memory, make_memory_plan, work_area_bytes
from orcinus.worker.worker import Worker

# An iteration longer than this is felt as a stall by everybody who is reading along.
ITERATION_TARGET = 0.25
GPU_BATCH_TOKENS = 2048
MAX_MEASURED_BATCH_TOKENS = 4096
# Chunks smaller than this spend their time on reading earlier KV again (SYSTEMS.md, section 12), and one slow moment
# during the measurement must not cripple the engine for its lifetime.
MIN_MEASURED_BATCH_TOKENS = 256
# Row tiles of the kernels; a budget that is no multiple would waste the last one.
BUDGET_STEP = 32

LOAD_PROGRESS_SECONDS = 2.0

Say = Callable[[str], None]


def build_engine(config: EngineConfig, clock: Clock, say: Say = lambda _: None) -> tuple[Engine, EngineDescription]:
    """Load and check everything that `config` names.

    Args:
        say: told in a line what is being done, for people who wait.

    Raises:
        ConfigurationError, CheckpointError, MemoryPlanError, BatchVarianceError: what is wrong, and the remedy.
    """
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    device = _resolve_device(config)
    model_config = _own_config(config)
    dtype, notice = resolve_dtype(config.dtype, _stored_dtype(config, model_config), device)
    _say_if(say, notice)
    kernels, notice = select_kernels(config.kernels, device, dtype)
    _say_if(say, notice)
    model = _load(config, model_config, dtype, device, kernels, say)
    _check_promise(config, model, say)
    plan = _plan_memory(config, model, dtype, device, say)
    worker = _make_worker(config, model, plan, dtype, device)
    max_batch_tokens = config.max_batch_tokens or _measure_budget(worker, config, plan, device, say)
    if not model.shape.is_causal:
        # Whoever fits the model must fit an iteration.
        max_batch_tokens = max(max_batch_tokens, plan.max_sequence_tokens)
    core = Core(config.scheduler_config(num_blocks=plan.num_blocks, max_batch_tokens=max_batch_tokens))
    description = _describe(config, model, kernels, plan, max_batch_tokens, dtype, device)
    return Engine(core, InlineExecutor(worker), clock), description


def _own_config(config: EngineConfig) -> ModelConfig | None:
    """What our table makes of the checkpoint; None where `transformers` is to run it.

    Raises:
        CheckpointError: unknown to both, or malformed.
    """
    if config.model_impl == "transformers":
        return None
    try:
        return load_config(Path(config.model))
    except UnknownModel:
        if config.model_impl == "orcinus":
            raise
        # It says why not, should `transformers` be missing or not know it either.
        checked_config(Path(config.model))
        return None


def _stored_dtype(config: EngineConfig, model_config: ModelConfig | None) -> str:
    return foreign_dtype(Path(config.model)) if model_config is None else model_config.dtype


def _load(
    config: EngineConfig,
    model_config: ModelConfig | None,
    dtype: torch.dtype,
    device: torch.device,
    kernels: KernelSet,
    say: Say,
) -> Model:
    folder = Path(config.model)
    how = f"{str(dtype).removeprefix('torch.')}, {kernels.name}"
    if model_config is None:
        say(f"loading {config.model} ({how})")
        foreign = ForeignDecoder.load(folder, dtype=dtype, device=device, kernels=kernels)
        say(foreign.notice)
        return foreign
    say(f"loading {config.model} ({model_config.architecture}, {how})")
    return Decoder.load(folder, model_config, dtype=dtype, device=device, kernels=kernels, progress=_load_progress(say))


def _say_if(say: Say, notice: str | None) -> None:
    if notice:
        say(notice)


def _load_progress(say: Say) -> Callable[[int, int], None]:
    """Says how far loading is, once every few seconds: small checkpoints load without a word."""
    said_at = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= LOAD_PROGRESS_SECONDS:
            said_at = time.monotonic()
            say(f"loaded {done / GIB:.1f} of {total / GIB:.1f} GiB")

    return progress


def _resolve_device(config: EngineConfig) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(
            "device is cuda, but torch sees no GPU; use device=cpu, or install a CUDA build of torch"
        )
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def _check_promise(config: EngineConfig, model: Model, say: Say) -> None:
    """A request's bits must not depend on its company: checked on the model's own shapes before anyone relies on it."""
    try:
        model.check_batch_invariance()
    except BatchVarianceError as error:
        if not config.allow_batch_variance:
            raise
        say(f"warning: {error} Starting all the same, as asked: answers may depend on their company.")


def _max_model_len(config: EngineConfig, shape: ModelShape) -> int:
    longest = shape.max_positions
    if config.max_model_len is not None and config.max_model_len > longest:
        raise ConfigurationError(
            f"max_model_len is {config.max_model_len}, but the checkpoint was made for {longest} positions"
        )
    return config.max_model_len or longest


def _plan_memory(config: EngineConfig, model: Model, dtype: torch.dtype, device: torch.device, say: Say) -> MemoryPlan:
    longest = _max_model_len(config, model.shape)
    plan = make_memory_plan(
        weight_bytes=model.weight_bytes,
        work_bytes=work_area_bytes(
            model.shape, dtype, config.max_batch_tokens or GPU_BATCH_TOKENS, config.max_batch_size
        ),
        block_bytes=_kv_shape(config, model.shape, dtype).block_bytes,
        block_size=config.block_size,
        max_sequence_tokens=longest,
        may_shorten=config.max_model_len is None,
        max_batch_size=config.max_batch_size,
        kv_cache_bytes=None if config.kv_cache_gib is None else int(config.kv_cache_gib * GIB),
        free_bytes=free_memory(device),
    )
    if plan.max_sequence_tokens < longest:
        say(f"the KV pool holds {plan.max_sequence_tokens} tokens, so max_model_len is lowered to that")
    return plan


def _kv_shape(config: EngineConfig, shape: ModelShape, dtype: torch.dtype) -> KVShape:
    return KVShape(shape.num_layers, shape.num_kv_heads, shape.head_dim, config.block_size, dtype)


def _make_worker(
    config: EngineConfig, model: Model, plan: MemoryPlan, dtype: torch.dtype, device: torch.device
) -> Worker:
    kv = KVCache(_kv_shape(config, model.shape, dtype), plan.num_blocks, device)
    return Worker(
        model,
        kv,
        block_size=config.block_size,
        max_sequence_tokens=plan.max_sequence_tokens,
        max_batch_size=config.max_batch_size,
        device=device,
    )


def _measure_budget(worker: Worker, config: EngineConfig, plan: MemoryPlan, device: torch.device, say: Say) -> int:
    """Tokens that an iteration runs within 250 ms here, by two prompts run for real (the first one warms up)."""
    if device.type != "cpu":
        return max(GPU_BATCH_TOKENS, config.max_batch_size)
    num_tokens = min(256, plan.max_sequence_tokens)
    seconds = min(_time_prompt(worker, num_tokens, config.block_size, seq_id) for seq_id in (0, 1))
    budget = int(num_tokens / seconds * ITERATION_TARGET) // BUDGET_STEP * BUDGET_STEP
    budget = max(min(budget, MAX_MEASURED_BATCH_TOKENS), MIN_MEASURED_BATCH_TOKENS, config.max_batch_size)
    say(f"{num_tokens / seconds:.0f} prompt tokens/s here, so {budget} tokens an iteration")
    return budget


def _time_prompt(worker: Worker, num_tokens: int, block_size: int, seq_id: int) -> float:
    """Seconds for one prompt of zeros, in an epoch of its own that the engine's first plan (epoch 0) clears away."""
    tokens = pack_tokens([0] * num_tokens)
    blocks = np.arange(-(-num_tokens // block_size), dtype=np.uint32).tobytes()
    new = NewSequence(seq_id, 0, num_tokens, tokens, blocks, SamplingParams(), ())
    plan = IterationPlan(-1 - seq_id, 0, (Work(seq_id, 0, num_tokens, tokens, Output.NOTHING),), (new,))
    started_at = time.perf_counter()
    worker.execute(plan)
    return time.perf_counter() - started_at


def _describe(
    config: EngineConfig,
    model: Model,
    kernels: KernelSet,
    plan: MemoryPlan,
    max_batch_tokens: int,
    dtype: torch.dtype,
    device: torch.device,
) -> EngineDescription:
    dtype_name, shape = str(dtype).removeprefix("torch."), model.shape
    return EngineDescription(
        model=config.model,
        architecture=shape.architecture,
        num_parameters=model.num_parameters,
        dtype=dtype_name,
        device=device.type,
        fingerprint=f"{model.weights_revision[:16]}/{dtype_name}/kv-{dtype_name}/{kernels.name}/tp1-ep1/{model.implementation}",
        weights_revision=model.weights_revision,
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
