"""From a checkpoint to a worker, in two steps: the part of the model that it holds, then the memory that it gets."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import torch

from orcinus.errors import BatchVarianceError, ConfigurationError, UnknownModel
from orcinus.kernels import KernelSet
from orcinus.kernels.select import select_kernels
from orcinus.models import Model, ModelShape
from orcinus.models.config import ModelConfig, load_config
from orcinus.models.decoder import Decoder
from orcinus.models.foreign.check import checked_config, foreign_dtype
from orcinus.models.foreign.decoder import ForeignDecoder
from orcinus.models.loader import resolve_dtype
from orcinus.models.quantized.recipes import RECIPES, RecipeName
from orcinus.models.slices import Slices
from orcinus.parallel import Place
from orcinus.parallel.wiring import Links
from orcinus.worker.disk import Disk
from orcinus.worker.kv import KVCache, KVShape
from orcinus.worker.memory import GIB
from orcinus.worker.tiers import KVTiers
from orcinus.worker.worker import Worker

LOAD_PROGRESS_SECONDS = 2.0

Say = Callable[[str], None]
OnProgress = Callable[[], None]


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told before it loads; see `EngineConfig`.

    Args:
        threads: of the matrix kernels of each worker; None shares the cores among the workers.
    """

    model: str
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    kernels: Literal["auto", "cpu", "reference"] = "auto"
    model_impl: Literal["auto", "orcinus", "transformers"] = "auto"
    quantization: RecipeName | None = None
    threads: int | None = None
    allow_batch_variance: bool = False
    block_size: int = 16
    max_batch_size: int = 64


class WorkerDescription(msgspec.Struct, frozen=True, tag="description"):
    """What a worker has loaded. Bytes are its own, `num_parameters` the whole model's."""

    shape: ModelShape
    num_parameters: int
    weight_bytes: int
    block_bytes: int
    weights_revision: str
    implementation: str
    kernels: str
    dtype: str
    device: str


class DiskSpace(msgspec.Struct, frozen=True):
    """A folder for KV that is to outlive the worker; see `worker/disk.py`."""

    path: str
    num_blocks: int
    fingerprint: str


class Memory(msgspec.Struct, frozen=True, tag="memory"):
    """What a worker may take beside its weights."""

    num_blocks: int
    max_sequence_tokens: int
    num_host_blocks: int = 0
    disk: DiskSpace | None = None


@dataclass(frozen=True, slots=True)
class LoadedWorker:
    """A worker that has its weights and waits for its memory."""

    config: WorkerConfig
    place: Place
    links: Links
    model: Model
    kernels: KernelSet
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def load(cls, config: WorkerConfig, place: Place, links: Links, say: Say) -> LoadedWorker:
        """Read and check this worker's part.

        Raises:
            ConfigurationError, CheckpointError, BatchVarianceError: what is wrong, and the remedy.
        """
        torch.set_num_threads(_threads(config, place))
        device = _resolve_device(config, place)
        model_config = _own_config(config, place)
        dtype, notice = resolve_dtype(config.dtype, _stored_dtype(config, model_config), device)
        _say_if(say, notice)
        kernels, notice = select_kernels(config.kernels, device, dtype)
        _say_if(say, notice)
        loaded = cls(
            config,
            place,
            links,
            _load(config, model_config, dtype, device, kernels, place, links, say),
            kernels,
            dtype,
            device,
        )
        loaded._check_promise(say)
        return loaded

    @property
    def description(self) -> WorkerDescription:
        """For those who plan the memory, and for people."""
        model = self.model
        return WorkerDescription(
            shape=model.shape,
            num_parameters=model.num_parameters,
            weight_bytes=model.weight_bytes,
            block_bytes=self._kv_shape.block_bytes,
            weights_revision=model.weights_revision,
            implementation=model.implementation,
            kernels=self.kernels.name,
            dtype=str(self.dtype).removeprefix("torch."),
            device=self.device.type,
        )

    def open_disk(self, space: DiskSpace, say: Say) -> Disk:
        """What earlier engines have left is known then.

        Raises:
            ConfigurationError: it can't be used.
        """
        return Disk(
            Path(space.path),
            num_slots=space.num_blocks,
            block_bytes=self._kv_shape.block_bytes,
            fingerprint=space.fingerprint,
            say=say,
        )

    def with_memory(self, memory: Memory, disk: Disk | None = None, on_progress: OnProgress | None = None) -> Worker:
        """Take the memory, and be ready for plans. `on_progress` is called whenever a layer is done."""
        kv = KVCache(self._kv_shape, memory.num_blocks, self.device)
        return Worker(
            self.model,
            kv,
            KVTiers(kv, memory.num_host_blocks, disk),
            block_size=self.config.block_size,
            max_sequence_tokens=memory.max_sequence_tokens,
            max_batch_size=self.config.max_batch_size,
            device=self.device,
            place=self.place,
            links=self.links,
            on_progress=on_progress,
        )

    @property
    def _kv_shape(self) -> KVShape:
        shape = self.model.shape
        return KVShape(shape.num_layers, shape.num_kv_heads, shape.head_dim, self.config.block_size, self.dtype)

    def _check_promise(self, say: Say) -> None:
        """A request's bits must not depend on its company: checked on the part's own shapes first."""
        try:
            self.model.check_batch_invariance()
        except BatchVarianceError as error:
            if not self.config.allow_batch_variance:
                raise
            say(f"warning: {error} Starting all the same, as asked: answers may depend on their company.")


