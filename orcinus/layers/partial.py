"""Products of which each rank has a part of the inputs: the parts are added up in the order of ranks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from orcinus.kernels import KernelSet, PackedLinear
from orcinus.parallel import TensorGroup


@dataclass(frozen=True, slots=True)
class PartialSum:
    """What makes a rank's part of a product the whole: the others' parts, and then the bias, once."""

    group: TensorGroup
    bias: Tensor | None


def project(kernels: KernelSet, x: Tensor, packed: PackedLinear, partial: PartialSum | None) -> Tensor:
    """[tokens, in] → [tokens, out] in x's dtype; with `partial`, x and the weight are this rank's part of `in`.

    Parts are float32 until they are added up, so that the model's dtype rounds once, as it does in one piece.
    """
    if partial is None:
        return kernels.linear(x, packed)
    total = partial.group.all_reduce(kernels.linear_float32(x, packed))
    if partial.bias is not None:
        total += partial.bias
    return total.to(x.dtype)
