"""Which rotation each layer was trained with, from the ways in which configurations have said it."""

from __future__ import annotations

import math

from orcinus.errors import nearest
from orcinus.layers.rotary import DynamicScaling, LinearScaling, Llama3Scaling, Rotary, Scaling, YarnScaling
from orcinus.models.families.family import Family
from orcinus.models.fields import ConfigFields


def read_rotaries(
    fields: ConfigFields, family: Family, head_dim: int, windows: tuple[int | None, ...]
) -> tuple[Rotary | None, ...]:
    """One entry a layer; None where positions enter otherwise.

    Raises:
        CheckpointError: a scaling that isn't served, or a malformed one.
    """
    if family.positions != "rotary":
        return (None,) * len(windows)
    keys, nested = family.keys, bool(fields.values.get("rope_parameters"))
    # Transformers 5, and before.
    parameters = fields.inner("rope_parameters" if nested else "rope_scaling")
    if not keys.local_rope_theta:
        return (_rotary(fields, parameters, keys.rope_theta, family, head_dim),) * len(windows)
    # Before, scaling was said of the layers that see all, and the windowed ones had none.
    full, local = parameters.inner("full_attention") if nested else parameters, parameters.inner("sliding_attention")
    everywhere = _rotary(fields, full, keys.rope_theta, family, head_dim)
    windowed = _rotary(fields, local, keys.local_rope_theta, family, head_dim)
    return tuple(everywhere if window is None else windowed for window in windows)


def extended_positions(rotaries: tuple[Rotary | None, ...], trained: int) -> int:
    """The longest sequence, where scaling says how much further than `trained` it goes."""
    scalings = [rotary.scaling for rotary in rotaries if rotary is not None]
    lengths = [
        int(scaling.factor * scaling.original_positions)
        for scaling in scalings
        if isinstance(scaling, YarnScaling | DynamicScaling)
    ]
    return max([trained, *lengths])


def _rotary(fields: ConfigFields, parameters: ConfigFields, theta_key: str, family: Family, head_dim: int) -> Rotary:
    kind = parameters.text("rope_type", default=parameters.text("type", default="default"))
    theta = parameters.positive("rope_theta", default=fields.number(theta_key))
    if kind not in family.rope_types:
        served = ", ".join(family.rope_types)
        raise fields.error(f"rope type {kind!r} is not served{nearest(kind, family.rope_types)}; {served} are.")
    dim = int(head_dim * _share(fields, parameters, family))
    if not 1 <= dim + dim % 2 <= head_dim:
        raise fields.error(f"{dim} of a head's {head_dim} dimensions would be rotated; an even number is needed.")
    return Rotary(dim, theta, _scaling(fields, parameters, kind, family))


def _share(fields: ConfigFields, parameters: ConfigFields, family: Family) -> float:
    """The part of a head that is rotated."""
    share = parameters.number("partial_rotary_factor", default=fields.number(family.keys.rotary_share, default=1.0))
    if share != 1 and not family.partial_rotary:
        raise fields.error(
            f"partial_rotary_factor is {share}; {family.model_type} models rotate whole heads, so only 1 is served."
        )
    return share


def _scaling(fields: ConfigFields, parameters: ConfigFields, kind: str, family: Family) -> Scaling | None:
    positions = fields.integer(family.keys.max_positions)
    # Some files say it beside the parameters; that one counts.
    original = parameters.integer("original_max_position_embeddings", default=positions)
    original = fields.integer("original_max_position_embeddings", default=original)
    if kind == "linear":
        return LinearScaling(parameters.positive("factor"))
    if kind == "dynamic":
        return DynamicScaling(parameters.positive("factor"), positions)
    if kind == "yarn":
        return _yarn(parameters, original, positions)
    if kind == "llama3":
        return Llama3Scaling(
            factor=parameters.positive("factor"),
            low_freq_factor=parameters.number("low_freq_factor"),
            high_freq_factor=parameters.number("high_freq_factor"),
            original_positions=original,
        )
    return None


def _yarn(parameters: ConfigFields, original: int, positions: int) -> YarnScaling:
    factor = parameters.positive("factor", default=positions / original)
    mscale, all_dim = parameters.number("mscale", default=0.0), parameters.number("mscale_all_dim", default=0.0)
    attention_factor = _yarn_gain(factor, mscale) / _yarn_gain(factor, all_dim) if mscale and all_dim else None
    return YarnScaling(
        factor=factor,
        attention_factor=parameters.number("attention_factor", default=attention_factor or _yarn_gain(factor, 1.0)),
        # Zero stands for unsaid.
        beta_fast=parameters.number("beta_fast", default=0.0) or 32.0,
        beta_slow=parameters.number("beta_slow", default=0.0) or 1.0,
        original_positions=original,
        truncate=parameters.flag("truncate", default=True),
    )


def _yarn_gain(factor: float, mscale: float) -> float:
    """The paper's fit of how much sharper attention should be for a context stretched by `factor`."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0
