"""Normalisation of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from orcinus.kernels import KernelSet


class Norm(Protocol):
    """Normalises the last axis."""

    def __call__(self, x: Tensor) -> Tensor:
        """Any leading shape; x's dtype."""
        ...


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """x / rms(x) · weight. The weight may be float32 where x is not."""

    kernels: KernelSet
    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Any leading shape; x's dtype."""
        return self.kernels.rms_norm(x, self.weight, self.eps)


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """(x - mean(x)) / std(x) · weight + bias."""

    kernels: KernelSet
    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Any leading shape; x's dtype."""
        return self.kernels.layer_norm(x, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class AcrossHeads:
    """Norms all heads of a token as one row (OLMoE), where `attention` would norm each by itself."""

    norm: Norm

    def __call__(self, x: Tensor) -> Tensor:
        """[tokens, heads, head_dim]; x's dtype."""
        return self.norm(x.flatten(1)).view(x.shape)