def check_layout(config: WorkerConfig, tensor_size: int, num_stages: int) -> None:
    """Whether a model can be held so, before anybody is started for it.

    Raises:
        CheckpointError, ConfigurationError: it can't; what would do.
    """
    place = Place(0, tensor_size, 0, num_stages)
    _resolve_device(config, place)
    model_config = _own_config(config, place)
    assert model_config is not None, "refused"
    Slices.of(model_config, place)


def _threads(config: WorkerConfig, place: Place) -> int:
    return config.threads or max(1, (os.cpu_count() or 1) // (place.tensor_size * place.num_stages))


def _resolve_device(config: WorkerConfig, place: Place) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(
            "device is cuda, but torch sees no GPU; use device=cpu, or install a CUDA build of torch"
        )
    name = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    if name == "cuda" and place.tensor_size * place.num_stages > 1:
        raise ConfigurationError(
            "several workers share a model on the CPU only, so far; use device=cpu, or tensor_parallel_size and "
            "pipeline_parallel_size 1"
        )
    return torch.device(name)


def _own_config(config: WorkerConfig, place: Place) -> ModelConfig | None:
    """What our table makes of the checkpoint; None where `transformers` is to run it.

    Raises:
        CheckpointError: unknown to both, or malformed.
        ConfigurationError: it is to run in several workers, and `transformers` would have to run it.
    """
    if config.model_impl != "transformers":
        try:
            found = load_config(Path(config.model))
            if found.layout is not None and config.quantization is not None:
                raise ConfigurationError(
                    f"quantization is {config.quantization}, but {config.model} is quantised already; leave it out"
                )
            return found
        except UnknownModel:
            if config.model_impl == "orcinus":
                raise
            # It says why not, should `transformers` be missing or not know it either.
            checked_config(Path(config.model))
    if config.quantization is not None:
        raise ConfigurationError(
            f"quantization is {config.quantization}, but {config.model} would run through transformers' own modelling "
            "code, whose weights stay floats; leave quantization out"
        )
    if place.tensor_size * place.num_stages > 1:
        raise ConfigurationError(
            f"{config.model} would run through transformers' own modelling code, which runs in one worker only; use "
            "tensor_parallel_size and pipeline_parallel_size 1"
        )
    return None


def _stored_dtype(config: WorkerConfig, model_config: ModelConfig | None) -> str:
    return foreign_dtype(Path(config.model)) if model_config is None else model_config.dtype


def _load(
    config: WorkerConfig,
    model_config: ModelConfig | None,
    dtype: torch.dtype,
    device: torch.device,
    kernels: KernelSet,
    place: Place,
    links: Links,
    say: Say,
) -> Model:
    folder = Path(config.model)
    how = ", ".join(filter(None, (str(dtype).removeprefix("torch."), config.quantization, kernels.name)))
    if model_config is None:
        say(f"loading {config.model} ({how})")
        foreign = ForeignDecoder.load(folder, dtype=dtype, device=device, kernels=kernels)
        say(foreign.notice)
        return foreign
    say(f"loading {config.model} ({model_config.architecture}, {how})")
    return Decoder.load(
        folder,
        model_config,
        dtype=dtype,
        device=device,
        kernels=kernels,
        progress=_load_progress(say),
        place=place,
        group=links.group,
        recipe=None if config.quantization is None else RECIPES[config.quantization],
    )


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
