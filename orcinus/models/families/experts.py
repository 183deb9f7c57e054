"""What an entry of the table says about a mixture of experts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Experts:
    """Names within a layer, the first `{}` being the expert's number, and keys of config.json.

    Args:
        gate: the router's projection.
        input: an expert's gate and up projections.
        intermediate_size: key, of one expert.
        normalise_weights: the weights of a token's experts sum to 1; or the key that says.
        dense_layers: key, layers that have one dense MLP instead; empty where the family has none.
        sparse_step: key, every how many layers there are experts; empty where each has them.
    """

    gate: str = "mlp.gate"
    input: tuple[str, str] = ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj")
    output: str = "mlp.experts.{}.down_proj"
    intermediate_size: str = "intermediate_size"
    normalise_weights: bool | str = "norm_topk_prob"
    dense_layers: str = ""
    sparse_step: str = ""
