"""One decoder for all families: what differs between them it is told by its configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from orcinus.kernels import AttentionBatch, AttentionSpec, KernelSet, PackedLinear
from orcinus.kernels.check import check_batch_invariance
from orcinus.kernels.reference import ReferenceKernels
from orcinus.layers.attention import Attention
from orcinus.layers.mlp import GatedMlp, Mlp, PlainMlp
from orcinus.layers.norm import Norm
from orcinus.models import ModelShape
from orcinus.models.config import ModelConfig
from orcinus.models.loader import Checkpoint
from orcinus.models.weights import FileSource, HeaderSource, PartBuilder


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """Attention, then the MLP, each after a norm and added to what came in."""

    input_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: Mlp

    def __call__(self, x: Tensor, batch: AttentionBatch, kv: tuple[Tensor, Tensor]) -> Tensor:
        """[tokens, hidden] → [tokens, hidden]."""
        x = x + self.attention(self.input_norm(x), batch, kv)
        return x + self.mlp(self.mlp_norm(x))


@dataclass(frozen=True, slots=True)
class DecoderBody:
    """All that holds weights. `positions` are learned ones [max_positions, hidden], where the family has them."""

    embedding: Tensor
    positions: Tensor | None
    layers: tuple[DecoderLayer, ...]
    final_norm: Norm
    head: PackedLinear

    @classmethod
    def build(
        cls, builder: PartBuilder, config: ModelConfig, kernels: KernelSet, cos_sin: Tensor | None
    ) -> DecoderBody:
        """From the tensors that `builder` reads, in about the order in which files hold them."""
        names = config.family.names
        embedding = builder.table(names.embedding, config.vocab_size)
        return cls(
            embedding=embedding,
            positions=builder.table(names.positions, config.max_positions) if names.positions else None,
            layers=tuple(_layer(builder, config, kernels, cos_sin, index) for index in range(config.num_layers)),
            final_norm=builder.norm(names.final_norm, config.hidden_size),
            head=builder.head(embedding),
        )


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
    body: DecoderBody
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
        checkpoint = Checkpoint.open(folder)
        headers = _check_headers(checkpoint, config)
        files = FileSource(checkpoint, dtype, device, headers.num_bytes, progress)
        builder = PartBuilder(files, config, kernels, _prefix(checkpoint, config))
        cos_sin = None if config.rotary is None else config.rotary.table(config.max_positions, device)
        body = DecoderBody.build(builder, config, kernels, cos_sin)
        held_bytes = builder.held_bytes + (0 if cos_sin is None else cos_sin.nbytes)
        return cls(config, kernels, body, headers.num_elements, held_bytes, checkpoint.revision)

    @property
    def shape(self) -> ModelShape:
        """Sizes and abilities."""
        config = self.config
        qkv = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        return ModelShape(
            architecture=config.architecture,
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            widest=max(qkv, 3 * config.intermediate_size),
            max_positions=config.max_positions,
            is_causal=config.family.causal,
        )

    def check_batch_invariance(self) -> None:
        """Compare rows alone and in a crowd, for every product of the model.

        Raises:
            BatchVarianceError: a row's bits depend on its company.
        """
        embedding = self.body.embedding
        check_batch_invariance(self.kernels, self.linear_shapes(), embedding.dtype, embedding.device)

    def forward(
        self,
        tokens: Tensor,
        batch: AttentionBatch,
        kv: Sequence[tuple[Tensor, Tensor]],
        segments: Tensor | None = None,
    ) -> Tensor:
        """See `Model.forward`."""
        body = self.body
        x = F.embedding(tokens, body.embedding)
        if body.positions is not None:
            x = x + F.embedding(batch.positions, body.positions)
        for layer, layer_kv in zip(body.layers, kv, strict=True):
            x = layer(x, batch, layer_kv)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Model.logits`."""
        if not len(hidden):
            return hidden.new_empty((0, self.config.vocab_size), dtype=torch.float32)
        return self.kernels.linear_float32(self.states(hidden), self.body.head)

    def states(self, hidden: Tensor) -> Tensor:
        """See `Model.states`."""
        return self.body.final_norm(hidden)

    def class_scores(self, pooled: Tensor) -> Tensor:
        """See `Model.class_scores`."""
        raise NotImplementedError

    def linear_shapes(self) -> list[tuple[int, int]]:
        """The distinct (in, out) of all products, smallest first."""
        products = [self.body.head]
        for layer in self.body.layers:
            products += [layer.attention.qkv, layer.attention.output, layer.mlp.input, layer.mlp.output]
        return sorted({(product.in_features, product.out_features) for product in products})


