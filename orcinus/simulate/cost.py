"""What an iteration costs: seconds as a function of what a plan holds.

Three kinds: linear (the calibration model of SYSTEMS.md, or anything by hand), roofline (from a machine's data sheet)
and measured (fitted to this machine by `orcinus profile`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import NamedTuple, Protocol

import msgspec

from orcinus.core.plan import IterationPlan, Output


class Features(NamedTuple):
    """What a plan holds, as far as time depends on it.

    Args:
        tokens: rows of the matrix products.
        prefill_tokens: those of sequences that run more than one, or their first.
        decodes: sequences that run one token with a past.
        context: tokens of KV that the decodes read.
        pairs: query-key pairs of the prefills: each chunk times the KV that it sees.
        rows: rows that go through the vocabulary.
    """

    tokens: int = 0
    prefill_tokens: int = 0
    decodes: int = 0
    context: int = 0
    pairs: int = 0
    rows: int = 0


def features_of(plan: IterationPlan) -> Features:
    """The features of one plan."""
    rows = sum(Output.SAMPLE in work.output for work in plan.work)
    return features_of_work(((work.start, work.num_tokens) for work in plan.work), rows)


def features_of_work(work: Iterable[tuple[int, int]], rows: int) -> Features:
    """The features of (first position, tokens) pairs."""
    prefill = decodes = context = pairs = 0
    for start, count in work:
        if count == 1 and start:
            decodes += 1
            context += start + 1
        else:
            prefill += count
            pairs += count * start + count * (count + 1) // 2
    return Features(prefill + decodes, prefill, decodes, context, pairs, rows)


class CostModel(Protocol):
    """The seam: seconds that one device takes for all layers of one iteration."""

    def seconds(self, features: Features) -> float:
        """More than 0."""
        ...


class LinearCost(msgspec.Struct, frozen=True, kw_only=True, tag="linear"):
    """A constant and a price for each feature, in seconds."""

    constant: float = 0.0
    token: float = 0.0
    prefill_token: float = 0.0
    decode: float = 0.0
    context_token: float = 0.0
    pair: float = 0.0
    row: float = 0.0

    def seconds(self, features: Features) -> float:
        """The sum."""
        tokens, prefill, decodes, context, pairs, rows = features
        return (
            self.constant
            + self.token * tokens
            + self.prefill_token * prefill
            + self.decode * decodes
            + self.context_token * context
            + self.pair * pairs
            + self.row * rows
        )


# The † of SYSTEMS.md: thresholds of the literature's claims are calibrated on it.
CALIBRATION = LinearCost(constant=0.020, prefill_token=40e-6, decode=0.2e-3)


class RooflineCost(msgspec.Struct, frozen=True, kw_only=True, tag="roofline"):
    """A decoder on an accelerator: each part takes what its arithmetic or its memory traffic takes, whichever is more.

    Args:
        flops_per_s: of dense products, as reached in practice.
        bytes_per_s: memory bandwidth, as reached in practice.
        launch: seconds an iteration that neither explains.
        num_parameters: those that a token passes through; its vocabulary's apart.
        element_bytes: of weights and KV.
        kv_bytes_per_token: all layers, keys and values.
        attention_width: query heads x head size x layers; a query-key pair costs four operations for each.
        vocabulary_parameters: hidden size x vocabulary.
    """

    flops_per_s: float
    bytes_per_s: float
    num_parameters: float
    kv_bytes_per_token: float
    attention_width: float
    vocabulary_parameters: float = 0.0
    element_bytes: float = 2.0
    launch: float = 0.0

    @classmethod
    def of_decoder(
        cls,
        *,
        num_layers: int,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        intermediate_size: int,
        vocab_size: int,
        flops_per_s: float,
        bytes_per_s: float,
        element_bytes: float = 2.0,
        launch: float = 0.0,
    ) -> RooflineCost:
        """From the shape of a llama-like decoder and two lines of a data sheet."""
        attention = hidden_size * head_dim * (2 * num_heads + 2 * num_kv_heads)
        layer = attention + 3 * hidden_size * intermediate_size
        return cls(
            flops_per_s=flops_per_s,
            bytes_per_s=bytes_per_s,
            num_parameters=num_layers * layer,
            kv_bytes_per_token=2 * num_layers * num_kv_heads * head_dim * element_bytes,
            attention_width=num_layers * num_heads * head_dim,
            vocabulary_parameters=hidden_size * vocab_size,
            element_bytes=element_bytes,
            launch=launch,
        )

    def seconds(self, features: Features) -> float:
        """Layers, attention of decodes, attention of prefills, and the vocabulary, one after the other."""
        tokens, _, _, context, pairs, rows = features
        return (
            self.launch
            + self._product(self.num_parameters, tokens)
            + max(context * self.kv_bytes_per_token / self.bytes_per_s, self._attention(context))
            + self._attention(pairs)
            + (self._product(self.vocabulary_parameters, rows) if rows else 0.0)
        )

    def _product(self, parameters: float, rows: int) -> float:
        return max(2 * parameters * rows / self.flops_per_s, parameters * self.element_bytes / self.bytes_per_s)

    def _attention(self, pairs: int) -> float:
        return 4 * self.attention_width * pairs / self.flops_per_s


class MeasuredCost(msgspec.Struct, frozen=True, kw_only=True, tag="measured"):
    """Fitted: seconds by number of tokens as a broken line, and prices of attention and sampling beside it.

    A straight line doesn't fit matrix kernels: few rows cost what the weights' bytes cost, and rows come in tiles.

    Args:
        knots: numbers of tokens, rising.
        heights: seconds at each knot; the last slope goes on.
    """

    knots: tuple[int, ...]
    heights: tuple[float, ...]
    decode: float = 0.0
    context_token: float = 0.0
    pair: float = 0.0
    row: float = 0.0

    def seconds(self, features: Features) -> float:
        """The broken line and the rest."""
        tokens, _, decodes, context, pairs, rows = features
        return (
            self._by_tokens(tokens)
            + self.decode * decodes
            + self.context_token * context
            + self.pair * pairs
            + self.row * rows
        )

    def _by_tokens(self, tokens: int) -> float:
        knots, heights = self.knots, self.heights
        right = min(max(bisect_left(knots, tokens), 1), len(knots) - 1)
        left = right - 1
        share = (tokens - knots[left]) / (knots[right] - knots[left])
        return heights[left] + share * (heights[right] - heights[left])


AnyCost = LinearCost | RooflineCost | MeasuredCost


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """A wire between two devices. The default costs nothing."""

    latency: float = 0.0
    bytes_per_s: float = float("inf")

    def seconds(self, num_bytes: float) -> float:
        """One message."""
        return self.latency + num_bytes / self.bytes_per_s


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Devices that serve one model: `num_stages` in a row, each stage `num_slices` wide.

    Args:
        cost: of all layers on one device.
        stage_link: carries hidden states from a stage to the next.
        slice_link: carries the two all-reduces of each layer.
        hidden_bytes: of one token's state.
        num_layers: for the all-reduces; 0 leaves them out.
    """

    cost: AnyCost
    num_stages: int = 1
    num_slices: int = 1
    stage_link: Link = Link()
    slice_link: Link = Link()
    hidden_bytes: float = 0.0
    num_layers: int = 0

    def stage_seconds(self, features: Features) -> float:
        """Every stage holds as many layers as any other."""
        compute = self.cost.seconds(features) / (self.num_stages * self.num_slices)
        return compute + self._reductions(features) / self.num_stages

    def transfer_seconds(self, features: Features) -> float:
        """From one stage to the next."""
        return self.stage_link.seconds(features.tokens * self.hidden_bytes) if self.num_stages > 1 else 0.0

    def _reductions(self, features: Features) -> float:
        """Ring all-reduce: 2 (t - 1) steps, each moves 1/t of the states."""
        if self.num_slices == 1:
            return 0.0
        steps = 2 * (self.num_slices - 1)
        share = features.tokens * self.hidden_bytes / self.num_slices
        return 2 * self.num_layers * steps * self.slice_link.seconds(share)
