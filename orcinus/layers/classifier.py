"""From a pooled state to scores of classes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from orcinus.kernels import KernelSet, PackedLinear


@dataclass(frozen=True, slots=True)
class Classifier:
    """output(pooled), or output(tanh(pooler(pooled))) where there is a pooler."""

    kernels: KernelSet
    pooler: PackedLinear | None
    output: PackedLinear

    @property
    def products(self) -> tuple[PackedLinear, ...]:
        """All that it multiplies by."""
        return (self.output,) if self.pooler is None else (self.pooler, self.output)

    def __call__(self, pooled: Tensor) -> Tensor:
        """[rows, width] → float32 [rows, labels]."""
        if self.pooler is not None:
            pooled = self.kernels.linear(pooled, self.pooler).float().tanh_().to(pooled.dtype)
        return self.kernels.linear_float32(pooled, self.output)
