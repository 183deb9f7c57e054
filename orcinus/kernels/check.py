"""Proves at start, on the machine and the shapes at hand, that a row's bits don't depend on the rows beside it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from orcinus.errors import BatchVarianceError
from orcinus.kernels import KernelSet, PackedLinear

# Rows at once against which the others are compared: more than two tiles, and a short one at the end.
_CROWD = 73
# (first row, rows): alone, at the edges of tiles, at odd offsets, and most of a crowd.
_COMPANIES = ((0, 1), (31, 1), (72, 1), (7, 2), (30, 5), (64, 9), (3, 17), (5, 33), (0, 64))
# Values of a weight repeat after this many, a prime: making fresh random ones would take longer than the check.
_PERIOD = 65_537


def check_batch_invariance(
    kernels: KernelSet, shapes: Iterable[tuple[int, int]], dtype: torch.dtype, device: torch.device
) -> None:
    """Compare rows in small company with the same rows in a crowd, for each (in, out).

    A sample, not a proof: it finds the libraries' known habit of choosing another blocking by the number of rows.

    Raises:
        BatchVarianceError: some row's bits changed; it names the shape and what can be done.
    """
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(_PERIOD, generator=generator)
    for in_features, out_features in shapes:
        x = torch.randn(_CROWD, in_features, generator=generator).to(device, dtype)
        packed = kernels.pack(_repeated(values.to(device, dtype), out_features, in_features), None)
        varying = _varying_company(kernels, x, packed)
        if varying is not None:
            _refuse(kernels, varying, packed, str(dtype))


def check_quantized(
    kernels: KernelSet, products: Iterable[PackedLinear], dtype: torch.dtype, device: torch.device
) -> None:
    """The same for products with weights of integers, one of each form.

    Raises:
        BatchVarianceError: some row's bits changed.
    """
    generator = torch.Generator().manual_seed(0)
    forms = {(p.in_features, p.out_features, p.data.nbytes): p for p in products}
    for packed in forms.values():
        x = torch.randn(_CROWD, packed.in_features, generator=generator).to(device, dtype)
        varying = _varying_company(kernels, x, packed)
        if varying is not None:
            _refuse(kernels, varying, packed, f"{packed.bits} bits")


def _refuse(kernels: KernelSet, varying: tuple[int, int], packed: PackedLinear, precision: str) -> None:
    first, rows = varying
    raise BatchVarianceError(
        f"the {kernels.name} kernels give rows {first} to {first + rows - 1} of a product {packed.in_features} x "
        f"{packed.out_features} in {precision} other bits alone than among {_CROWD}, so answers would depend on the "
        "requests beside them. Choose another kernel set or dtype, or accept it with --allow-batch-variance."
    )


def _repeated(values: Tensor, out_features: int, in_features: int) -> Tensor:
    """A weight [out, in] of repeated values, small enough for any dtype."""
    size = out_features * in_features
    return values.repeat(-(-size // _PERIOD))[:size].view(out_features, in_features)


def _varying_company(kernels: KernelSet, x: Tensor, packed: PackedLinear) -> tuple[int, int] | None:
    """The first (first row, rows) whose bits differ from the crowd's."""
    crowd = kernels.linear(x, packed)
    for first, rows in _COMPANIES:
        if not torch.equal(kernels.linear(x[first : first + rows], packed), crowd[first : first + rows]):
            return first, rows
    return None
