"""The forms of a layer: where its two halves meet their norms and what came in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from orcinus.kernels import AttentionBatch
from orcinus.layers.attention import Attention
from orcinus.layers.mlp import Mlp
from orcinus.layers.norm import Norm


class Layer(Protocol):
    """[tokens, hidden] → [tokens, hidden]."""

    @property
    def attention(self) -> Attention:
        """The half that sees other tokens."""
        ...

    @property
    def mlp(self) -> Mlp:
        """The half that sees one."""
        ...

    def __call__(self, x: Tensor, batch: AttentionBatch, kv: tuple[Tensor, Tensor]) -> Tensor:
        """[tokens, hidden] → [tokens, hidden]; the tokens' K and V are written."""
        ...


@dataclass(frozen=True, slots=True)
class PreNormLayer:
    """Each half after a norm, and added to what came in."""

    attention: Attention
    mlp: Mlp
    attention_norm: Norm
    mlp_norm: Norm

    def __call__(self, x: Tensor, batch: AttentionBatch, kv: tuple[Tensor, Tensor]) -> Tensor:
        """[tokens, hidden] → [tokens, hidden]; the tokens' K and V are written."""
        add = self.attention.kernels.add
        x = add(x, self.attention(self.attention_norm(x), batch, kv))
        return add(x, self.mlp(self.mlp_norm(x)))


@dataclass(frozen=True, slots=True)
class PostNormLayer:
    """Each half added to what came in, and then the norm, as in the first transformers."""

    attention: Attention
    mlp: Mlp
    attention_norm: Norm
    mlp_norm: Norm

    def __call__(self, x: Tensor, batch: AttentionBatch, kv: tuple[Tensor, Tensor]) -> Tensor:
        """[tokens, hidden] → [tokens, hidden]; the tokens' K and V are written."""
        add = self.attention.kernels.add
        x = self.attention_norm(add(x, self.attention(x, batch, kv)))
        return self.mlp_norm(add(x, self.mlp(x)))


@dataclass(frozen=True, slots=True)
class ParallelLayer:
    """Both halves see what came in, each through its own norm, and all three are added."""

    attention: Attention
    mlp: Mlp
    attention_norm: Norm
    mlp_norm: Norm

    def __call__(self, x: Tensor, batch: AttentionBatch, kv: tuple[Tensor, Tensor]) -> Tensor:
        """[tokens, hidden] → [tokens, hidden]; the tokens' K and V are written."""
        attended = self.attention(self.attention_norm(x), batch, kv)
        add = self.attention.kernels.add
        return add(add(self.mlp(self.mlp_norm(x)), attended), x)


@dataclass(frozen=True, slots=True)
class SandwichLayer:
    """Each half between two norms, and added to what came in."""

    attention: Attention
    mlp: Mlp
    attention_norm: Norm
    attention_output_norm: Norm
    mlp_norm: Norm
    mlp_output_norm: Norm

    def __call__(self, x: Tensor, batch: AttentionBatch, kv: tuple[Tensor, Tensor]) -> Tensor:
        """[tokens, hidden] → [tokens, hidden]; the tokens' K and V are written."""
        add = self.attention.kernels.add
        x = add(x, self.attention_output_norm(self.attention(self.attention_norm(x), batch, kv)))
        return add(x, self.mlp_output_norm(self.mlp(self.mlp_norm(x))))
