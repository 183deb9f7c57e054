"""Puts a mixture of experts together from its tensors."""

from __future__ import annotations

from orcinus.kernels import KernelSet
from orcinus.layers.mlp import GatedMlp
from orcinus.layers.moe import MoeMlp, Router
from orcinus.models.config import ModelConfig
from orcinus.models.slices import Slices
from orcinus.models.weights import PartBuilder
from orcinus.parallel import Span


def moe_mlp(builder: PartBuilder, config: ModelConfig, kernels: KernelSet, prefix: str, slices: Slices) -> MoeMlp:
    """The router and this rank's experts of one layer, whose tensors' names begin with `prefix`; each is packed once.

    Every rank holds the router, so that all come to the same choice without a word.
    """
    moe, names, hidden = config.moe, config.family.experts, config.hidden_size
    assert moe is not None
    assert names is not None
    inner = moe.expert_intermediate_size

    def expert(number: int) -> GatedMlp:
        inputs = tuple(prefix + name.format(number) for name in names.input)
        output = (prefix + names.output.format(number),)
        return GatedMlp(
            kernels=kernels,
            input=builder.linear(inputs, (Span.whole(inner),) * 2, Span.whole(hidden), bias=False),
            output=builder.linear(output, (Span.whole(hidden),), Span.whole(inner), bias=False),
            activation=config.activation,
        )

    gate = builder.linear(
        (prefix + names.gate,), (Span.whole(moe.num_experts),), Span.whole(hidden), bias=False, precise=True
    )
    router = Router(kernels, gate, moe.top_k, moe.normalise_weights)
    mine = slices.experts
    return MoeMlp(router, tuple(expert(number) for number in range(mine.start, mine.stop)), mine, slices.group)
