"""From stored tensors to the parts of a decoder: fused, quantised, packed and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate

from torch import Tensor

from orcinus.kernels import KernelSet, PackedLinear
from orcinus.kernels.quantized import QuantizedWeight, Scheme, join_rows, quantize
from orcinus.layers.norm import LayerNorm, Norm, RmsNorm
from orcinus.models.config import ModelConfig
from orcinus.models.quantized.recipes import Recipe
from orcinus.models.sources import TensorSource
from orcinus.parallel import Span


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
        return self._source.has(f"{name}.weight") or self._source.is_quantized(name)

    def table(self, name: str, rows: Span, width: int) -> Tensor:
        """An embedding, or some rows of it: [rows, width]."""
        return self._hold(self._source.read(f"{name}.weight", rows, Span.whole(width)))

    def norm(self, name: str, part: Span) -> Norm:
        """A norm of the family's kind, or a part of its elements."""
        kind, eps = self._config.family.norm, self._config.norm_eps
        weight = self._source.read(f"{name}.weight", part)
        if kind == "rms_offset":
            # In bfloat16 the sum would lose up to eight bits of a small offset. In place: `+` on a tensor without data
            # would import the compiler.
            weight = weight.float().add_(1)
        if kind != "layer":
            return RmsNorm(self._kernels, self._hold(weight), eps)
        bias = self._source.read(f"{name}.bias", part)
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
        weight = self._joined_codes(stored, inputs)
        scheme = None if precise or self._recipe is None else self._recipe.layers
        if weight is None:
            weight = _joined(rows, (self._weight(name, part, inputs) for name, part in stored))
        joined = _joined(rows, (self._source.read(f"{name}.bias", part) for name, part in stored)) if bias else None
        if order is not None:
            weight = weight.map_rows(order) if isinstance(weight, QuantizedWeight) else order(weight)
            joined = None if joined is None else order(joined)
        return self._pack(weight, joined, scheme)

    def bias(self, name: str, size: int) -> Tensor:
        """A bias that is added to the sum of several ranks' products, in float32 as that is."""
        return self._hold(self._source.read(f"{name}.bias", Span.whole(size)).float())

    def head(self, name: str, outputs: Span, in_features: int, *, bias: bool) -> PackedLinear:
        """A product outside the layers, stored [out, in] by all families."""
        weight = self._weight_outside(name, outputs, in_features)
        return self._pack(weight, self._source.read(f"{name}.bias", outputs) if bias else None, None)

    def vocabulary_head(self, name: str, words: Span, in_features: int) -> PackedLinear:
        """A product that scores words."""
        weight = self._weight_outside(name, words, in_features)
        return self._pack(weight, None, self._head_scheme)

    def tied_head(self, name: str, words: Span, embedding: Tensor) -> PackedLinear:
        """A vocabulary head that shares the embedding's memory where packing leaves weights as they are."""
        if self._source.is_quantized(name):
            weight = self._source.quantized(name, words, Span.whole(embedding.shape[1]))
            return self._pack(weight, None, None)
        if self._head_scheme is not None:
            return self._pack(embedding, None, self._head_scheme)
        packed = self._kernels.pack(embedding, None)
        self.held_bytes += 0 if packed.data is embedding else embedding.nbytes
        return packed

    def _weight_outside(self, name: str, rows: Span, in_features: int) -> Tensor | QuantizedWeight:
        columns = Span.whole(in_features)
        if self._source.is_quantized(name):
            return self._source.quantized(name, rows, columns)
        return self._source.read(f"{name}.weight", rows, columns)

    def _joined_codes(self, stored: list[tuple[str, Span]], inputs: Span) -> Tensor | QuantizedWeight | None:
        """Projections side by side if all are stored as integers, in groups of one size."""
        if not all(self._source.is_quantized(name) for name, _ in stored):
            return None
        parts = [self._source.quantized(name, rows, inputs) for name, rows in stored]
        codes = [part for part in parts if isinstance(part, QuantizedWeight)]
        if len(codes) == len(parts):
            return join_rows(codes)
        floats = (part if isinstance(part, Tensor) else part.dequantised().to(self._source.dtype) for part in parts)
        return _joined(sum(len(rows) for _, rows in stored), floats)

    def _weight(self, name: str, rows: Span, columns: Span) -> Tensor:
        """[rows, columns] of floats, however it is stored."""
        if self._source.is_quantized(name):
            codes = self._source.quantized(name, rows, columns)
            return codes if isinstance(codes, Tensor) else codes.dequantised().to(self._source.dtype)
        if self._config.family.transposed:
            return self._source.read(f"{name}.weight", columns, rows).t().contiguous()
        return self._source.read(f"{name}.weight", rows, columns)

    @property
    def _head_scheme(self) -> Scheme | None:
        return None if self._recipe is None else self._recipe.head

    def _pack(self, weight: Tensor | QuantizedWeight, bias: Tensor | None, scheme: Scheme | None) -> PackedLinear:
        self.held_bytes += 0 if bias is None else bias.nbytes
        if scheme is not None and isinstance(weight, Tensor):
            weight = quantize(weight, scheme)
        if isinstance(weight, QuantizedWeight):
            packed = self._kernels.pack_codes(weight, bias)
            self.held_bytes += packed.data.nbytes
            return packed
        self.held_bytes += weight.nbytes
        return self._kernels.pack(weight, bias)

    def _hold(self, tensor: Tensor) -> Tensor:
        self.held_bytes += tensor.nbytes
        return tensor


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
