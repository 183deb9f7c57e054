"""The check at start finds kernels that let a row's bits depend on the rows beside it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from orcinus.errors import BatchVarianceError
from orcinus.kernels import PackedLinear
from orcinus.kernels.check import check_batch_invariance
from orcinus.kernels.cpu.library import supported
from orcinus.kernels.reference import ReferenceKernels

CPU = torch.device("cpu")
SHAPES = [(64, 1003), (768, 1280), (2048, 768)]


class Varying(ReferenceKernels):
    """Adds in another order once there are more than `limit` rows, and only for products of one width."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def linear(self, x: Tensor, packed: PackedLinear) -> Tensor:
        product = super().linear(x, packed)
        return torch.nextafter(product, product + 1) if len(x) > self._limit and packed.in_features == 768 else product


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reference_kernels_pass(dtype: torch.dtype) -> None:
    check_batch_invariance(ReferenceKernels(), SHAPES, dtype, CPU)


@pytest.mark.parametrize("limit", [1, 2, 8, 17, 32, 64])
def test_bits_that_change_beyond_some_number_of_rows_are_found(limit: int) -> None:
    with pytest.raises(BatchVarianceError, match=r"768 x 1280 in torch\.float32.*--allow-batch-variance"):
        check_batch_invariance(Varying(limit), SHAPES, torch.float32, CPU)


# Without AMX oneDNN's blocking doesn't change beyond 32 rows: there is nothing to find.
@pytest.mark.skipif("amx" not in supported(), reason="oneDNN varies with the number of rows only where it uses AMX")
def test_a_widened_tile_is_found() -> None:
    with pytest.raises(BatchVarianceError, match="768 x 1280"):
        check_batch_invariance(ReferenceKernels(row_tile=1024), SHAPES, torch.bfloat16, CPU)
