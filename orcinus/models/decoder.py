"""One decoder for all families: what differs between them it is told by its configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from orcinus.core.request import PoolingType
from orcinus.kernels import AttentionBatch, KernelSet
from orcinus.kernels.check import check_batch_invariance
from orcinus.kernels.reference import ReferenceKernels
from orcinus.models import ModelShape
from orcinus.models.assembly import Assembler, Body
from orcinus.models.config import ModelConfig
from orcinus.models.loader import Checkpoint
from orcinus.models.weights import FileSource, HeaderSource, PartBuilder


@dataclass(frozen=True, slots=True)
class Decoder:
    """Tokens in, logits out.

    Args:
        num_parameters: as the checkpoint stores them; a tied head counts once.
        weight_bytes: memory that the model keeps: weights as packed (a tied head that packing copies counts twice)
            and the rotary table.
        weights_revision: `Checkpoint.revision`.
    """

    config: ModelConfig
    kernels: KernelSet
    body: Body
    num_parameters: int
    weight_bytes: int
    weights_revision: str

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
    ) -> Decoder:
        """Read the weights in `folder`, tensor by tensor.

        Args:
            progress: called with bytes done and bytes in all.

        Raises:
            CheckpointError: weights that are missing, damaged or not those of `config`, before the first is read.
        """
        checkpoint = Checkpoint.open(folder).with_names(config.family.names.older)
        prefix = _prefix(checkpoint, config)
        headers = _check_headers(checkpoint, config, prefix)
        files = FileSource(checkpoint, dtype, device, headers.num_bytes, progress)
        builder = PartBuilder(files, config, kernels)
        rotaries = {rotary for rotary in config.rotaries if rotary is not None}
        tables = {rotary: rotary.table(config.max_positions, device) for rotary in rotaries}
        body = Assembler(builder, config, kernels, prefix, tables).body()
        held_bytes = builder.held_bytes + sum(table.nbytes for table in tables.values())
        return cls(config, kernels, body, headers.num_elements, held_bytes, checkpoint.revision)

    @property
    def shape(self) -> ModelShape:
        """Sizes and abilities."""
        config, body = self.config, self.body
        qkv = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        return ModelShape(
            architecture=config.architecture,
            vocab_size=config.vocab_size,
            hidden_size=config.embedding_size,
            num_layers=config.num_layers,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            widest=max(
                qkv, 3 * config.intermediate_size, 0 if config.moe is None else config.moe.widest(config.hidden_size)
            ),
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
        return "eager"

    def check_batch_invariance(self) -> None:
        """Compare rows alone and in a crowd, for every product of the model.

        Raises:
            BatchVarianceError: a row's bits depend on its company.
        """
        embedding = self.body.embedding.words
        check_batch_invariance(self.kernels, self.linear_shapes(), embedding.dtype, embedding.device)

    def forward(
        self,
        tokens: Tensor,
        batch: AttentionBatch,
        kv: Sequence[tuple[Tensor, Tensor]],
        segments: Tensor | None = None,
    ) -> Tensor:
        """See `Model.forward`."""
        x = self.body.embedding(tokens, batch.positions, segments)
        for layer, layer_kv in zip(self.body.layers, kv, strict=True):
            x = layer(x, batch, layer_kv)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Model.logits`."""
        assert self.body.head is not None
        if not len(hidden):
            return hidden.new_empty((0, self.config.vocab_size), dtype=torch.float32)
        logits, cap = self.kernels.linear_float32(self.states(hidden), self.body.head), self.config.logit_soft_cap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)

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
    headers, kernels, names = HeaderSource(checkpoint), ReferenceKernels(), config.family.names
    Assembler(PartBuilder(headers, config, kernels), config, kernels, prefix, {}).body()
    tied = (f"{names.head}.weight",) if config.tie_embeddings else ()
    checkpoint.refuse_unused(headers.names, names.ignored + tied)
    return headers


def _prefix(checkpoint: Checkpoint, config: ModelConfig) -> str:
    """The first of the family's prefixes under which the embedding lies."""
    names = config.family.names
    fitting = [prefix for prefix in names.prefixes if f"{prefix}{names.embedding}.weight" in checkpoint.tensors]
    return fitting[0] if fitting else names.prefixes[0]
