"""The native CPU kernels against brute force in float64, on every instruction set that this machine has."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from cache_layout import laid, written_at
from torch import Tensor

from orcinus.errors import ConfigurationError, PlanError
from orcinus.kernels import AttentionBatch, AttentionSpec
from orcinus.kernels.cpu import CpuKernels, NativeBuildError
from orcinus.kernels.cpu.library import runnable, supported

pytestmark = pytest.mark.skipif(not supported(), reason="no native CPU kernels for this processor")

DTYPES = [torch.float32, torch.bfloat16]
# Half a unit in the last place of the result, and what float32 sums may lose on the way.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8}
ROW_COUNTS = [1, 2, 3, 15, 16, 17, 31, 32, 33, 64, 97, 100, 257]


@pytest.fixture(scope="module", params=runnable())
def kernels(request: pytest.FixtureRequest) -> CpuKernels:
    return CpuKernels(request.param)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=generator(seed)).to(dtype)


def assert_close(result: Tensor, exact: Tensor, size: Tensor | float = 1.0) -> None:
    """`result` is `exact` to rounding; `size` is the magnitude of the terms that were summed."""
    assert result.shape == exact.shape
    allowed = ROUNDING[result.dtype] * exact.abs() + 2e-6 * size
    excess = (result.double() - exact).abs() - allowed
    assert excess.max() <= 0, f"{excess.max():.3g} beyond rounding"


# --- products


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("in_features", "out_features"), [(768, 320), (560, 1003), (33, 17), (1, 1), (2055, 100)])
@pytest.mark.parametrize("rows", [1, 16, 33, 130])
def test_a_product_is_the_float64_product_rounded(
    kernels: CpuKernels, dtype: torch.dtype, bias: bool, in_features: int, out_features: int, rows: int
) -> None:
    weight = normal(1, out_features, in_features, dtype=dtype)
    x = normal(2, rows, in_features, dtype=dtype)
    shift = normal(3, out_features, dtype=dtype) if bias else None
    exact = x.double() @ weight.double().T + (0 if shift is None else shift.double())
    size = x.double().abs() @ weight.double().abs().T
    packed = kernels.pack(weight, shift)
    assert_close(kernels.linear(x, packed), exact, size)
    assert_close(kernels.linear_float32(x, packed), exact, size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("in_features", "out_features"), [(768, 96), (560, 1003), (2055, 70), (35, 40)])
def test_a_row_has_the_same_bits_alone_and_in_any_batch(
    kernels: CpuKernels, threads: int, dtype: torch.dtype, in_features: int, out_features: int
) -> None:
    x = normal(4, 600, in_features, dtype=dtype)
    packed = kernels.pack(normal(5, out_features, in_features, dtype=dtype), normal(6, out_features))
    alone = torch.cat([kernels.linear(x[i : i + 1], packed) for i in range(len(x))])
    assert torch.equal(kernels.linear(x, packed), alone)
    for rows in ROW_COUNTS:
        for offset in (0, 1, 7, 40):
            part = slice(offset, offset + rows)
            assert torch.equal(kernels.linear(x[part], packed), alone[part]), f"{rows} rows from {offset}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_changes_no_bit_of_a_product(kernels: CpuKernels, dtype: torch.dtype) -> None:
    x, weight = normal(7, 200, 768, dtype=dtype), normal(8, 1000, 768, dtype=dtype)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(kernels.linear(x, kernels.pack(weight, None)))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_nan_stays_alone(kernels: CpuKernels, dtype: torch.dtype) -> None:
    x, packed = normal(9, 40, 100, dtype=dtype), kernels.pack(normal(10, 50, 100, dtype=dtype), None)
    clean = kernels.linear(x, packed)
    x[17] = math.nan
    result = kernels.linear(x, packed)
    assert result[17].isnan().all()
    others = torch.arange(40) != 17
    assert torch.equal(result[others], clean[others])


def test_bfloat16_results_are_the_float32_sums_rounded_once(kernels: CpuKernels) -> None:
    x = normal(11, 50, 300, dtype=torch.bfloat16)
    packed = kernels.pack(normal(12, 77, 300, dtype=torch.bfloat16), normal(13, 77))
    assert torch.equal(kernels.linear(x, packed), kernels.linear_float32(x, packed).bfloat16())


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_rows_and_weights_are_read_in_place(kernels: CpuKernels, dtype: torch.dtype) -> None:
    wide, weight = normal(14, 20, 200, dtype=dtype), normal(15, 30, 150, dtype=dtype)
    packed = kernels.pack(weight[:, 50:], None)
    assert torch.equal(packed.data, kernels.pack(weight[:, 50:].clone(), None).data)
    assert torch.equal(kernels.linear(wide[:, 100:], packed), kernels.linear(wide[:, 100:].clone(), packed))


def test_no_rows_give_no_rows(kernels: CpuKernels) -> None:
    packed = kernels.pack(normal(16, 30, 20), None)
    assert kernels.linear(torch.empty(0, 20), packed).shape == (0, 30)


def test_a_product_of_two_dtypes_is_refused(kernels: CpuKernels) -> None:
    packed = kernels.pack(normal(17, 30, 20), None)
    with pytest.raises(ConfigurationError, match="bfloat16"):
        kernels.linear(normal(18, 2, 20, dtype=torch.bfloat16), packed)


# --- rows


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 7, 16, 40, 64, 768, 1003])
def test_norms_are_right_and_rows_independent(
    kernels: CpuKernels, threads: int, dtype: torch.dtype, columns: int
) -> None:
    x, weight, bias = (
        normal(20, 70, columns, dtype=dtype) * 3 + 1,
        normal(21, columns, dtype=dtype),
        normal(22, columns, dtype=dtype),
    )
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    result = kernels.rms_norm(x, weight, 1e-5)
    assert_close(result, exact, 4)
    assert torch.equal(result, torch.cat([kernels.rms_norm(row, weight, 1e-5) for row in x.split(1)]))
    exact = torch.nn.functional.layer_norm(x.double(), (columns,), weight.double(), bias.double(), 1e-5)
    result = kernels.layer_norm(x, weight, bias, 1e-5)
    # A single column minus its mean is 0: what is left is bias and rounding.
    assert_close(result, exact, 40)
    assert torch.equal(result, torch.cat([kernels.layer_norm(row, weight, bias, 1e-5) for row in x.split(1)]))
    assert_close(kernels.layer_norm(x, weight.float(), None, 1e-5), exact - bias.double(), 40)


@pytest.mark.parametrize("columns", [7, 64, 1003])
def test_a_float32_weight_keeps_its_bits_on_bfloat16_rows(kernels: CpuKernels, columns: int) -> None:
    # What is stored as an offset from 1 (Gemma) doesn't fit into bfloat16.
    x, weight = normal(27, 70, columns, dtype=torch.bfloat16), 1 + normal(28, columns) / 100
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert_close(kernels.rms_norm(x, weight, 1e-5), exact, 4)
    assert torch.equal(kernels.rms_norm(x[5:6], weight, 1e-5)[0], kernels.rms_norm(x, weight, 1e-5)[5])


def test_norms_take_any_leading_shape(kernels: CpuKernels) -> None:
    x, weight = normal(23, 5, 12, 64)[:, 2:8], normal(24, 64)
    result = kernels.rms_norm(x, weight, 1e-6)
    assert torch.equal(result, kernels.rms_norm(x.reshape(30, 64), weight, 1e-6).view(5, 6, 64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (80, 32), (128, 128), (72, 72), (10, 6)])
def test_rotary_embedding_turns_halves(
    kernels: CpuKernels, threads: int, dtype: torch.dtype, head_dim: int, rotary_dim: int
) -> None:
    half = rotary_dim // 2
    angles = torch.arange(300)[:, None] * 0.9 ** torch.arange(half)
    cos_sin = torch.stack([angles.cos(), angles.sin()], dim=1)
    qkv = normal(25, 90, 5, head_dim, dtype=dtype)
    x, positions = qkv[:, 1:4], torch.randint(300, (90,), generator=generator(26))
    cos, sin = cos_sin.double()[positions, None, 0], cos_sin.double()[positions, None, 1]
    first, second = x.double()[..., :half], x.double()[..., half:rotary_dim]
    exact = torch.cat([first * cos - second * sin, second * cos + first * sin, x.double()[..., rotary_dim:]], dim=-1)
    slots = torch.arange(len(x))
    kv, other_kv = torch.zeros(2, 2, 6, 3, 16, head_dim, dtype=dtype)
    result = kernels.place(x.clone(), x, x, written_at(slots, positions), cos_sin, (kv[0], kv[1]))
    assert_close(result, exact, 4)
    one = kernels.place(
        x[17:18].clone(), x[:1], x[:1], written_at(slots[:1], positions[17:18]), cos_sin, (kv[0], kv[1])
    )
    assert torch.equal(result[17:18], one)
    # A key is turned as a query is, and a value is not.
    kernels.place(x.clone(), x, x, written_at(slots, positions), cos_sin, (kv[0], kv[1]))
    kernels.place(x.clone(), result, x, written_at(slots), None, (other_kv[0], other_kv[1]))
    assert torch.equal(kv, other_kv)


def test_a_position_outside_the_rotary_table_is_refused(kernels: CpuKernels) -> None:
    x, keys = torch.ones(1, 1, 8), torch.zeros(2, 1, 16, 8)
    with pytest.raises(PlanError, match="position"):
        kernels.place(x, x, x, written_at(torch.tensor([0]), torch.tensor([4])), torch.zeros(4, 2, 4), (keys, keys))
    assert not keys.any()


def exact_activation(x: Tensor, name: str) -> Tensor:
    if name == "gelu":
        # By erfc: 1 + erf cancels in the tail, where float64 has nothing left.
        return 0.5 * x * torch.special.erfc(-x / math.sqrt(2))
    return {
        "silu": torch.nn.functional.silu,
        "gelu_tanh": lambda y: torch.nn.functional.gelu(y, approximate="tanh"),
        "relu": torch.relu,
    }[name](x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh", "relu"])
@pytest.mark.parametrize("columns", [2, 30, 256, 1003])
def test_activations_are_right_and_rows_independent(
    kernels: CpuKernels, threads: int, dtype: torch.dtype, name: str, columns: int
) -> None:
    x = normal(27, 60, 2 * columns, dtype=dtype) * 4
    gate, up = x.double().chunk(2, dim=-1)
    result = kernels.gated(x, name)
    assert_close(result, exact_activation(gate, name) * up, up.abs())
    assert torch.equal(result, torch.cat([kernels.gated(row, name) for row in x.split(1)]))
    result = kernels.activate(x, name)
    assert_close(result, exact_activation(x.double(), name))
    assert torch.equal(result, torch.cat([kernels.activate(row, name) for row in x.split(1)]))


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh", "relu"])
def test_activations_at_the_edges(kernels: CpuKernels, name: str) -> None:
    x = torch.tensor([[-1e30, -200.0, -100.0, -88.0, -20.0, -1e-20, 0.0, 1e-20, 20.0, 100.0, 1e18, math.nan]])
    result = kernels.activate(x, name)
    assert_close(result[:, :-1], exact_activation(x[:, :-1].double(), name))
    assert result[0, -1].isnan()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [40, 48])
def test_kv_lands_in_its_slots_and_nowhere_else(
    kernels: CpuKernels, threads: int, dtype: torch.dtype, head_dim: int
) -> None:
    cache, expected = torch.full((2, 2, 9, 3, 16, head_dim), math.nan, dtype=dtype)
    qkv = normal(28, 50, 10, head_dim, dtype=dtype)
    k, v = qkv[:, 4:7], qkv[:, 7:]
    slots = torch.randperm(9 * 16, generator=generator(29))[:50]
    for x, plain in ((k, expected[0]), (v, expected[1])):
        plain[slots // 16, :, slots % 16] = x
    kernels.place(qkv[:, :4], k, v, written_at(slots), None, (cache[0], cache[1]))
    # Of each block and head the same numbers, in the kernels' own order; what nobody wrote is as it was.
    assert torch.equal(*(x.flatten(-2).sort().values.nan_to_num(7) for x in (cache, expected)))
    assert torch.equal(*(x.nan_to_num(7) for x in (cache, torch.stack(laid(kernels, *expected)))))


def test_a_slot_outside_the_kv_tensors_is_refused(kernels: CpuKernels) -> None:
    keys, x = torch.zeros(2, 1, 16, 8), torch.ones(1, 1, 8)
    for slot in (-1, 32):
        with pytest.raises(PlanError, match="slot"):
            kernels.place(x, x, x, written_at(torch.tensor([slot])), None, (keys, keys))
    assert not keys.any()


# --- attention


@dataclass(frozen=True)
class Scene:
    """Sequences with KV in shuffled blocks; every slot that no token owns holds NaN."""

    spec: AttentionSpec
    q: list[Tensor]  # of each sequence, all its tokens
    k: list[Tensor]
    v: list[Tensor]
    keys: Tensor
    values: Tensor
    block_tables: Tensor

    def batch(self, work: list[tuple[int, int, int]]) -> tuple[Tensor, AttentionBatch]:
        """Rows first..last of a sequence for each entry (sequence, first, last); the context ends with the last."""
        starts = torch.tensor([0, *(last - first for _, first, last in work)]).cumsum(0, dtype=torch.int32)
        return torch.cat([self.q[s][first:last] for s, first, last in work]), AttentionBatch(
            query_starts=starts,
            context_lengths=torch.tensor([last for _, _, last in work], dtype=torch.int32),
            block_tables=self.block_tables[[s for s, _, _ in work]],
            slots=torch.empty(0, dtype=torch.int64),
            positions=torch.cat([torch.arange(first, last) for _, first, last in work]),
        )

    def run(self, kernels: CpuKernels, work: list[tuple[int, int, int]]) -> list[Tensor]:
        q, batch = self.batch(work)
        out = kernels.attention(q, *laid(kernels, self.keys, self.values), batch, self.spec)
        return list(out.split([last - first for _, first, last in work]))


def make_scene(
    spec: AttentionSpec, lengths: list[int], dtype: torch.dtype, block_size: int = 16, seed: int = 30
) -> Scene:
    def heads(seed: int, count: int) -> list[Tensor]:
        return [normal(seed + i, length, count, spec.head_dim, dtype=dtype) for i, length in enumerate(lengths)]

    q, k, v = heads(seed, spec.num_heads), heads(seed + 100, spec.num_kv_heads), heads(seed + 200, spec.num_kv_heads)
    counts = [-(-length // block_size) for length in lengths]
    order = torch.randperm(sum(counts) + 3, generator=generator(seed))
    keys, values = torch.full((2, len(order), spec.num_kv_heads, block_size, spec.head_dim), math.nan, dtype=dtype)
    tables = torch.zeros(len(lengths), max(counts) + 1, dtype=torch.int32)
    for i, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        blocks = order[sum(counts[:i]) : sum(counts[: i + 1])]
        tables[i, :count] = blocks
        at = torch.arange(length)
        keys[blocks[at // block_size], :, at % block_size] = k[i]
        values[blocks[at // block_size], :, at % block_size] = v[i]
    return Scene(spec, q, k, v, keys, values, tables)


def exact_attention(scene: Scene, sequence: int, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Rows first..last of one sequence in float64, and the magnitude of the values that they average."""
    spec, group = scene.spec, scene.spec.num_heads // scene.spec.num_kv_heads
    q, k, v = (
        scene.q[sequence][first:last].double(),
        scene.k[sequence][:last].double(),
        scene.v[sequence][:last].double(),
    )
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * spec.scale
    if spec.soft_cap is not None:
        scores = spec.soft_cap * (scores / spec.soft_cap).tanh()
    query, key = torch.arange(first, last)[:, None], torch.arange(last)
    hidden = torch.zeros(last - first, last, dtype=torch.bool)
    if spec.causal:
        hidden |= key > query
    if spec.window is not None:
        hidden |= key <= query - spec.window
    weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
    return (
        torch.einsum("hqk,khd->qhd", weights, v).flatten(1),
        torch.einsum("hqk,khd->qhd", weights, v.abs()).flatten(1),
    )


