"""One decoder for all families: what differs between them it is told by its configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from orcinus.core.request import PoolingType
from orcinus.kernels import AttentionBatch, KernelSet, LayerCall
from orcinus.kernels.check import check_batch_invariance, check_quantized
from orcinus.kernels.reference import ReferenceKernels
from orcinus.models import ModelShape
from orcinus.models.assembly import Assembler, Body
from orcinus.models.config import ModelConfig
from orcinus.models.loader import Checkpoint
from orcinus.models.quantized.recipes import Recipe
from orcinus.models.slices import Slices
from orcinus.models.sources import FileSource, HeaderSource
from orcinus.models.weights import PartBuilder
from orcinus.parallel import Place, TensorGroup


@dataclass(frozen=True, slots=True)
class Decoder:
    """Tokens in, logits out; or the part of that which one worker holds.

    Args:
        slices: that part.
        num_parameters: as the checkpoint stores them; a tied head counts once.
        weight_bytes: memory that the model keeps: weights as packed (a tied head that packing copies counts twice)
            and the rotary table.
        weights_revision: `Checkpoint.revision`.
        recipe: what was quantised at load.
        layers: the body's, as they run.
    """

    config: ModelConfig
    kernels: KernelSet
    slices: Slices
    body: Body
    dtype: torch.dtype
    device: torch.device
    num_parameters: int
    weight_bytes: int
    weights_revision: str
    recipe: Recipe | None
    layers: tuple[LayerCall, ...]

    @classmethod
    def load(
        cls,
        folder: Path,
        config: ModelConfig,
        *,
        dtype: torch.dtype,
        device: torch.device,
        kernels: KernelSet,
        progress: Callable[[int, int], None] | None = None,
        place: Place | None = None,
        group: TensorGroup | None = None,
        recipe: Recipe | None = None,
    ) -> Decoder:
        """Read the weights in `folder`, tensor by tensor, but only those that `place` is for.

        Args:
            progress: called with bytes done and bytes in all.
            place: among the workers that hold the model together; None holds all of it.
            group: the ranks of this worker's stage.
            recipe: what is quantised at load.

        Raises:
            ConfigurationError: the model can't be cut so.
            CheckpointError: weights that are missing, damaged or not those of `config`, before the first is read.
        """
        checkpoint = Checkpoint.open(folder).with_names(config.family.names.older)
        prefix = _prefix(checkpoint, config)
        slices = Slices.of(config, place or Place(), group)
        headers = _check_headers(checkpoint, config, prefix)
        mine = headers if place is None else _read_headers(checkpoint, config, prefix, slices)
        files = FileSource(checkpoint, config.layout, dtype, device, mine.num_bytes, progress)
        builder = PartBuilder(files, config, kernels, recipe)
        rotaries = {rotary for rotary in config.rotaries if rotary is not None}
        tables = {rotary: rotary.table(config.max_positions, device) for rotary in rotaries}
        body = Assembler(builder, config, kernels, prefix, tables, slices).body()
        held_bytes = builder.held_bytes + sum(table.nbytes for table in tables.values())
        # What ranks tell each other can't be on tape.
        layers = kernels.taped(body.layers) if slices.group.size == 1 else body.layers
        return cls(
            config, kernels, slices, body, dtype, device, headers.num_elements, held_bytes, checkpoint.revision, recipe,
            layers,
        )  # fmt: skip

    @property
    def shape(self) -> ModelShape:
        """Sizes and abilities."""
        config, body, slices = self.config, self.body, self.slices
        qkv = (len(slices.heads) + 2 * len(slices.kv_heads)) * config.head_dim
        return ModelShape(
            architecture=config.architecture,
            vocab_size=config.vocab_size,
            hidden_size=config.embedding_size,
            width=config.hidden_size,
            num_layers=len(slices.layers),
            num_kv_heads=len(slices.kv_heads),
            head_dim=config.head_dim,
            widest=max(qkv, 3 * len(slices.inner), 0 if config.moe is None else config.moe.widest(config.hidden_size)),
            max_positions=config.max_positions,
            is_causal=config.family.causal,
            generates=body.head is not None,
            labels=config.labels if body.classifier is not None else (),
            pooling=config.pooling or self._usual_pooling(),
            pair_segments=config.num_segments > 1,
        )

    def _usual_pooling(self) -> PoolingType:
        if self.config.family.causal:
            return "last"
        return "mean" if self.body.classifier is None else "cls"

    @property
    def implementation(self) -> str:
        """See `Model.implementation`."""
        return "eager" if self.recipe is None else f"eager-{self.recipe.name}"

    def check_batch_invariance(self) -> None:
        """Compare rows alone and in a crowd, for every product of the model.

        Raises:
            BatchVarianceError: a row's bits depend on its company.
        """
        products = self.body.products
        shapes = sorted({(p.in_features, p.out_features) for p in products if p.bits is None})
        check_batch_invariance(self.kernels, shapes, self.dtype, self.device)
        check_quantized(self.kernels, [p for p in products if p.bits is not None], self.dtype, self.device)

    def forward(
        self,
        tokens: Tensor,
        batch: AttentionBatch,
        kv: Sequence[tuple[Tensor, Tensor]],
        segments: Tensor | None = None,
        hidden: Tensor | None = None,
        on_progress: Callable[[], None] | None = None,
    ) -> Tensor:
        """See `Model.forward`."""
        if hidden is None:
            assert self.body.embedding is not None, "later stages go on from hidden states"
            hidden = self.body.embedding(tokens, batch.positions, segments)
        x = hidden
        for layer, layer_kv in zip(self.layers, kv, strict=True):
            x = layer(x, batch, layer_kv)
            if on_progress is not None:
                on_progress()
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Model.logits`."""
        assert self.body.head is not None
        if len(hidden):
            mine = self.kernels.linear_float32(self.states(hidden), self.body.head)
            logits, cap = self.slices.group.gather(mine, self.slices.words), self.config.logit_soft_cap
            if logits is not None:
                return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)
        return hidden.new_empty((0, self.config.vocab_size), dtype=torch.float32)

    def states(self, hidden: Tensor) -> Tensor:
        """See `Model.states`."""
        norm, projection = self.body.final_norm, self.body.state_projection
        states = hidden if norm is None else norm(hidden)
        return states if projection is None else self.kernels.linear(states, projection)

    def class_scores(self, pooled: Tensor) -> Tensor:
        """See `Model.class_scores`."""
        assert self.body.classifier is not None
        return self.body.classifier(pooled)

    def linear_shapes(self) -> list[tuple[int, int]]:
        """The distinct (in, out) of all products, smallest first."""
        return sorted({(product.in_features, product.out_features) for product in self.body.products})


