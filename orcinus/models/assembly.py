"""Puts a model's body together from its tensors, as its configuration says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from orcinus.kernels import AttentionSpec, KernelSet, PackedLinear
from orcinus.layers.attention import Attention
from orcinus.layers.classifier import Classifier
from orcinus.layers.embedding import Embedding, SomeWords
from orcinus.layers.mlp import GatedMlp, Mlp, PlainMlp
from orcinus.layers.norm import AcrossHeads, AcrossRanks, Norm, RmsNorm
from orcinus.layers.partial import PartialSum
from orcinus.layers.residual import Layer, ParallelLayer, PostNormLayer, PreNormLayer, SandwichLayer
from orcinus.layers.rotary import Rotary
from orcinus.models.assembly_moe import moe_mlp
from orcinus.models.config import ModelConfig
from orcinus.models.families.family import Residual
from orcinus.models.slices import Slices
from orcinus.models.weights import PartBuilder
from orcinus.parallel import Span


@dataclass(frozen=True, slots=True)
class Body:
    """All that holds weights; None for what a model lacks, or another stage holds."""

    embedding: Embedding | None
    layers: tuple[Layer, ...]
    final_norm: Norm | None
    state_projection: PackedLinear | None
    head: PackedLinear | None
    classifier: Classifier | None

    @property
    def products(self) -> tuple[PackedLinear, ...]:
        """All matrices that it multiplies by."""
        layers = [(layer.attention.qkv, layer.attention.output, *layer.mlp.products) for layer in self.layers]
        inwards = None if self.embedding is None else self.embedding.projection
        around = (inwards, self.state_projection, self.head)
        heads = self.classifier.products if self.classifier else ()
        return (*(p for layer in layers for p in layer), *(p for p in around if p is not None), *heads)


@dataclass(frozen=True, slots=True)
class Assembler:
    """Builds the parts of one model.

    Args:
        builder: reads the tensors.
        prefix: what stands before every name but the heads'.
        tables: cosines and sines of each rotation that the layers use.
        slices: the part to be built.
    """

    builder: PartBuilder
    config: ModelConfig
    kernels: KernelSet
    prefix: str
    tables: Mapping[Rotary, Tensor]
    slices: Slices

    def body(self) -> Body:
        """All of this worker's part, in about the order in which files hold it."""
        embedding = self._embedding() if self.slices.place.is_first else None
        layers = tuple(self._layer(index) for index in self.slices.layers)
        if not self.slices.place.is_last:
            return Body(embedding, layers, None, None, None, None)
        return Body(
            embedding=embedding,
            layers=layers,
            final_norm=self._final_norm(),
            state_projection=self._projection(self.config.family.names.state_projection, outwards=True),
            head=self._head(embedding),
            classifier=self._classifier(),
        )

    def _embedding(self) -> Embedding:
        config, family, names = self.config, self.config.family, self.config.family.names
        words, slices = self._words(), self.slices
        positions = self._table(names.positions, config.max_positions + family.position_offset)
        return Embedding(
            kernels=self.kernels,
            words=words,
            scale=_rounded(config.hidden_size**0.5, words.dtype) if family.scaled_embedding else None,
            projection=self._projection(names.embedding_projection, outwards=False),
            positions=None if positions is None else positions[family.position_offset :],
            segments=self._table(names.segments, config.num_segments),
            norm=self._norm(self.prefix, names.embedding_norm) if names.embedding_norm else None,
            some=None if slices.words.is_whole else SomeWords(slices.group, slices.words),
        )

    def _words(self) -> Tensor:
        name = self.prefix + self.config.family.names.embedding
        return self.builder.table(name, self.slices.words, self.config.embedding_size)

    def _table(self, name: str, rows: int) -> Tensor | None:
        return self.builder.table(self.prefix + name, Span.whole(rows), self.config.hidden_size) if name else None

    def _projection(self, name: str, *, outwards: bool) -> PackedLinear | None:
        """Between the embedding's width and the model's, where they differ."""
        inner, outer = self.config.hidden_size, self.config.embedding_size
        if inner == outer:
            return None
        rows, columns = (outer, inner) if outwards else (inner, outer)
        return self.builder.head(self.prefix + name, Span.whole(rows), columns, bias=False)

    def _final_norm(self) -> Norm | None:
        name = self.config.family.names.final_norm
        # A layer that norms afterwards leaves nothing to norm.
        return None if not name or self.config.residual == "post_norm" else self._norm(self.prefix, name)

    def _head(self, embedding: Embedding | None) -> PackedLinear | None:
        """Where the architecture promises one, and where the checkpoint holds one all the same."""
        config, name = self.config, self.config.family.names.head
        if config.use != "generate" and not self.builder.has(name):
            return None
        if config.tie_embeddings:
            words = self._words() if embedding is None else embedding.words
            return self.builder.tied_head(self.prefix + config.family.names.embedding, self.slices.words, words)
        return self.builder.vocabulary_head(name, self.slices.words, config.embedding_size)

    def _classifier(self) -> Classifier | None:
        """Likewise."""
        config, names = self.config, self.config.family.names
        if config.use != "classify" and not self.builder.has(names.classifier):
            return None
        bias, size = config.family.classifier_bias, config.embedding_size
        return Classifier(
            kernels=self.kernels,
            pooler=self.builder.head(self.prefix + names.pooler, Span.whole(size), size, bias=True)
            if names.pooler
            else None,
            output=self.builder.head(names.classifier, Span.whole(len(config.labels)), size, bias=bias),
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
        return self.builder.norm(prefix + name, Span.whole(self.config.hidden_size))

    def _attention(self, index: int, prefix: str) -> Attention:
        config, names, slices = self.config, self.config.family.names, self.slices
        normed, rotary = config.family.query_key_norm, config.rotaries[index]
        output = prefix + names.attention_output
        return Attention(
            kernels=self.kernels,
            spec=self._attention_spec(index),
            qkv=self._qkv(tuple(prefix + name for name in names.qkv)),
            output=self._narrowing(output, slices.heads.times(config.head_dim), bias=config.attention_output_bias),
            query_norm=self._head_norm(prefix + names.query_norm, slices.heads) if normed else None,
            key_norm=self._head_norm(prefix + names.key_norm, slices.kv_heads) if normed else None,
            cos_sin=None if rotary is None else self.tables.get(rotary),
            partial=self._partial(output, bias=config.attention_output_bias),
        )

    def _qkv(self, names: tuple[str, ...]) -> PackedLinear:
        config, interleaved = self.config, self.config.family.interleaved_qkv
        heads, kv_heads = (each.times(config.head_dim) for each in (self.slices.heads, self.slices.kv_heads))
        return self.builder.linear(
            names,
            (heads.times(3),) if interleaved else (heads, kv_heads, kv_heads),
            Span.whole(config.hidden_size),
            bias=config.qkv_bias,
            order=self._apart if interleaved else None,
        )

    def _narrowing(self, name: str, inputs: Span, *, bias: bool) -> PackedLinear:
        """A product back to the hidden size. Of a part of its inputs it gives a part of the sum, without the bias."""
        bias = bias and inputs.is_whole
        return self.builder.linear((name,), (Span.whole(self.config.hidden_size),), inputs, bias=bias)

    def _partial(self, name: str, *, bias: bool) -> PartialSum | None:
        if self.slices.group.size == 1:
            return None
        return PartialSum(self.slices.group, self.builder.bias(name, self.config.hidden_size) if bias else None)

    def _apart(self, rows: Tensor) -> Tensor:
        """Rows [head, query or key or value, head_dim] in the order [query or key or value, head, head_dim]."""
        shape = (len(self.slices.heads), 3, self.config.head_dim, *rows.shape[1:])
        return rows.view(shape).transpose(0, 1).flatten(0, 2)

    def _head_norm(self, name: str, heads: Span) -> Norm:
        head_dim, group = self.config.head_dim, self.slices.group
        if not self.config.family.norm_across_heads:
            return self.builder.norm(name, Span.whole(head_dim))
        norm = self.builder.norm(name, heads.times(head_dim))
        if group.size == 1:
            return AcrossHeads(norm)
        assert isinstance(norm, RmsNorm), "no family norms all heads by their mean"
        return AcrossRanks.of(norm, group, group.size * len(heads) * head_dim)

    def _attention_spec(self, index: int) -> AttentionSpec:
        config = self.config
        return AttentionSpec(
            num_heads=len(self.slices.heads),
            num_kv_heads=len(self.slices.kv_heads),
            head_dim=config.head_dim,
            scale=config.attention_scale,
            causal=config.family.causal,
            window=config.windows[index],
            soft_cap=config.attention_soft_cap,
        )

    def _mlp(self, index: int, prefix: str) -> Mlp:
        moe = self.config.moe
        if moe is not None and moe.sparse_layers[index]:
            return moe_mlp(self.builder, self.config, self.kernels, prefix, self.slices)
        return self._dense_mlp(prefix)

    def _dense_mlp(self, prefix: str) -> Mlp:
        config, names, inner = self.config, self.config.family.names, self.slices.inner
        bias, gated = config.mlp_bias, config.family.gated_mlp
        inputs, output = tuple(prefix + name for name in names.mlp_input), prefix + names.mlp_output
        return (GatedMlp if gated else PlainMlp)(
            kernels=self.kernels,
            input=self.builder.linear(
                inputs, (inner,) * (2 if gated else 1), Span.whole(config.hidden_size), bias=bias
            ),
            output=self._narrowing(output, inner, bias=bias),
            activation=config.activation,
            partial=self._partial(output, bias=bias),
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
