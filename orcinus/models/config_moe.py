"""Which layers have experts, and how many a token runs through, from the ways in which configurations say it."""

from __future__ import annotations

from dataclasses import dataclass

from orcinus.models.families.experts import Experts
from orcinus.models.families.family import Family
from orcinus.models.fields import ConfigFields


@dataclass(frozen=True, slots=True)
class MoeConfig:
    """Mixture of experts. `sparse_layers` has one entry a layer: experts there, else one dense MLP."""

    num_experts: int
    top_k: int
    expert_intermediate_size: int
    normalise_weights: bool
    sparse_layers: tuple[bool, ...]

    def widest(self, hidden_size: int) -> int:
        """Elements a token at most: its copies, and one expert that all tokens run through, or their float32 sums."""
        return self.top_k * hidden_size + max(2 * hidden_size + 3 * self.expert_intermediate_size, 6 * hidden_size)


def read_moe(fields: ConfigFields, family: Family, num_layers: int) -> MoeConfig | None:
    """None for a dense family.

    Raises:
        CheckpointError: numbers that contradict each other, or malformed ones.
    """
    experts = family.experts
    if experts is None:
        return None
    # One number under two names: files on hubs have the first, or with Mixtral the second; Transformers 5 swaps some.
    num_experts = fields.integer("num_experts", default=fields.integer("num_local_experts"))
    top_k = fields.integer("num_experts_per_tok")
    if top_k > num_experts:
        raise fields.error(f"num_experts_per_tok is {top_k}, but there are {num_experts} experts.")
    normalise = experts.normalise_weights
    return MoeConfig(
        num_experts=num_experts,
        top_k=top_k,
        expert_intermediate_size=fields.integer(experts.intermediate_size),
        normalise_weights=fields.flag(normalise) if isinstance(normalise, str) else normalise,
        sparse_layers=_sparse_layers(fields, experts, num_layers),
    )


def _sparse_layers(fields: ConfigFields, experts: Experts, num_layers: int) -> tuple[bool, ...]:
    """Every `sparse_step`-th layer but the `dense_layers`."""
    step = fields.integer(experts.sparse_step) if experts.sparse_step else 1
    dense = fields.values.get(experts.dense_layers) or []
    if not isinstance(dense, list) or not all(isinstance(layer, int) for layer in dense):
        raise fields.error(f"{experts.dense_layers} is {dense!r}; a list of layers' numbers is needed.")
    return tuple((layer + 1) % step == 0 and layer not in dense for layer in range(num_layers))