def _check_headers(checkpoint: Checkpoint, config: ModelConfig) -> HeaderSource:
    """Build the model once without data, so that a tensor missing at the end is told at once.

    Raises:
        CheckpointError: a tensor missing, misshapen or left over.
    """
    headers, kernels, names = HeaderSource(checkpoint), ReferenceKernels(), config.family.names
    DecoderBody.build(PartBuilder(headers, config, kernels, _prefix(checkpoint, config)), config, kernels, None)
    tied = (f"{names.head}.weight",) if config.tie_embeddings else ()
    checkpoint.refuse_unused(headers.names, names.ignored + tied)
    return headers


def _prefix(checkpoint: Checkpoint, config: ModelConfig) -> str:
    """The first of the family's prefixes under which the embedding lies."""
    names = config.family.names
    fitting = [prefix for prefix in names.prefixes if f"{prefix}{names.embedding}.weight" in checkpoint.tensors]
    return fitting[0] if fitting else names.prefixes[0]


def _layer(
    builder: PartBuilder, config: ModelConfig, kernels: KernelSet, cos_sin: Tensor | None, index: int
) -> DecoderLayer:
    names, hidden = config.family.names, config.hidden_size
    prefix = names.layer.format(index)
    return DecoderLayer(
        input_norm=builder.norm(prefix + names.input_norm, hidden),
        attention=_attention(builder, config, kernels, cos_sin, index),
        mlp_norm=builder.norm(prefix + names.mlp_norm, hidden),
        mlp=_mlp(builder, config, kernels, prefix),
    )


def _attention(
    builder: PartBuilder, config: ModelConfig, kernels: KernelSet, cos_sin: Tensor | None, index: int
) -> Attention:
    names, head_dim = config.family.names, config.head_dim
    prefix, normed = names.layer.format(index), config.family.query_key_norm
    heads, kv_heads = config.num_heads * head_dim, config.num_kv_heads * head_dim
    qkv = tuple(prefix + name for name in names.qkv)
    return Attention(
        kernels=kernels,
        spec=AttentionSpec(
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=head_dim,
            scale=config.attention_scale,
            causal=config.family.causal,
            window=config.windows[index],
            soft_cap=config.attention_soft_cap,
        ),
        qkv=builder.linear(qkv, (heads, kv_heads, kv_heads), config.hidden_size, bias=config.qkv_bias),
        output=builder.linear(
            (prefix + names.attention_output,), (config.hidden_size,), heads, bias=config.attention_output_bias
        ),
        query_norm=builder.norm(prefix + names.query_norm, head_dim) if normed else None,
        key_norm=builder.norm(prefix + names.key_norm, head_dim) if normed else None,
        cos_sin=cos_sin,
    )


def _mlp(builder: PartBuilder, config: ModelConfig, kernels: KernelSet, prefix: str) -> Mlp:
    names, inner = config.family.names, config.intermediate_size
    inputs = tuple(prefix + name for name in names.mlp_input)
    return (GatedMlp if config.family.gated_mlp else PlainMlp)(
        kernels=kernels,
        input=builder.linear(inputs, (inner,) * len(inputs), config.hidden_size, bias=config.mlp_bias),
        output=builder.linear((prefix + names.mlp_output,), (config.hidden_size,), inner, bias=config.mlp_bias),
        activation=config.activation,
    )
