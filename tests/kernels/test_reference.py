"""The plain torch kernels against brute force in float64, and their promise: a row's bits are its own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from cache_layout import written_at
from torch import Tensor

from orcinus.kernels import Activation, AttentionBatch, AttentionSpec
from orcinus.kernels.reference import ReferenceKernels

KERNELS = ReferenceKernels()
DTYPES = [torch.float32, torch.bfloat16]
ACTIVATIONS: list[Activation] = ["silu", "gelu", "gelu_tanh", "relu"]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Within a few roundings of the found dtype."""
    tolerance = 3e-6 if found.dtype == torch.float32 else 1.2e-2
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


# --- products


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 31, 32, 33, 100])
def test_linear_is_the_product(dtype: torch.dtype, bias: bool, rows: int) -> None:
    x, weight = randn(rows, 301, dtype=dtype), randn(77, 301, seed=1, dtype=dtype) / 16
    b = randn(77, seed=2, dtype=dtype) if bias else None
    expected = x.double() @ weight.double().T + (0 if b is None else b.double())
    assert_near(KERNELS.linear(x, KERNELS.pack(weight, b)), expected)


def assert_rows_keep_their_bits(kernels: ReferenceKernels, shape: tuple[int, int], dtype: torch.dtype) -> None:
    """All rows at once with one thread, against small companies with one and two."""
    x = randn(101, shape[0], dtype=dtype)
    packed = kernels.pack(randn(shape[1], shape[0], seed=1, dtype=dtype), randn(shape[1], seed=2, dtype=dtype))
    with threads(1):
        crowd = kernels.linear(x, packed)
    for number in (1, 2):
        with threads(number):
            for first, rows in ((0, 1), (100, 1), (3, 2), (31, 2), (17, 31), (5, 32), (4, 33), (30, 64), (0, 101)):
                assert torch.equal(kernels.linear(x[first : first + rows], packed), crowd[first : first + rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(64, 1003), (560, 301), (301, 560), (768, 1280), (768, 768), (2048, 768)])
def test_linear_gives_a_row_the_same_bits_in_any_company(shape: tuple[int, int], dtype: torch.dtype) -> None:
    assert_rows_keep_their_bits(KERNELS, shape, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(768, 4096), (768, 32000), (1024, 3072), (4096, 1024), (512, 128_256)])
def test_wide_linear_gives_a_row_the_same_bits_in_any_company(shape: tuple[int, int], dtype: torch.dtype) -> None:
    assert_rows_keep_their_bits(KERNELS, shape, dtype)


@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="the library's product varies only with AMX")
def test_the_comparison_of_rows_fails_when_the_tile_is_widened() -> None:
    with pytest.raises(AssertionError):
        assert_rows_keep_their_bits(ReferenceKernels(row_tile=1024), (768, 1280), torch.bfloat16)


# --- what is done to each row alone


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_are_the_norms(dtype: torch.dtype) -> None:
    x, weight, bias = randn(5, 3, 77, dtype=dtype), randn(77, seed=1, dtype=dtype), randn(77, seed=2, dtype=dtype)
    wide = x.double()
    rms = wide / (wide.square().mean(-1, keepdim=True) + 0.01).sqrt() * weight.double()
    assert_near(KERNELS.rms_norm(x, weight, 0.01), rms)
    centred = wide - wide.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 0.01).sqrt() * weight.double()
    assert_near(KERNELS.layer_norm(x, weight, bias, 0.01), normed + bias.double())
    assert_near(KERNELS.layer_norm(x, weight, None, 0.01), normed)


def exact_activation(x: Tensor, activation: Activation) -> Tensor:
    if activation == "silu":
        return x * torch.sigmoid(x)
    if activation == "relu":
        return x.clamp(min=0)
    return torch.nn.functional.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_the_activations(dtype: torch.dtype, activation: Activation) -> None:
    x = randn(9, 202, dtype=dtype) * 4
    before = x.clone()
    assert_near(KERNELS.activate(x, activation), exact_activation(x.double(), activation))
    gate, up = x.double().chunk(2, dim=-1)
    assert_near(KERNELS.gated(x, activation), exact_activation(gate, activation) * up)
    assert torch.equal(x, before)


def test_activations_are_finite_and_right_at_the_ends() -> None:
    x = torch.tensor([[-1000.0, -90.0, 0.0, 90.0, 1000.0]])
    for activation in ACTIVATIONS:
        assert KERNELS.activate(x, activation).tolist() == [[0, 0, 0, 90, 1000]]


