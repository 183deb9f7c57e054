"""Models behind one interface: what a worker runs, and what an engine must know about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from orcinus.core.request import PoolingType
from orcinus.kernels import AttentionBatch


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the rooms above need to know of a model. Sizes in elements.

    Args:
        architecture: as config.json names it.
        num_layers, num_kv_heads: those of which this worker keeps KV.
        width: elements a token between layers, and so between stages; 0 where a model isn't cut.
        widest: elements a token of the largest intermediate, for the memory plan.
        max_positions: the longest sequence that the model was made for.
        is_causal: a token sees earlier ones only; else a sequence can't be cut into chunks.
        generates: it has a vocabulary head (of a pipeline, the last stage alone); likewise with `labels`.
        labels: names of the classes, in the order of `class_scores`; empty without a classifier.
        pooling: how a sequence's states become one vector, as the checkpoint says or its kind suggests.
        pair_segments: tokens of a pair's second text are marked (BERT's token types).
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    widest: int
    max_positions: int
    is_causal: bool = True
    generates: bool = True
    labels: tuple[str, ...] = ()
    pooling: PoolingType = "last"
    pair_segments: bool = False
    width: int = 0


class Model(Protocol):
    """Tokens in, hidden states out, and the heads on them. Every row keeps promise 2."""

    @property
    def shape(self) -> ModelShape:
        """Sizes and abilities."""
        ...

    @property
    def num_parameters(self) -> int:
        """As the checkpoint stores them; a tied head counts once."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Memory that the model keeps."""
        ...

    @property
    def weights_revision(self) -> str:
        """Identifies the weights."""
        ...

    @property
    def implementation(self) -> str:
        """Whose code computes it, for the numerics fingerprint."""
        ...

    def check_batch_invariance(self) -> None:
        """Prove on this machine, as far as a sample can, that a row's bits don't depend on its company.

        Raises:
            BatchVarianceError: they do.
        """
        ...

    def forward(
        self,
        tokens: Tensor,
        batch: AttentionBatch,
        kv: Sequence[tuple[Tensor, Tensor]],
        segments: Tensor | None = None,
        hidden: Tensor | None = None,
        on_progress: Callable[[], None] | None = None,
    ) -> Tensor:
        """Run tokens through the layers; every row's K and V are written. Never waits for the device.

        Args:
            tokens: int64 [tokens].
            kv: keys and values of each layer.
            segments: int64 [tokens], 0 or 1, where `pair_segments`; None means all 0.
            hidden: what the stage before gave; then tokens and segments don't matter.
            on_progress: called whenever a part of the work is done, so that slow can be told from hung.

        Returns:
            [tokens, hidden_size]: what the heads take, before the final norm, or the next stage.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary scores of some rows of `forward`, float32 [rows, vocab_size]. Only where `generates`.

        Every tensor rank calls it; all but rank 0 get [0, vocab_size].
        """
        ...

    def states(self, hidden: Tensor) -> Tensor:
        """The model's output of some rows of `forward`, [rows, hidden_size]: normed, as pooling takes it."""
        ...

    def class_scores(self, pooled: Tensor) -> Tensor:
        """Scores of the labels from pooled states [rows, hidden_size]: float32 [rows, labels]. Only with `labels`."""
        ...
