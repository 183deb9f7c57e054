"""Puts a model's body together from its tensors, as its configuration says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from orcinus.kernels import AttentionSpec, KernelSet, PackedLinear
from orcinus.layers.attention import Attention
from orcinus.layers.classifier import Classifier
from orcinus.layers.embedding import Embedding
from orcinus.layers.mlp import GatedMlp, Mlp, PlainMlp
from orcinus.layers.norm import AcrossHeads, Norm
from orcinus.layers.residual import Layer, ParallelLayer, PostNormLayer, PreNormLayer, SandwichLayer
from orcinus.layers.rotary import Rotary
from orcinus.models.assembly_moe import moe_mlp
from orcinus.models.config import ModelConfig
from orcinus.models.families.family import Residual
from orcinus.models.weights import PartBuilder


@dataclass(frozen=True, slots=True)
class Body:
    """All that holds weights; None for what a model lacks."""

    embedding: Embedding
    layers: tuple[Layer, ...]
    final_norm: Norm | None
    state_projection: PackedLinear | None
    head: PackedLinear | None
    classifier: Classifier | None

    @property
    def products(self) -> tuple[PackedLinear, ...]:
        """All matrices that it multiplies by."""
        layers = [(layer.attention.qkv, layer.attention.output, *layer.mlp.products) for layer in self.layers]
        around = (self.embedding.projection, self.state_projection, self.head)
        heads = self.classifier.products if self.classifier else ()
        return (*(p for layer in layers for p in layer), *(p for p in around if p is not None), *heads)


@dataclass(frozen=True, slots=True)
class Assembler:
    """Builds the parts of one model.

    Args:
        builder: reads the tensors.
        prefix: what stands before every name but the heads'.
        tables: cosines and sines of each rotation that the layers use.
    """

    builder: PartBuilder
    config: ModelConfig
    kernels: KernelSet
    prefix: str
    tables: Mapping[Rotary, Tensor]

    def body(self) -> Body:
        """All of it, in about the order in which files hold it."""
        embedding = self._embedding()
        layers = tuple(self._layer(index) for index in range(self.config.num_layers))
        return Body(
            embedding=embedding,
            layers=layers,
            final_norm=self._final_norm(),
            state_projection=self._projection(self.config.family.names.state_projection, outwards=True),
            head=self._head(embedding.words),
            classifier=self._classifier(),
        )

    def _embedding(self) -> Embedding:
        config, family, names = self.config, self.config.family, self.config.family.names
        words = self.builder.table(self.prefix + names.embedding, config.vocab_size, config.embedding_size)
        positions = self._table(names.positions, config.max_positions + family.position_offset)
        return Embedding(
            kernels=self.kernels,
            words=words,
            scale=_rounded(config.hidden_size**0.5, words.dtype) if family.scaled_embedding else None,
            projection=self._projection(names.embedding_projection, outwards=False),
            positions=None if positions is None else positions[family.position_offset :],
            segments=self._table(names.segments, config.num_segments),
            norm=self._norm(self.prefix, names.embedding_norm) if names.embedding_norm else None,
        )

    def _table(self, name: str, rows: int) -> Tensor | None:
        return self.builder.table(self.prefix + name, rows, self.config.hidden_size) if name else None

    def _projection(self, name: str, *, outwards: bool) -> PackedLinear | None:
        """Between the embedding's width and the model's, where they differ."""
        inner, outer = self.config.hidden_size, self.config.embedding_size
        if inner == outer:
            return None
        return self.builder.head(self.prefix + name, *((outer, inner) if outwards else (inner, outer)), bias=False)

    def _final_norm(self) -> Norm | None:
        name = self.config.family.names.final_norm
        # A layer that norms afterwards leaves nothing to norm.
        return None if not name or self.config.residual == "post_norm" else self._norm(self.prefix, name)

    def _head(self, words: Tensor) -> PackedLinear | None:
        """Where the architecture promises one, and where the checkpoint holds one all the same."""
        config, name = self.config, self.config.family.names.head
        if config.use != "generate" and not self.builder.has(name):
            return None
        if config.tie_embeddings:
            return self.builder.tied_head(words)
        return self.builder.head(name, config.vocab_size, config.embedding_size, bias=False)

    def _classifier(self) -> Classifier | None:
        """Likewise."""
        config, names = self.config, self.config.family.names
        if config.use != "classify" and not self.builder.has(names.classifier):
            return None
        bias, size = config.family.classifier_bias, config.embedding_size
        return Classifier(
            kernels=self.kernels,
            pooler=self.builder.head(self.prefix + names.pooler, size, size, bias=True) if names.pooler else None,
            output=self.builder.head(names.classifier, len(config.labels), size, bias=bias),
        )

    def _layer(self, index: int) -> Layer:
        return _LAYERS[self.config.residual](self, index, self.prefix + self.config.family.names.layer.format(index))

    def pre_norm(self, index: int, prefix: str) -> Layer:
        """A layer of this form, whose tensors' names begin with `prefix`; likewise the following."""
        names = self.config.family.names
        return PreNormLayer(
            attention_norm=self._norm(prefix, names.attention_norm),
            attention=self._attention(index, prefix),
            mlp_norm=self._norm(prefix, names.mlp_norm),
            mlp=self._mlp(index, prefix),
        )

    def post_norm(self, index: int, prefix: str) -> Layer:
        """See `pre_norm`."""
        names = self.config.family.names
        return PostNormLayer(
            attention=self._attention(index, prefix),
            attention_norm=self._norm(prefix, names.attention_norm),
            mlp=self._mlp(index, prefix),
            mlp_norm=self._norm(prefix, names.mlp_norm),
        )

    def parallel(self, index: int, prefix: str) -> Layer:
        """See `pre_norm`."""
        names = self.config.family.names
        return ParallelLayer(
            attention_norm=self._norm(prefix, names.attention_norm),
            mlp_norm=self._norm(prefix, names.mlp_norm),
            attention=self._attention(index, prefix),
            mlp=self._mlp(index, prefix),
        )

    def sandwich(self, index: int, prefix: str) -> Layer:
        """See `pre_norm`."""
        names = self.config.family.names
        return SandwichLayer(
            attention_norm=self._norm(prefix, names.attention_norm),
            attention=self._attention(index, prefix),
            attention_output_norm=self._norm(prefix, names.attention_output_norm),
            mlp_norm=self._norm(prefix, names.mlp_norm),
            mlp=self._mlp(index, prefix),
            mlp_output_norm=self._norm(prefix, names.mlp_output_norm),
        )

    def _norm(self, prefix: str, name: str) -> Norm:
        return self.builder.norm(prefix + name, self.config.hidden_size)

    def _attention(self, index: int, prefix: str) -> Attention:
        config, builder, names = self.config, self.builder, self.config.family.names
        head_dim, normed, rotary = config.head_dim, config.family.query_key_norm, config.rotaries[index]
        heads, kv_heads = config.num_heads * head_dim, config.num_kv_heads * head_dim
        qkv, output = tuple(prefix + name for name in names.qkv), (prefix + names.attention_output,)
        return Attention(
            kernels=self.kernels,
            spec=self._attention_spec(index),
            qkv=builder.linear(
                qkv,
                (heads, kv_heads, kv_heads),
                config.hidden_size,
                bias=config.qkv_bias,
                order=self._apart if config.family.interleaved_qkv else None,
            ),
            output=builder.linear(output, (config.hidden_size,), heads, bias=config.attention_output_bias),
            query_norm=self._head_norm(prefix + names.query_norm, config.num_heads) if normed else None,
            key_norm=self._head_norm(prefix + names.key_norm, config.num_kv_heads) if normed else None,
            cos_sin=None if rotary is None else self.tables.get(rotary),
        )

    def _apart(self, rows: Tensor) -> Tensor:
        """Rows [head, query or key or value, head_dim] in the order [query or key or value, head, head_dim]."""
        shape = (self.config.num_heads, 3, self.config.head_dim, *rows.shape[1:])
        return rows.view(shape).transpose(0, 1).flatten(0, 2)

    def _head_norm(self, name: str, num_heads: int) -> Norm:
        head_dim = self.config.head_dim
        if self.config.family.norm_across_heads:
            return AcrossHeads(self.builder.norm(name, num_heads * head_dim))
        return self.builder.norm(name, head_dim)

    def _attention_spec(self, index: int) -> AttentionSpec:
        config = self.config
        return AttentionSpec(
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            scale=config.attention_scale,
            causal=config.family.causal,
            window=config.windows[index],
            soft_cap=config.attention_soft_cap,
        )

    def _mlp(self, index: int, prefix: str) -> Mlp:
        moe = self.config.moe
        if moe is not None and moe.sparse_layers[index]:
            return moe_mlp(self.builder, self.config, self.kernels, prefix)
        return self._dense_mlp(prefix)

    def _dense_mlp(self, prefix: str) -> Mlp:
        config, names, builder = self.config, self.config.family.names, self.builder
        inner, bias, gated = config.intermediate_size, config.mlp_bias, config.family.gated_mlp
        inputs, output = tuple(prefix + name for name in names.mlp_input), (prefix + names.mlp_output,)
        return (GatedMlp if gated else PlainMlp)(
            kernels=self.kernels,
            input=builder.linear(inputs, (inner,) * (2 if gated else 1), config.hidden_size, bias=bias),
            output=builder.linear(output, (config.hidden_size,), inner, bias=bias),
            activation=config.activation,
        )


_LAYERS: Mapping[Residual, Callable[[Assembler, int, str], Layer]] = {
    "pre_norm": Assembler.pre_norm,
    "post_norm": Assembler.post_norm,
    "parallel": Assembler.parallel,
    "sandwich": Assembler.sandwich,
}


def _rounded(value: float, dtype: torch.dtype) -> float:
    """As those who trained with it in `dtype` had it."""
    return float(torch.tensor(value, dtype=dtype))
