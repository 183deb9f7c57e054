"""The feed-forward half of a decoder layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from orcinus.kernels import Activation, KernelSet, PackedLinear
from orcinus.layers.partial import PartialSum, project


class Mlp(Protocol):
    """[tokens, hidden] → [tokens, hidden]."""

    @property
    def products(self) -> tuple[PackedLinear, ...]:
        """All that it multiplies by."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """[tokens, hidden] → [tokens, hidden]."""
        ...


@dataclass(frozen=True, slots=True)
class GatedMlp:
    """down(act(gate(x)) · up(x)), gate and up in one product. With `partial`, some of the columns (see `project`)."""

    kernels: KernelSet
    input: PackedLinear
    output: PackedLinear
    activation: Activation
    partial: PartialSum | None = None

    @property
    def products(self) -> tuple[PackedLinear, ...]:
        """All that it multiplies by."""
        return self.input, self.output

    def __call__(self, x: Tensor) -> Tensor:
        """[tokens, hidden] → [tokens, hidden]."""
        inner = self.kernels.gated(self.kernels.linear(x, self.input), self.activation)
        return project(self.kernels, inner, self.output, self.partial)


@dataclass(frozen=True, slots=True)
class PlainMlp:
    """down(act(up(x))). With `partial`, some of the columns between (see `project`)."""

    kernels: KernelSet
    input: PackedLinear
    output: PackedLinear
    activation: Activation
    partial: PartialSum | None = None

    @property
    def products(self) -> tuple[PackedLinear, ...]:
        """All that it multiplies by."""
        return self.input, self.output

    def __call__(self, x: Tensor) -> Tensor:
        """[tokens, hidden] → [tokens, hidden]."""
        inner = self.kernels.activate(self.kernels.linear(x, self.input), self.activation)
        return project(self.kernels, inner, self.output, self.partial)
