"""Where the parts of a model come from: tensors by name, with their data or without."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from orcinus.errors import CheckpointError
from orcinus.kernels.quantized import QuantizedWeight
from orcinus.models.loader import Checkpoint, damaged
from orcinus.models.quantized import gguf
from orcinus.models.quantized.layouts import Layout
from orcinus.models.stored import StoredTensor
from orcinus.parallel import Span


class TensorSource(Protocol):
    """Gives tensors by name, floats in `dtype`."""

    dtype: torch.dtype

    def has(self, name: str) -> bool:
        """There is a tensor of this name."""
        ...

    def read(self, name: str, *axes: Span) -> Tensor:
        """That part of tensor `name`, whose shape must be the sizes of `axes`."""
        ...

    def is_quantized(self, name: str) -> bool:
        """Weight `name` is stored as integers."""
        ...

    def quantized(self, name: str, rows: Span, columns: Span) -> QuantizedWeight | Tensor:
        """That part of a weight [out, in] stored as integers; a tensor where there are no data."""
        ...


class HeaderSource:
    """Gives tensors without data: a model built from it proves that names and shapes fit, before a weight is read."""

    def __init__(self, checkpoint: Checkpoint, layout: Layout | None) -> None:
        self._checkpoint, self._layout = checkpoint, layout
        self.dtype = torch.get_default_dtype()
        self.names: set[str] = set()
        self.num_bytes = 0
        self.num_elements = 0

    def has(self, name: str) -> bool:
        """There is a tensor of this name."""
        return name in self._checkpoint.tensors

    def read(self, name: str, *axes: Span) -> Tensor:
        """An empty tensor on the meta device.

        Raises:
            CheckpointError: missing or misshapen.
        """
        stored = self._checkpoint.stored(name, _shape(axes))
        self.names.add(name)
        tensor = torch.empty([len(axis) for axis in axes], device="meta")
        self.num_elements += tensor.numel()
        self.num_bytes += stored.num_bytes * tensor.numel() // max(1, math.prod(stored.shape))
        return tensor

    def is_quantized(self, name: str) -> bool:
        """Weight `name` is stored as integers."""
        return bool(_parts(self._checkpoint, self._layout, name))

    def quantized(self, name: str, rows: Span, columns: Span) -> Tensor:
        """An empty tensor; whether the parts fit together only their data show."""
        parts = _parts(self._checkpoint, self._layout, name)
        assert self._layout is not None
        names = self._layout.parts(name, self._checkpoint.tensors)
        # A head that is the embedding counts once.
        if not self.names.issuperset(names):
            self.num_elements += len(rows) * len(columns)
            self.num_bytes += sum(part.num_bytes for part in parts)
        self.names.update(names)
        return torch.empty(len(rows), len(columns), device="meta")


class FileSource:
    """Gives tensors with their data, converted; one file is open at a time.

    Args:
        progress: called after each tensor with the bytes read so far and `num_bytes`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        layout: Layout | None,
        dtype: torch.dtype,
        device: torch.device,
        num_bytes: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._checkpoint, self._layout, self.dtype, self._device = checkpoint, layout, dtype, device
        self._num_bytes, self._done, self._progress = num_bytes, 0, progress
        self._opened: tuple[Path, safe_open] | None = None

    def has(self, name: str) -> bool:
        """There is a tensor of this name."""
        return name in self._checkpoint.tensors

    def read(self, name: str, *axes: Span) -> Tensor:
        """An own copy: the stored tensor would keep its file mapped. What lies outside of `axes` is not read.

        Raises:
            CheckpointError: missing, misshapen or unreadable.
        """
        stored = self._checkpoint.stored(name, _shape(axes))
        part = self._stored_part(stored, axes)
        tensor = part.to(self._device, self.dtype, copy=True)
        self._count(part)
        return tensor

    def is_quantized(self, name: str) -> bool:
        """Weight `name` is stored as integers."""
        return bool(_parts(self._checkpoint, self._layout, name))

    def quantized(self, name: str, rows: Span, columns: Span) -> QuantizedWeight | Tensor:
        """Read whole: the parts are small, and a group isn't cut.

        Raises:
            CheckpointError: unreadable, parts that contradict each other, or columns that cut a group.
        """
        parts = _parts(self._checkpoint, self._layout, name)
        assert self._layout is not None
        tensors = tuple(self._as_stored(part) for part in parts)
        weight = self._layout.weight((rows.size, columns.size), tensors, parts)
        for tensor in tensors:
            self._count(tensor)
        if isinstance(weight, Tensor):
            floats = weight[rows.start : rows.stop, columns.start : columns.stop]
            return floats.to(self._device, self.dtype, copy=True)
        part = weight.part(slice(rows.start, rows.stop), slice(columns.start, columns.stop))
        if part is None:
            raise CheckpointError(
                f"{parts[0].file}: {name} has a scale for each {weight.group} inputs, and a rank would get inputs "
                f"{columns.start} to {columns.stop - 1} of it; use another tensor_parallel_size"
            )
        return part.to(self._device)

    def _count(self, part: Tensor) -> None:
        self._done += part.nbytes
        if self._progress is not None:
            self._progress(self._done, self._num_bytes)

    def _as_stored(self, stored: StoredTensor) -> Tensor:
        return gguf.read_bytes(stored) if stored.file.suffix == ".gguf" else self._stored_part(stored, ())

    def _stored_part(self, stored: StoredTensor, axes: tuple[Span, ...]) -> Tensor:
        if stored.file.suffix == ".gguf":
            return gguf.read_floats(stored)[tuple(slice(axis.start, axis.stop) for axis in axes)]
        file = self._open(stored.file)
        if all(axis.is_whole for axis in axes):
            whole: Tensor = file.get_tensor(stored.name)  # type: ignore[no-untyped-call]
            return whole
        part: Tensor = file.get_slice(stored.name)[tuple(slice(axis.start, axis.stop) for axis in axes)]  # type: ignore[no-untyped-call]
        return part

    def _open(self, path: Path) -> safe_open:
        if self._opened is None or self._opened[0] != path:
            try:
                self._opened = path, safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise damaged(path, str(error)) from error
        return self._opened[1]


def _parts(checkpoint: Checkpoint, layout: Layout | None, name: str) -> tuple[StoredTensor, ...]:
    """The stored tensors that make up a weight of integers; none if it is stored as floats."""
    if layout is None:
        return ()
    return tuple(checkpoint.tensors[part] for part in layout.parts(name, checkpoint.tensors))


def _shape(axes: tuple[Span, ...]) -> tuple[int, ...]:
    return tuple(axis.size for axis in axes)