def assert_attends(kernels: CpuKernels, scene: Scene, work: list[tuple[int, int, int]]) -> None:
    for item, result in zip(work, scene.run(kernels, work), strict=True):
        exact, size = exact_attention(scene, *item)
        # bfloat16: the weights may be rounded too (as flash attention does), so the error is of the values' size.
        assert_close(result, exact, 10 * size if result.dtype is torch.float32 else size * (2**-8 / 2e-6))


HEADS = [(12, 4, 64), (7, 7, 80), (8, 1, 128), (14, 2, 72), (3, 3, 8), (5, 1, 20), (71, 1, 64), (4, 2, 256)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), HEADS)
def test_attention_over_ragged_sequences_is_exact(
    kernels: CpuKernels, dtype: torch.dtype, num_heads: int, num_kv_heads: int, head_dim: int
) -> None:
    spec = AttentionSpec(num_heads, num_kv_heads, head_dim, head_dim**-0.5)
    scene = make_scene(spec, [1, 5, 16, 63, 64, 65, 130, 200], dtype)
    assert_attends(
        kernels,
        scene,
        [(0, 0, 1), (3, 0, 63), (7, 199, 200), (1, 2, 5), (6, 0, 130), (2, 15, 16), (5, 10, 65), (4, 63, 64)],
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [16, 32, 48])
@pytest.mark.parametrize(
    ("causal", "window", "soft_cap"),
    [(True, 1, None), (True, 20, None), (True, 100, 5.0), (True, None, 2.0), (False, None, None), (False, None, 3.0)],
)
def test_attention_with_windows_caps_and_both_directions_is_exact(
    kernels: CpuKernels, dtype: torch.dtype, block_size: int, causal: bool, window: int | None, soft_cap: float | None
) -> None:
    spec = AttentionSpec(6, 2, 64, 0.3, causal, window, soft_cap)
    scene = make_scene(spec, [3, 70, 150], dtype, block_size)
    assert_attends(kernels, scene, [(2, 0, 150), (0, 0, 3), (1, 0, 70)])
    if causal:
        assert_attends(kernels, scene, [(1, 69, 70), (2, 100, 150), (0, 1, 2)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(12, 4, 64), (7, 7, 80), (8, 1, 128)])