def _check_headers(checkpoint: Checkpoint, config: ModelConfig, prefix: str) -> HeaderSource:
    """Build the model once without data, so that a tensor missing at the end is told at once.

    Raises:
        CheckpointError: a tensor missing, misshapen or left over.
    """
    headers, names = _read_headers(checkpoint, config, prefix, Slices.of(config, Place())), config.family.names
    tied = (f"{names.head}.weight",) if config.tie_embeddings else ()
    needless = config.layout.unused if config.layout is not None else lambda _: False
    checkpoint.refuse_unused(headers.names, names.ignored + tied, needless)
    return headers


def _read_headers(checkpoint: Checkpoint, config: ModelConfig, prefix: str, slices: Slices) -> HeaderSource:
    """Build a part without data."""
    headers, kernels = HeaderSource(checkpoint, config.layout), ReferenceKernels()
    Assembler(PartBuilder(headers, config, kernels), config, kernels, prefix, {}, slices).body()
    return headers


def _prefix(checkpoint: Checkpoint, config: ModelConfig) -> str:
    """The first of the family's prefixes under which the embedding lies."""
    names = config.family.names
    fitting = [prefix for prefix in names.prefixes if f"{prefix}{names.embedding}.weight" in checkpoint.tensors]
    return fitting[0] if fitting else names.prefixes[0]
