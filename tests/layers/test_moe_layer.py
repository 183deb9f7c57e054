"""Mixture of experts against the einsum definition, each token alone, and the blocks of Transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import MixtralConfig, OlmoeConfig, Qwen3MoeConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from orcinus.kernels import KernelSet, cpu
from orcinus.kernels.reference import ReferenceKernels
from orcinus.layers.mlp import GatedMlp
from orcinus.layers.moe import ExpertTable, MoeMlp, Router
from orcinus.parallel import Alone, Span

KERNELS: dict[str, Callable[[], KernelSet]] = {"reference": ReferenceKernels}
if cpu.available():
    KERNELS["cpu"] = cpu.CpuKernels
DTYPES = [torch.float32, torch.bfloat16]


@dataclass(frozen=True)
class Weights:
    """gate [experts, hidden], up [experts, 2 · inner, hidden] with the gate first, down [experts, hidden, inner]."""

    gate: Tensor
    up: Tensor
    down: Tensor

    @classmethod
    def random(cls, experts: int, hidden: int, inner: int, seed: int = 0) -> Weights:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator) * shape[-1] ** -0.5

        return cls(2 * normal(experts, hidden), normal(experts, 2 * inner, hidden), normal(experts, hidden, inner))

    def layer(
        self, kernels: KernelSet, top_k: int, *, normalise_weights: bool = True, dtype: torch.dtype = torch.float32
    ) -> MoeMlp:
        def pack(weight: Tensor) -> object:
            return kernels.pack(weight.to(dtype), None)

        experts = (GatedMlp(kernels, pack(up), pack(down), "silu") for up, down in zip(self.up, self.down, strict=True))
        router, every = Router(kernels, pack(self.gate), top_k, normalise_weights), Span.whole(len(self.up))
        return MoeMlp(router, tuple(experts), every, Alone())


def rows(tokens: int, hidden: int, seed: int = 1) -> Tensor:
    return torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(seed))


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=KERNELS, scope="module")
def kernels(request: pytest.FixtureRequest) -> KernelSet:
    return KERNELS[request.param]()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with threads(1):
        yield


def chosen(scores: Tensor, top_k: int, normalise_weights: bool) -> dict[int, float]:
    """The experts of one token by exhaustive ranking, from its float32 scores."""
    ranking = sorted(range(len(scores)), key=lambda expert: (-float(scores[expert]), expert))[:top_k]
    total = torch.tensor(sum(float(scores[expert]) for expert in ranking))
    return {
        expert: float(scores[expert] / total if normalise_weights else scores[expert]) for expert in sorted(ranking)
    }


def by_einsum(x: Tensor, weights: Weights, combine: Tensor) -> Tensor:
    """The definition (GShard): all experts on all tokens in float64, weighted by `combine` [tokens, experts]."""
    x, up, down = x.double(), weights.up.double(), weights.down.double()
    gate, plain = torch.einsum("sm,efm->esf", x, up).chunk(2, dim=-1)
    out = torch.einsum("esf,emf->esm", torch.nn.functional.silu(gate) * plain, down)
    return torch.einsum("se,esm->sm", combine.double(), out)


ROUTINGS = ("scattered", "tied", "one expert", "few experts")


def gate_for(kind: str, weights: Weights) -> Weights:
    """Weights whose router does what `kind` says."""
    gate = weights.gate.clone()
    if kind == "tied":  # Experts in pairs of equal scores.
        gate[1::2] = gate[: len(gate) // 2 * 2 : 2]
    elif kind == "one expert":  # All scores equal, so the ids decide for every token.
        gate.zero_()
    elif kind == "few experts":  # The others never have the larger score: their rows repeat the first's.
        gate[2:] = gate[:1]
    return replace(weights, gate=gate)


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 40),
    experts=st.integers(1, 9),
    top_k=st.integers(1, 9),
    normalise_weights=st.booleans(),
    kind=st.sampled_from(ROUTINGS),
    seed=st.integers(0, 2**16),
)
@pytest.mark.parametrize("name", KERNELS)
def test_dispatch_equals_the_einsum_definition(
    name: str, tokens: int, experts: int, top_k: int, normalise_weights: bool, kind: str, seed: int
) -> None:
    top_k = min(top_k, experts)
    weights = gate_for(kind, Weights.random(experts, 24, 10, seed))
    layer, x = weights.layer(KERNELS[name](), top_k, normalise_weights=normalise_weights), rows(tokens, 24, seed + 1)
    scores = layer.router.kernels.linear_float32(x, layer.router.gate).softmax(-1)
    expected = [chosen(row, top_k, normalise_weights) for row in scores]
    routing = layer.router(x)
    assert routing.experts.tolist() == [list(choice) for choice in expected]
    assert routing.weights.tolist() == [list(choice.values()) for choice in expected]
    combine = torch.zeros(tokens, experts).scatter_(1, routing.experts, routing.weights)
    torch.testing.assert_close(layer(x).double(), by_einsum(x, weights, combine), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_are_those_of_each_tokens_experts_one_by_one_in_the_order_of_their_ids(
    dtype: torch.dtype, kernels: KernelSet
) -> None:
    layer, x = Weights.random(9, 52, 29).layer(kernels, 4, dtype=dtype), rows(40, 52).to(dtype)
    routing, out = layer.router(x), layer(x)
    scores = kernels.linear_float32(x, layer.router.gate).softmax(-1)
    for token in range(len(x)):
        choice = chosen(scores[token], 4, True)
        assert (routing.experts[token].tolist(), routing.weights[token].tolist()) == ([*choice], [*choice.values()])
        total = torch.zeros(1, 52)
        for expert, weight in zip(routing.experts[token].tolist(), routing.weights[token], strict=True):
            total = total + layer.experts[expert](x[token : token + 1]).float() * weight
        assert torch.equal(out[token], total.to(dtype)[0])


@given(
    st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3, unique=True).map(sorted), min_size=1, max_size=30),
    st.integers(7, 12),
    st.data(),
)
def test_the_table_is_the_inverse_of_the_choices(
    experts: list[list[int]], num_experts: int, data: st.DataObject
) -> None:
    mine = data.draw(
        st.sampled_from([Span.share(num_experts, rank, size) for size in (1, 2, 9) for rank in range(size)])
    )
    table = ExpertTable.of(torch.tensor(experts), mine)
    owned = range(mine.start, mine.stop)
    copies = sorted((expert, token) for token, choice in enumerate(experts) for expert in choice if expert in owned)
    assert table.tokens.tolist() == [token for _, token in copies]
    assert table.rows.tolist() == [
        [copies.index((expert, token)) if expert in owned else len(copies) for expert in row]
        for token, row in enumerate(experts)
    ]
    assert table.counts == [sum(expert == number for expert, _ in copies) for number in owned]
    found = [
        (owned[place], token) for place, start, end in table.segments() for token in table.tokens[start:end].tolist()
    ]
    assert found == copies
    assert all(start < end for _, start, end in table.segments())


@dataclass(frozen=True)
class Untouchable:
    """An expert that nobody may run."""

    def __call__(self, x: Tensor) -> Tensor:
        raise AssertionError(f"ran on {len(x)} rows")


def test_experts_without_rows_are_not_touched(kernels: KernelSet) -> None:
    weights = gate_for("one expert", Weights.random(6, 24, 10))
    layer, x = weights.layer(kernels, 2), rows(50, 24)
    expected = layer(x)
    guarded = replace(layer, experts=(*layer.experts[:2], *[Untouchable()] * 4))
    assert torch.equal(guarded(x), expected)
    with pytest.raises(AssertionError, match="ran on 50 rows"):
        replace(layer, experts=(Untouchable(), *layer.experts[1:]))(x)


def test_no_token_is_dropped_though_all_go_to_one_expert(kernels: KernelSet) -> None:
    weights = gate_for("one expert", Weights.random(6, 24, 10))
    layer, x = weights.layer(kernels, 1), rows(300, 24)
    assert torch.equal(layer(x), layer.experts[0](x))


def test_no_tokens_give_no_rows(kernels: KernelSet) -> None:
    assert Weights.random(6, 24, 10).layer(kernels, 2)(rows(0, 24)).shape == (0, 24)


class Shapes(TorchDispatchMode):
    """Records the shape of every tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, tuple[int, ...]]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.seen.add((func.overloadpacket.__name__, tuple(tensor.shape)))
        return out


