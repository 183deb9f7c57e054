"""What of a model one worker holds: whole layers by stage, and of each layer some heads, columns and words by rank.

The layout is Megatron's: a product that widens is cut by its outputs, the one that narrows again by its inputs, so that
a layer needs two sums over ranks (SYSTEMS.md, sections 1 and 10). Experts aren't cut: each rank holds some of them, and
the same two sums do (section 13).
"""

from __future__ import annotations

from dataclasses import dataclass

from orcinus.errors import ConfigurationError
from orcinus.models.config import ModelConfig
from orcinus.parallel import Alone, Place, Span, TensorGroup


@dataclass(frozen=True, slots=True)
class Slices:
    """One worker's part.

    Args:
        layers: those of its stage.
        heads: of the queries; `kv_heads` are those that they look at, which several ranks may hold.
        inner: columns of a dense MLP.
        experts: each held whole, by one rank of its stage.
        words: rows of the vocabulary.
    """

    place: Place
    group: TensorGroup
    layers: range
    heads: Span
    kv_heads: Span
    inner: Span
    experts: Span
    words: Span

    @classmethod
    def of(cls, config: ModelConfig, place: Place, group: TensorGroup | None = None) -> Slices:
        """The part of `place`.

        Raises:
            ConfigurationError: the model can't be cut so.
        """
        rank, size = place.tensor_rank, place.tensor_size
        _refuse_impossible(config, place)
        layers = Span.share(config.num_layers, place.stage, place.num_stages)
        heads = Span.share(config.num_heads, rank, size)
        return cls(
            place=place,
            group=Alone() if group is None else group,
            layers=range(layers.start, layers.stop),
            heads=heads,
            kv_heads=_kv_heads(config, heads),
            inner=Span.share(config.intermediate_size, rank, size),
            experts=Span.share(0 if config.moe is None else config.moe.num_experts, rank, size),
            words=Span.share(config.vocab_size, rank, size),
        )


def _kv_heads(config: ModelConfig, heads: Span) -> Span:
    """Those that the query heads share."""
    share = config.num_heads // config.num_kv_heads
    return Span(heads.start // share, -(-heads.stop // share), config.num_kv_heads)


def _refuse_impossible(config: ModelConfig, place: Place) -> None:
    size, kv_heads = place.tensor_size, config.num_kv_heads
    if config.num_heads % size or (kv_heads % size and size % kv_heads):
        fitting = [n for n in range(1, config.num_heads + 1) if _fits(config, n)]
        raise ConfigurationError(
            f"tensor_parallel_size is {size}, but {config.num_heads} attention heads over {kv_heads} key-value heads "
            f"don't divide among {size} ranks; {', '.join(map(str, fitting))} would do"
        )
    if place.num_stages > config.num_layers:
        raise ConfigurationError(
            f"pipeline_parallel_size is {place.num_stages}, but the model has only {config.num_layers} layers"
        )


def _fits(config: ModelConfig, size: int) -> bool:
    kv_heads = config.num_kv_heads
    return config.num_heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)
