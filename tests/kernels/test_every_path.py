"""Drawn shapes on every instruction set's code: right against float64 and plain torch, and a row's bits are its own."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from cache_layout import laid
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orcinus.kernels import AttentionBatch, AttentionSpec
from orcinus.kernels.cpu import CpuKernels
from orcinus.kernels.cpu.library import runnable
from orcinus.kernels.reference import ReferenceKernels

pytestmark = [
    pytest.mark.skipif(not runnable(), reason="no native CPU kernels for this processor"),
    pytest.mark.slow,
]

DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
# Half a unit in the last place of the result, and what float32 sums may lose on the way.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8}
SETTINGS = settings(max_examples=40, deadline=None)


@pytest.fixture(scope="module", params=runnable())
def kernels(request: pytest.FixtureRequest) -> CpuKernels:
    return CpuKernels(request.param)


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_within(result: Tensor, exact: Tensor, size: Tensor) -> None:
    """`result` is `exact` to rounding; `size` is the magnitude of the terms that were summed."""
    allowed = ROUNDING[result.dtype] * exact.abs() + 2e-6 * size
    assert bool(((result.double() - exact).abs() <= allowed).all())


# --- products


@SETTINGS
@given(rows=st.integers(1, 140), k=st.integers(1, 700), n=st.integers(1, 200), dtype=DTYPES, seed=st.integers(0, 99))
def test_a_product_of_any_shape_is_the_float64_product_rounded(
    kernels: CpuKernels, rows: int, k: int, n: int, dtype: torch.dtype, seed: int
) -> None:
    x, weight, bias = normal(seed, rows, k, dtype=dtype), normal(seed + 1, n, k, dtype=dtype), normal(seed + 2, n)
    packed = kernels.pack(weight, bias)
    exact = x.double() @ weight.double().T + bias.double()
    size = x.double().abs() @ weight.double().abs().T + bias.double().abs()
    assert_within(kernels.linear(x, packed), exact, size)
    assert_within(kernels.linear_float32(x, packed), exact, size)


@SETTINGS
@given(rows=st.integers(1, 600), k=st.integers(1, 1200), n=st.integers(1, 150), dtype=DTYPES, first=st.integers(0, 599))
def test_rows_of_a_product_have_the_bits_that_they_have_alone(
    kernels: CpuKernels, rows: int, k: int, n: int, dtype: torch.dtype, first: int
) -> None:
    x, packed = normal(1, rows, k, dtype=dtype), kernels.pack(normal(2, n, k, dtype=dtype), normal(3, n))
    with threads(2):
        crowd = kernels.linear(x, packed)
    row = first % rows
    for number in (1, 2):
        with threads(number):
            assert torch.equal(kernels.linear(x[row : row + 1], packed), crowd[row : row + 1])
            assert torch.equal(kernels.linear(x[row:], packed), crowd[row:])


def test_packing_makes_no_second_copy(kernels: CpuKernels) -> None:
    # The widest panel has 64 columns, and a step of k at most 32: what is stored is the weight, rounded up to them.
    weight = normal(4, 1000, 700, dtype=torch.bfloat16)
    assert kernels.pack(weight, None).data.nbytes <= 1024 * 704 * 2
    assert kernels.pack(weight[:960, :640], None).data.nbytes == 960 * 640 * 2


def test_nothing_is_read_past_the_last_row(kernels: CpuKernels) -> None:
    # The last element of x ends where a page does that may not be read.
    libc, page, forbidden, allowed = ctypes.CDLL(None), mmap.PAGESIZE, 0, 3
    area = mmap.mmap(-1, 4 * page)
    memory = torch.frombuffer(area, dtype=torch.bfloat16)
    last = ctypes.c_void_p(memory.data_ptr() + 3 * page), ctypes.c_size_t(page)
    assert libc.mprotect(*last, forbidden) == 0
    try:
        for k in (1, 31, 33, 767):
            end = 3 * page // 2
            x = memory[end - 7 * k : end].view(7, k).copy_(normal(5, 7, k, dtype=torch.bfloat16))
            packed = kernels.pack(normal(6, 80, k, dtype=torch.bfloat16), None)
            assert torch.equal(kernels.linear(x, packed), kernels.linear(x.clone(), packed))
    finally:
        assert libc.mprotect(*last, allowed) == 0


# --- attention


@st.composite
def layers(draw: st.DrawFn) -> AttentionSpec:
    kv_heads, group = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    head_dim = draw(st.sampled_from([8, 20, 32, 64, 72, 80, 96, 128, 160]))
    causal = draw(st.booleans())
    window = draw(st.none() | st.integers(1, 200)) if causal else None
    soft_cap = draw(st.none() | st.sampled_from([2.0, 30.0]))
    return AttentionSpec(kv_heads * group, kv_heads, head_dim, head_dim**-0.5, causal, window, soft_cap)


# (context, new tokens of it) of each sequence.
WORK = st.lists(st.integers(1, 300).flatmap(lambda c: st.tuples(st.just(c), st.integers(1, c))), min_size=1, max_size=4)


def scene(
    spec: AttentionSpec, work: list[tuple[int, int]], dtype: torch.dtype, block_size: int
) -> tuple[Tensor, Tensor, Tensor, AttentionBatch]:
    """Queries, and KV in blocks that lie in no order."""
    counts = [-(-context // block_size) for context, _ in work]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    tables = torch.zeros(len(work), max(counts), dtype=torch.int32)
    for i, blocks in enumerate(order.split(counts)):
        tables[i, : counts[i]] = blocks
    shape = (sum(counts), spec.num_kv_heads, block_size, spec.head_dim)
    q = normal(7, sum(new for _, new in work), spec.num_heads, spec.head_dim, dtype=dtype)
    batch = AttentionBatch(
        query_starts=torch.tensor([0, *(new for _, new in work)]).cumsum(0, dtype=torch.int32),
        context_lengths=torch.tensor([context for context, _ in work], dtype=torch.int32),
        block_tables=tables,
        slots=torch.empty(0, dtype=torch.int64),
        positions=torch.cat([torch.arange(context - new, context) for context, new in work]),
    )
    return q, normal(8, *shape, dtype=dtype), normal(9, *shape, dtype=dtype), batch


def alone(batch: AttentionBatch, sequence: int, row: int) -> AttentionBatch:
    """One new token, `row` of the whole batch, with the context that ends with it."""
    return AttentionBatch(
        query_starts=torch.tensor([0, 1], dtype=torch.int32),
        context_lengths=(batch.positions[row : row + 1] + 1).to(torch.int32),
        block_tables=batch.block_tables[sequence : sequence + 1],
        slots=torch.empty(0, dtype=torch.int64),
        positions=batch.positions[row : row + 1],
    )


@SETTINGS
@given(spec=layers(), work=WORK, dtype=DTYPES, block_size=st.sampled_from([16, 32, 48]))
def test_attention_of_any_layer_agrees_with_plain_torch_in_float64(
    kernels: CpuKernels, spec: AttentionSpec, work: list[tuple[int, int]], dtype: torch.dtype, block_size: int
) -> None:
    q, keys, values, batch = scene(spec, work, dtype, block_size)
    plain = ReferenceKernels()
    exact = plain.attention(q.double(), keys.double(), values.double(), batch, spec)
    size = plain.attention(q.double(), keys.double(), values.double().abs(), batch, spec)
    # bfloat16: the weights may be rounded too (as flash attention does), so the error is of the values' size.
    terms = 10 * size if dtype is torch.float32 else size * (2**-8 / 2e-6)
    assert_within(kernels.attention(q, *laid(kernels, keys, values), batch, spec), exact.double(), terms.double())


@SETTINGS
@given(spec=layers().filter(lambda spec: spec.causal), work=WORK, dtype=DTYPES, drawn=st.integers(0, 10**6))
def test_a_row_attends_alone_with_the_bits_that_it_has_in_company(
    kernels: CpuKernels, spec: AttentionSpec, work: list[tuple[int, int]], dtype: torch.dtype, drawn: int
) -> None:
    q, plain_keys, plain_values, batch = scene(spec, work, dtype, 16)
    keys, values = laid(kernels, plain_keys, plain_values)
    with threads(2):
        crowd = kernels.attention(q, keys, values, batch, spec)
    row = drawn % len(q)
    sequence = int((batch.query_starts <= row).sum()) - 1
    for number in (1, 2):
        with threads(number):
            result = kernels.attention(q[row : row + 1], keys, values, alone(batch, sequence, row), spec)
            assert torch.equal(result[0], crowd[row])
            assert torch.equal(kernels.attention(q, keys, values, batch, spec), crowd)