# Primes, so that an axis shows in the number of elements even where it was folded into another.
TOKENS, EXPERTS, TOP_K, HIDDEN, INNER = 37, 11, 3, 13, 17


def with_both_axes(shapes: Shapes) -> set[tuple[str, tuple[int, ...]]]:
    """Operations whose result has a token and an expert axis."""

    def has(shape: tuple[int, ...], axis: int) -> bool:
        return any(size and size % axis == 0 for size in shape)

    return {(name, shape) for name, shape in shapes.seen if has(shape, TOKENS) and has(shape, EXPERTS)}


def test_only_the_routers_scores_have_both_a_token_and_an_expert_axis(kernels: KernelSet) -> None:
    layer, x = Weights.random(EXPERTS, HIDDEN, INNER).layer(kernels, TOP_K), rows(TOKENS, HIDDEN)
    with Shapes() as router_shapes:
        routing = layer.router(x)
    ops = {name for name, shape in with_both_axes(router_shapes)}
    assert {shape for _, shape in with_both_axes(router_shapes)} == {(TOKENS, EXPERTS)}
    assert {"_softmax", "sort"} <= ops
    # The product's own buffers; nothing makes a mask.
    assert ops <= {"_softmax", "sort", "empty", "new_empty", "_linear_pointwise", "linear", "_to_copy"}
    without_router = replace(layer, router=lambda _: routing)
    with Shapes() as shapes:
        without_router(x)
    # The copies, and a row of zeros.
    assert any(shape == (TOKENS * TOP_K + 1, HIDDEN) for _, shape in shapes.seen)
    assert not with_both_axes(shapes)