@pytest.mark.parametrize("rotary_dim", [16, 10])
def test_rotation_turns_pairs_of_halves_and_leaves_the_rest(rotary_dim: int) -> None:
    x, positions = randn(6, 3, 16), torch.tensor([0, 5, 1, 9, 9, 2])
    angles = torch.arange(10, dtype=torch.float64)[:, None] * (100.0 ** -torch.linspace(0, 1, rotary_dim // 2))
    kv = torch.zeros(2, 1, 3, 16, 16)
    batch = written_at(torch.arange(len(x)), positions)
    found = KERNELS.place(x, x, x, batch, torch.stack((angles.cos(), angles.sin()), dim=1).float(), (kv[0], kv[1]))
    half = rotary_dim // 2
    turned = torch.complex(x[..., :half].double(), x[..., half:rotary_dim].double())
    turned = turned * torch.polar(torch.ones(()).double(), angles[positions])[:, None]
    assert_near(found, torch.cat((turned.real, turned.imag, x[..., rotary_dim:].double()), dim=-1))


@pytest.mark.parametrize("columns", [560, 1003, 37])
def test_rows_keep_their_bits_in_norms_and_activations(columns: int) -> None:
    x, weight = randn(90, 2 * columns) * 3, randn(2 * columns, seed=1)
    kernels = [
        lambda rows: KERNELS.rms_norm(rows, weight, 1e-6),
        lambda rows: KERNELS.layer_norm(rows, weight, weight, 1e-6),
        *(lambda rows, name=name: KERNELS.gated(rows, name) for name in ACTIVATIONS),
        *(lambda rows, name=name: KERNELS.activate(rows, name) for name in ACTIVATIONS),
    ]
    for kernel in kernels:
        with threads(1):
            crowd = kernel(x)
        for number in (1, 2):
            with threads(number):
                for first, rows in ((0, 1), (7, 1), (89, 1), (3, 5), (20, 50), (0, 90)):
                    assert torch.equal(kernel(x[first : first + rows]), crowd[first : first + rows])


# --- attention


class Scene:
    """Sequences (tokens new, tokens in all) over shuffled blocks of a pool whose unused slots are NaN."""

    def __init__(
        self, spec: AttentionSpec, lengths: list[tuple[int, int]], dtype: torch.dtype, block_size: int
    ) -> None:
        self.spec, self.lengths, self.dtype, self.block_size = spec, lengths, dtype, block_size
        self.q = [
            randn(all_, spec.num_heads, spec.head_dim, seed=i, dtype=dtype) for i, (_, all_) in enumerate(lengths)
        ]
        kv = [
            randn(2, all_, spec.num_kv_heads, spec.head_dim, seed=99 + i, dtype=dtype)
            for i, (_, all_) in enumerate(lengths)
        ]
        self.k, self.v = [pair[0] for pair in kv], [pair[1] for pair in kv]

    def run(
        self, members: list[int] | None = None, kernels: ReferenceKernels = KERNELS, blocks_seed: int = 0
    ) -> list[Tensor]:
        """The new rows' output of some sequences in one call, which writes their K and V first."""
        members = list(range(len(self.lengths))) if members is None else members
        needed = [-(-self.lengths[i][1] // self.block_size) for i in members]
        order = torch.randperm(sum(needed) + 3, generator=torch.Generator().manual_seed(blocks_seed)).int()
        tables = torch.zeros(len(members), max(needed), dtype=torch.int32)
        for row, (count, ids) in enumerate(zip(needed, order.split([*needed, 3]), strict=False)):
            tables[row, :count] = ids
        shape = (len(order), self.spec.num_kv_heads, self.block_size, self.spec.head_dim)
        keys, values = torch.full(shape, math.nan, dtype=self.dtype), torch.full(shape, math.nan, dtype=self.dtype)
        for row, i in enumerate(members):
            batch = written_at(self._slots(tables[row], torch.arange(len(self.k[i]))))
            KERNELS.place(self.k[i], self.k[i], self.v[i], batch, None, (keys, values))
        news = [self.lengths[i][0] for i in members]
        positions = [torch.arange(self.lengths[i][1] - self.lengths[i][0], self.lengths[i][1]) for i in members]
        batch = AttentionBatch(
            query_starts=torch.tensor([0, *news]).cumsum(0).int(),
            context_lengths=torch.tensor([self.lengths[i][1] for i in members], dtype=torch.int32),
            block_tables=tables,
            slots=torch.cat([self._slots(tables[row], places) for row, places in enumerate(positions)]),
            positions=torch.cat(positions),
        )
        q = torch.cat([self.q[i][-self.lengths[i][0] :] for i in members])
        return list(kernels.attention(q, keys, values, batch, self.spec).split(news))

    def _slots(self, table: Tensor, positions: Tensor) -> Tensor:
        return table[positions // self.block_size].long() * self.block_size + positions % self.block_size

    def exact(self) -> list[Tensor]:
        """Brute force in float64."""
        return [self._exact(i)[-new:] for i, (new, _) in enumerate(self.lengths)]

    def _exact(self, i: int) -> Tensor:
        group = self.spec.num_heads // self.spec.num_kv_heads
        k, v = (x.double().repeat_interleave(group, dim=1).transpose(0, 1) for x in (self.k[i], self.v[i]))
        scores = self.q[i].double().transpose(0, 1) @ k.transpose(1, 2) * self.spec.scale  # [heads, rows, keys]
        if self.spec.soft_cap is not None:
            scores = torch.tanh(scores / self.spec.soft_cap) * self.spec.soft_cap
        behind = torch.arange(len(self.k[i]))[:, None] - torch.arange(len(self.k[i]))
        if self.spec.causal:
            scores = scores.masked_fill(behind < 0, -math.inf)
        if self.spec.window is not None:
            scores = scores.masked_fill(behind >= self.spec.window, -math.inf)
        return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


LENGTHS = [(1, 1), (1, 300), (130, 130), (40, 200), (1, 128), (1, 129), (7, 7), (64, 256)]
SPECS = [
    AttentionSpec(4, 2, 64, 0.125),
    AttentionSpec(7, 1, 80, 0.1),
    AttentionSpec(3, 3, 16, 0.3),
    AttentionSpec(96, 1, 16, 0.3),
    AttentionSpec(4, 2, 128, 0.1, window=33),
    AttentionSpec(4, 2, 64, 0.3, soft_cap=2.0),
    AttentionSpec(4, 4, 64, 0.125, causal=False),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_is_attention_whatever_lies_in_unused_slots(spec: AttentionSpec, dtype: torch.dtype) -> None:
    scene = Scene(spec, LENGTHS, dtype, 16)
    for found, expected in zip(scene.run(), scene.exact(), strict=True):
        assert_near(found, expected)


@pytest.mark.parametrize("block_size", [16, 48, 64, 256])
def test_attention_is_attention_at_every_block_size(block_size: int) -> None:
    scene = Scene(SPECS[0], LENGTHS, torch.float32, block_size)
    for found, expected in zip(scene.run(), scene.exact(), strict=True):
        assert_near(found, expected)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_gives_a_row_the_same_bits_in_any_company(spec: AttentionSpec, dtype: torch.dtype) -> None:
    scene = Scene(spec, LENGTHS, dtype, 16)
    with threads(1):
        crowd = scene.run()
    decodes = [i for i, (new, _) in enumerate(LENGTHS) if new == 1]
    for number in (1, 2):
        with threads(number):
            for members in [*([i] for i in range(len(LENGTHS))), decodes, [3, 1], [7, 2, 0]]:
                for i, found in zip(members, scene.run(members, blocks_seed=number), strict=True):
                    assert torch.equal(found, crowd[i])


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.causal], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_gives_a_row_the_same_bits_however_the_prompt_is_cut(spec: AttentionSpec, dtype: torch.dtype) -> None:
    whole = Scene(spec, [(300, 300)], dtype, 16).run()[0]
    cut = Scene(spec, [(300, 300)], dtype, 16)
    for start, end in ((0, 1), (1, 2), (2, 19), (19, 127), (127, 128), (128, 130), (130, 299), (299, 300)):
        part = Scene(spec, [(end - start, end)], dtype, 16)
        part.q, part.k, part.v = ([x[0][:end]] for x in (cut.q, cut.k, cut.v))
        assert torch.equal(part.run()[0], whole[start:end])


def test_a_row_of_nan_spoils_its_own_sequence_only() -> None:
    scene = Scene(SPECS[0], LENGTHS, torch.float32, 16)
    before = scene.run()
    scene.q[3][-1], scene.k[2][5] = math.nan, math.nan
    for i, (found, expected) in enumerate(zip(scene.run(), before, strict=True)):
        assert torch.equal(found, expected) == (i not in (2, 3))
    assert torch.equal(scene.run()[3][:-1], before[3][:-1])
