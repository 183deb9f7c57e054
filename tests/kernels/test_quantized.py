"""Products with weights of 8 and 4 bits: exact where they are integers, and on every path a row has its own bits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orcinus.errors import ConfigurationError
from orcinus.kernels.cpu import CpuKernels
from orcinus.kernels.cpu.library import supported
from orcinus.kernels.quantized import QuantizedWeight, Scheme, join_rows, quantize
from orcinus.kernels.reference import ReferenceKernels

pytestmark = pytest.mark.skipif(not supported(), reason="no native CPU kernels for this processor")
SETTINGS = settings(max_examples=25, deadline=None)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])


@pytest.fixture(scope="module", params=supported())
def kernels(request: pytest.FixtureRequest) -> CpuKernels:
    return CpuKernels(request.param)


@st.composite
def weights(draw: st.DrawFn, grouped: bool = True) -> QuantizedWeight:
    """Any codes, so that the ends of the range and zeros that no quantiser chooses are among them."""
    bits = draw(st.sampled_from([8, 4])) if grouped else 8
    group = draw(st.sampled_from([8, 32, 40, 128, 2000])) if grouped else 2000
    outputs, inputs = draw(st.integers(1, 150)), draw(st.integers(1, 900))
    group = inputs if group > inputs else group
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))

    def codes(columns: int) -> Tensor:
        return torch.randint(0, 1 << bits, (outputs, columns), generator=generator).to(torch.uint8)

    groups = -(-inputs // group)
    scales = torch.rand(outputs, groups, generator=generator) + 0.01
    return QuantizedWeight(codes(inputs), scales, codes(groups) if draw(st.booleans()) else None, bits, group)


def rows_of(number: int, inputs: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(number, inputs, generator=torch.Generator().manual_seed(7)).to(dtype)


def as_integers(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """int64 codes [rows, groups, group] and float32 scales [rows, groups], by the rule that the kernel follows."""
    rows, inputs = x.shape
    groups = -(-inputs // group)
    grouped = torch.nn.functional.pad(x.float(), (0, groups * group - inputs)).view(rows, groups, group)
    largest = grouped.abs().amax(-1)
    # Not `127 / largest`: torch makes a reciprocal and a product of that.
    inverse = torch.where(largest > 0, torch.full_like(largest, 127) / largest, 0.0)
    return (grouped * inverse[..., None]).round().long(), largest / 127


@SETTINGS
@given(weight=weights(grouped=False), rows=st.integers(1, 30), dtype=DTYPES)
def test_with_one_scale_a_row_the_product_is_the_integer_product(
    kernels: CpuKernels, weight: QuantizedWeight, rows: int, dtype: torch.dtype
) -> None:
    outputs, inputs = weight.codes.shape
    x, bias = rows_of(rows, inputs, dtype), rows_of(1, outputs)[0]
    codes, scales = as_integers(x, inputs)
    zeros = 128 if weight.zeros is None else weight.zeros.long()
    whole = codes.flatten(1) @ (weight.codes.long() - zeros).T
    exact = whole.float() * (weight.scales.T * scales) + bias
    # The only roundings are those written above, so nothing may differ on any instruction set.
    assert torch.equal(kernels.linear_float32(x, kernels.pack_codes(weight, bias)), exact)
    assert torch.equal(kernels.linear(x, kernels.pack_codes(weight, bias)), exact.to(dtype))


@SETTINGS
@given(weight=weights(), rows=st.integers(1, 30), dtype=DTYPES)
def test_groups_of_any_form_are_the_float64_sum_of_their_integer_products(
    kernels: CpuKernels, weight: QuantizedWeight, rows: int, dtype: torch.dtype
) -> None:
    inputs = weight.codes.shape[1]
    x = rows_of(rows, inputs, dtype)
    codes, scales = as_integers(x, weight.group)
    rounded = (codes * scales.double()[..., None]).flatten(1)[:, :inputs]
    exact = rounded @ weight.dequantised().double().T
    size = rounded.abs() @ weight.dequantised().double().abs().T
    found = kernels.linear_float32(x, kernels.pack_codes(weight, None))
    assert bool(((found.double() - exact).abs() <= 1e-6 * size).all())


@SETTINGS
@given(weight=weights(), rows=st.integers(2, 420), dtype=DTYPES, first=st.integers(0, 419))
def test_a_row_has_the_bits_that_it_has_alone(
    kernels: CpuKernels, weight: QuantizedWeight, rows: int, dtype: torch.dtype, first: int
) -> None:
    x, packed = rows_of(rows, weight.codes.shape[1], dtype), kernels.pack_codes(weight, None)
    crowd, row = kernels.linear(x, packed), first % rows
    assert torch.equal(kernels.linear(x[row : row + 1], packed), crowd[row : row + 1])
    assert torch.equal(kernels.linear(x[row:], packed), crowd[row:])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_shows_in_its_row_alone(kernels: CpuKernels, value: float) -> None:
    x, packed = rows_of(3, 96), kernels.pack_codes(quantize(rows_of(20, 96), Scheme(8, None)), None)
    x[1, 40] = value
    found = kernels.linear(x, packed).isfinite()
    assert not bool(found[1].any())
    assert bool(found[[0, 2]].all())


def test_memory_is_that_of_the_codes_and_scales(kernels: CpuKernels) -> None:
    weight = rows_of(128, 512)
    assert kernels.pack_codes(quantize(weight, Scheme(8, None)), None).data.nbytes == 128 * (512 + 4)
    assert kernels.pack_codes(quantize(weight, Scheme(4, 32)), None).data.nbytes == 128 * (256 + 16 * 4)


def test_a_group_that_the_kernels_cannot_cut_is_refused(kernels: CpuKernels) -> None:
    with pytest.raises(ConfigurationError, match="scale for each 12 inputs"):
        kernels.pack_codes(quantize(rows_of(4, 48), Scheme(8, 12)), None)


@given(weight=weights())
@SETTINGS
def test_quantising_what_was_dequantised_changes_no_value(weight: QuantizedWeight) -> None:
    scales = weight.scales.bfloat16().float()
    symmetric = QuantizedWeight(weight.codes.clamp(min=1), scales, None, weight.bits, weight.group)
    for rows in symmetric.codes.unbind(0):
        rows[:: weight.group] = (1 << weight.bits) - 1  # each group uses the end of the range
    floats = symmetric.dequantised()
    again = quantize(floats, Scheme(weight.bits, weight.group)).dequantised()
    assert torch.allclose(again, floats, rtol=1e-6, atol=0)


def test_an_error_is_at_most_half_a_step_of_the_widest_scale() -> None:
    weight = rows_of(40, 320)
    for scheme in (Scheme(8, None), Scheme(8, 32), Scheme(4, 32)):
        found = quantize(weight, scheme)
        error = (found.dequantised() - weight).view(40, -1, scheme.group or 320)
        # For 4 bits a narrower scale may cut the largest values off, if that is better for all of them together.
        assert bool((error.square().mean(-1) <= (found.scales.square() / 4) * (1.0 if scheme.bits == 8 else 1.5)).all())


def test_rows_are_joined_in_the_wider_form_unless_their_groups_differ() -> None:
    whole, wide, narrow = (quantize(rows_of(4, 64), s) for s in (Scheme(8, None), Scheme(8, 32), Scheme(4, 32)))
    assert join_rows([whole, narrow]) is None
    for parts in ([narrow, narrow], [narrow, wide]):
        joined = join_rows(parts)
        assert joined is not None
        assert torch.equal(joined.dequantised(), torch.cat([part.dequantised() for part in parts]))


@SETTINGS
@given(weight=weights(), rows=st.integers(0, 150), columns=st.integers(0, 900))
def test_a_part_is_what_the_whole_has_there(weight: QuantizedWeight, rows: int, columns: int) -> None:
    part = weight.part(slice(rows), slice(columns, None))
    if part is None:
        assert math.gcd(min(columns, weight.codes.shape[1]), weight.group) % 8
    else:
        assert torch.equal(part.dequantised(), weight.dequantised()[:rows, columns:])


def test_the_reference_computes_with_the_floats_that_the_codes_stand_for() -> None:
    kernels, weight = ReferenceKernels(), quantize(rows_of(48, 96), Scheme(4, 32))
    x = rows_of(5, 96)
    assert torch.allclose(kernels.linear(x, kernels.pack_codes(weight, None)), x @ weight.dequantised().T, atol=1e-5)