def transformers_block(name: str, normalise_weights: bool) -> nn.Module:
    """A block of Transformers with its own kind of experts and random weights."""
    sizes = {"hidden_size": HIDDEN, "num_experts_per_tok": TOP_K}
    config, block = {
        "mixtral": (MixtralConfig(**sizes, num_local_experts=EXPERTS, intermediate_size=INNER), MixtralSparseMoeBlock),
        "qwen3_moe": (
            Qwen3MoeConfig(**sizes, num_experts=EXPERTS, moe_intermediate_size=INNER, norm_topk_prob=normalise_weights),
            Qwen3MoeSparseMoeBlock,
        ),
        "olmoe": (
            OlmoeConfig(
                **sizes,
                num_experts=EXPERTS,
                intermediate_size=INNER,
                norm_topk_prob=normalise_weights,
                pad_token_id=None,
                eos_token_id=None,
            ),
            OlmoeSparseMoeBlock,
        ),
    }[name]
    config._experts_implementation = "eager"
    return block(config).eval()


def with_weights(block: nn.Module, weights: Weights) -> nn.Module:
    state = {"gate.weight": weights.gate, "experts.gate_up_proj": weights.up, "experts.down_proj": weights.down}
    block.load_state_dict(state)
    return block


FLAVOURS = [("mixtral", True), ("qwen3_moe", True), ("qwen3_moe", False), ("olmoe", True), ("olmoe", False)]


@pytest.mark.parametrize(("name", "normalise_weights"), FLAVOURS)
def test_the_layer_equals_the_block_of_transformers(name: str, normalise_weights: bool, kernels: KernelSet) -> None:
    weights, x = Weights.random(EXPERTS, HIDDEN, INNER), rows(200, HIDDEN)
    block = with_weights(transformers_block(name, normalise_weights), weights)
    layer = weights.layer(kernels, TOP_K, normalise_weights=normalise_weights)
    with torch.inference_mode():
        expected, (_, scores, experts) = block(x[None])[0], block.gate(x)
    routing = layer.router(x)
    assert torch.equal(routing.experts, experts.sort(-1).values)
    torch.testing.assert_close(routing.weights, scores.gather(1, experts.argsort(-1)), atol=1e-6, rtol=0)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=0)
    for wrong in (
        weights.layer(kernels, TOP_K - 1, normalise_weights=normalise_weights),
        weights.layer(kernels, TOP_K, normalise_weights=not normalise_weights),
        replace(layer, experts=layer.experts[1:] + layer.experts[:1]),
    ):
        assert (wrong(x) - expected).abs().max() > 1e-2


def test_the_masks_and_products_of_the_definition_are_found() -> None:
    with Shapes() as shapes:
        mask = nn.functional.one_hot(torch.zeros(TOKENS, TOP_K, dtype=torch.int64), EXPERTS)
        by_einsum(rows(TOKENS, HIDDEN), Weights.random(EXPERTS, HIDDEN, INNER), mask.sum(1))
    found = {shape for _, shape in with_both_axes(shapes)}
    assert {(TOKENS, TOP_K, EXPERTS), (TOKENS, EXPERTS)} <= found
    assert any(HIDDEN in shape for shape in found)


def some_companies(tokens: int) -> list[Tensor]:
    """Row numbers: single ones, pairs, and random shuffled subsets."""
    generator = torch.Generator().manual_seed(5)
    shuffled = [torch.randperm(tokens, generator=generator) for _ in range(6)]
    return [*torch.arange(0, tokens, 29)[:, None], *[order[:size] for order, size in zip(shuffled, SIZES, strict=True)]]


SIZES = (2, 3, 17, 33, 64, 150)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalise_weights", [True, False])
@pytest.mark.parametrize("kind", ROUTINGS)
def test_a_tokens_bits_do_not_depend_on_its_company(
    kind: str, normalise_weights: bool, dtype: torch.dtype, kernels: KernelSet
) -> None:
    weights = gate_for(kind, Weights.random(13, 52, 29))
    layer, x = weights.layer(kernels, 5, normalise_weights=normalise_weights, dtype=dtype), rows(200, 52).to(dtype)
    crowd = layer(x)
    assert crowd.dtype is dtype
    assert crowd.isfinite().all()
    for company in some_companies(200):
        assert torch.equal(layer(x[company]), crowd[company])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (33, 4), (64, 8)])
def test_two_threads_give_the_bits_of_one(experts: int, top_k: int, dtype: torch.dtype, kernels: KernelSet) -> None:
    layer = Weights.random(experts, 136, 72).layer(kernels, top_k, dtype=dtype)
    x = rows(1200, 136).to(dtype)
    crowd = layer(x)
    with threads(2):
        assert torch.equal(layer(x), crowd)
        for company in some_companies(1200):
            assert torch.equal(layer(x[company]), crowd[company])


def test_a_token_of_nans_stays_with_itself(kernels: KernelSet) -> None:
    layer, x = Weights.random(6, 24, 10).layer(kernels, 2), rows(30, 24)
    expected = layer(x)
    x[7] = torch.nan
    out = layer(x)
    others = torch.arange(30) != 7
    assert torch.equal(out[others], expected[others])
    assert out[7].isnan().all()