@pytest.mark.parametrize(("window", "soft_cap"), [(None, None), (50, 4.0)])
def test_a_row_attends_with_the_same_bits_however_prompts_are_cut_and_crowded(
    kernels: CpuKernels,
    threads: int,
    dtype: torch.dtype,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    window: int | None,
    soft_cap: float | None,
) -> None:
    spec = AttentionSpec(num_heads, num_kv_heads, head_dim, head_dim**-0.5, True, window, soft_cap)
    lengths = [150, 40, 97]
    scene = make_scene(spec, lengths, dtype)
    whole = [scene.run(kernels, [(s, 0, length)])[0] for s, length in enumerate(lengths)]
    for s, length in enumerate(lengths):
        one_by_one = [scene.run(kernels, [(s, p, p + 1)])[0] for p in range(length)]
        assert torch.equal(torch.cat(one_by_one), whole[s])
    cuts = generator(31)
    for _ in range(8):
        work = []
        for s, length in enumerate(lengths):
            first = int(torch.randint(length, (1,), generator=cuts))
            work.append((s, first, int(torch.randint(first + 1, length + 1, (1,), generator=cuts))))
        for (s, first, last), result in zip(work, scene.run(kernels, work), strict=True):
            assert torch.equal(result, whole[s][first:last]), f"sequence {s}, rows {first} to {last}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_place_of_blocks_changes_no_bit(kernels: CpuKernels, dtype: torch.dtype) -> None:
    spec = AttentionSpec(6, 2, 64, 0.125)
    scene = make_scene(spec, [100, 90], dtype)
    order = torch.randperm(len(scene.keys), generator=generator(32))
    place = order.argsort().to(torch.int32)
    moved = Scene(
        spec, scene.q, scene.k, scene.v, scene.keys[order], scene.values[order], place[scene.block_tables.long()]
    )
    work = [(0, 30, 100), (1, 89, 90)]
    for a, b in zip(scene.run(kernels, work), moved.run(kernels, work), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_query_of_nan_stays_alone(kernels: CpuKernels, dtype: torch.dtype) -> None:
    scene = make_scene(AttentionSpec(6, 2, 64, 0.125), [40, 50], dtype)
    clean = scene.run(kernels, [(0, 0, 40), (1, 49, 50)])
    scene.q[0][20] = math.nan
    first, second = scene.run(kernels, [(0, 0, 40), (1, 49, 50)])
    assert first[20].isnan().all()
    others = torch.arange(40) != 20
    assert torch.equal(first[others], clean[0][others])
    assert torch.equal(second, clean[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores_neither_overflow_nor_lose_the_winner(kernels: CpuKernels, dtype: torch.dtype) -> None:
    scene = make_scene(AttentionSpec(2, 2, 64, 30.0), [200], dtype)
    for item, result in [((0, 0, 200), scene.run(kernels, [(0, 0, 200)])[0])]:
        exact, size = exact_attention(scene, *item)
        # Scores of some thousands carry an absolute rounding of 1e-3.
        allowed = 2e-2 * size + ROUNDING[dtype] * exact.abs()
        assert ((result.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("broken", ["block", "length", "rows"])
def test_tables_that_contradict_the_kv_are_refused(kernels: CpuKernels, broken: str) -> None:
    scene = make_scene(AttentionSpec(2, 1, 16, 0.25), [40], torch.float32)
    q, batch = scene.batch([(0, 0, 40)])
    if broken == "block":
        batch.block_tables[0, 1] = len(scene.keys)
    elif broken == "length":
        batch.context_lengths[0] = 100
    else:
        q = q[:39]
    with pytest.raises(PlanError, match="attention"):
        kernels.attention(q, scene.keys, scene.values, batch, scene.spec)


def test_an_instruction_set_that_is_not_offered_is_refused() -> None:
    with pytest.raises(NativeBuildError, match="sparc"):
        CpuKernels("sparc")
