"""Normalisation of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from orcinus.kernels import KernelSet, PackedLinear
from orcinus.parallel import TensorGroup


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


@dataclass(frozen=True, slots=True)
class AcrossRanks:
    """`AcrossHeads` of an RMS norm where each rank has some of the heads: squares are added up in the order of ranks.

    Args:
        norm: this rank's elements of the weight.
        ones: adds up a row's squares. As a product it gives a row the same bits in any company, which `sum` may not.
        size: elements that all ranks norm, those that several of them hold counted as often.
    """

    norm: RmsNorm
    ones: PackedLinear
    group: TensorGroup
    size: int

    @classmethod
    def of(cls, norm: RmsNorm, group: TensorGroup, size: int) -> AcrossRanks:
        """Of this rank's part of a norm."""
        weight = norm.weight
        ones = torch.ones(1, len(weight), dtype=torch.float32, device=weight.device)
        return cls(norm, norm.kernels.pack(ones, None), group, size)

    def __call__(self, x: Tensor) -> Tensor:
        """[tokens, this rank's heads, head_dim]; x's dtype."""
        row = x.flatten(1).float()
        squares = self.group.all_reduce(self.norm.kernels.linear_float32(row.square(), self.ones))
        # In place from here on; `row` may be x itself.
        scale = squares.div_(self.size).add_(self.norm.eps).rsqrt_()
        return (row * scale).mul_(self.norm.weight).to(x.dtype).view(x.shape)
