"""From stored tensors to the parts of a decoder: read, checked, fused, packed and counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from orcinus.kernels import KernelSet, PackedLinear
from orcinus.kernels.quantized import Scheme, quantize
from orcinus.layers.norm import LayerNorm, Norm, RmsNorm
from orcinus.models.config import ModelConfig
from orcinus.models.loader import Checkpoint, StoredTensor, damaged
from orcinus.models.quantized.recipes import Recipe
from orcinus.parallel import Span


class TensorSource(Protocol):
    """Gives tensors by name."""

    def has(self, name: str) -> bool:
        """There is a tensor of this name."""
        ...

    def read(self, name: str, *axes: Span) -> Tensor:
        """That part of tensor `name`, whose shape must be the sizes of `axes`."""
        ...


class HeaderSource:
    """Gives tensors without data: a model built from it proves that names and shapes fit, before a weight is read."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
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


class FileSource:
    """Gives tensors with their data, converted; one file is open at a time.

    Args:
        progress: called after each tensor with the bytes read so far and `num_bytes`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        num_bytes: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._checkpoint, self._dtype, self._device = checkpoint, dtype, device
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
        tensor = part.to(self._device, self._dtype, copy=True)
        self._done += part.nbytes
        if self._progress is not None:
            self._progress(self._done, self._num_bytes)
        return tensor

    def _stored_part(self, stored: StoredTensor, axes: tuple[Span, ...]) -> Tensor:
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


class PartBuilder:
    """Makes a model's parts from tensors by name, and counts the bytes that stay in memory.

    Args:
        recipe: what is quantised on the way; None leaves all as it is stored.
    """

    def __init__(
        self, source: TensorSource, config: ModelConfig, kernels: KernelSet, recipe: Recipe | None = None
    ) -> None:
        self._source, self._config, self._kernels, self._recipe = source, config, kernels, recipe
        self.held_bytes = 0

    def has(self, name: str) -> bool:
        """The checkpoint holds a weight of this name."""
        return self._source.has(f"{name}.weight")

    def table(self, name: str, rows: Span, width: int) -> Tensor:
        """An embedding, or some rows of it: [rows, width]."""
        return self._hold(self._source.read(f"{name}.weight", rows, Span.whole(width)))

    def norm(self, name: str, size: int) -> Norm:
        """A norm over `size` elements, of the family's kind."""
        kind, eps = self._config.family.norm, self._config.norm_eps
        weight = self._source.read(f"{name}.weight", Span.whole(size))
        if kind == "rms_offset":
            # In bfloat16 the sum would lose up to eight bits of a small offset. In place: `+` on a tensor without data
            # would import the compiler.
            weight = weight.float().add_(1)
        if kind != "layer":
            return RmsNorm(self._kernels, self._hold(weight), eps)
        bias = self._source.read(f"{name}.bias", Span.whole(size))
        return LayerNorm(self._kernels, self._hold(weight), self._hold(bias), eps)

    def linear(
        self,
        names: tuple[str, ...],
        outputs: tuple[Span, ...],
        inputs: Span,
        *,
        bias: bool,
        order: Callable[[Tensor], Tensor] | None = None,
        precise: bool = False,
    ) -> PackedLinear:
        """One product of projections side by side, or of a part of each.

        Args:
            names: of the projections, or of one tensor that holds them all.
            outputs: rows of each projection.
            order: puts the rows of the whole, of which there are as many as `outputs` hold, in the order of the parts.
            precise: is never quantised here.
        """
        stored = _stored_rows(names, outputs)
        rows = sum(map(len, outputs))
        weight = _joined(rows, (self._weight(name, part, inputs) for name, part in stored))
        weight = weight if order is None else order(weight)
        scheme = None if precise or self._recipe is None else self._recipe.layers
        if not bias:
            return self._pack(weight, None, scheme)
        joined = _joined(rows, (self._source.read(f"{name}.bias", part) for name, part in stored))
        return self._pack(weight, joined if order is None else order(joined), scheme)

    def bias(self, name: str, size: int) -> Tensor:
        """A bias that is added to the sum of several ranks' products, in float32 as that is."""
        return self._hold(self._source.read(f"{name}.bias", Span.whole(size)).float())

    def head(self, name: str, outputs: Span, in_features: int, *, bias: bool) -> PackedLinear:
        """A product outside the layers, stored [out, in] by all families."""
        weight = self._source.read(f"{name}.weight", outputs, Span.whole(in_features))
        return self._pack(weight, self._source.read(f"{name}.bias", outputs) if bias else None, None)

    def vocabulary_head(self, name: str, words: Span, in_features: int) -> PackedLinear:
        """A product that scores words."""
        weight = self._source.read(f"{name}.weight", words, Span.whole(in_features))
        return self._pack(weight, None, self._head_scheme)

    def tied_head(self, embedding: Tensor) -> PackedLinear:
        """A vocabulary head that shares the embedding's memory where packing leaves weights as they are."""
        if self._head_scheme is not None:
            return self._pack(embedding, None, self._head_scheme)
        packed = self._kernels.pack(embedding, None)
        self.held_bytes += 0 if packed.data is embedding else embedding.nbytes
        return packed

    def _weight(self, name: str, rows: Span, columns: Span) -> Tensor:
        """[rows, columns], however it is stored."""
        if self._config.family.transposed:
            return self._source.read(f"{name}.weight", columns, rows).t().contiguous()
        return self._source.read(f"{name}.weight", rows, columns)

    @property
    def _head_scheme(self) -> Scheme | None:
        return None if self._recipe is None else self._recipe.head

    def _pack(self, weight: Tensor, bias: Tensor | None, scheme: Scheme | None) -> PackedLinear:
        self.held_bytes += 0 if bias is None else bias.nbytes
        if scheme is not None:
            packed = self._kernels.pack_codes(quantize(weight, scheme), bias)
            self.held_bytes += packed.data.nbytes
            return packed
        self.held_bytes += weight.nbytes
        return self._kernels.pack(weight, bias)

    def _hold(self, tensor: Tensor) -> Tensor:
        self.held_bytes += tensor.nbytes
        return tensor


def _shape(axes: tuple[Span, ...]) -> tuple[int, ...]:
    return tuple(axis.size for axis in axes)


def _stored_rows(names: tuple[str, ...], parts: tuple[Span, ...]) -> list[tuple[str, Span]]:
    """Which rows of which tensor make up the parts, in their order."""
    if len(names) == len(parts):
        return list(zip(names, parts, strict=True))
    (name,), total = names, sum(part.size for part in parts)
    if all(part.is_whole for part in parts):
        return [(name, Span.whole(total))]
    starts = accumulate((part.size for part in parts), initial=0)
    return [
        (name, Span(start + part.start, start + part.stop, total)) for start, part in zip(starts, parts, strict=False)
    ]


def _joined(rows: int, parts: Iterator[Tensor]) -> Tensor:
    """Parts below each other, one at a time in memory; `torch.cat` of meta tensors would import the compiler."""
    first = next(parts)
    if len(first) == rows:
        return first
    whole = first.new_empty((rows, *first.shape[1:]))
    whole[: len(first)] = first
    filled = len(first)
    for part in parts:
        whole[filled : filled + len(part)] = part
        filled += len(part)
    return whole
