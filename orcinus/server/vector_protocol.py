"""What clients of embeddings, classes, scores and rankings send and receive: OpenAI's shapes, vLLM's and Jina's."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from orcinus.server.bounds import MAX_INPUTS, Dimensions, Name, NumBest, Prompt, ShortText, Text, Texts


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """POST /v1/embeddings."""

    input: Prompt
    model: ShortText | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Dimensions | None = None
    user: Name | None = None


class ClassifyRequest(msgspec.Struct, kw_only=True):
    """POST /classify."""

    input: Prompt
    model: ShortText | None = None


class ScoreRequest(msgspec.Struct, kw_only=True):
    """POST /score: one text against one or many, or pairwise."""

    text_1: Text | Texts
    text_2: Text | Texts
    model: ShortText | None = None


class Document(msgspec.Struct):
    """A text to be ranked."""

    text: Text


class RerankRequest(msgspec.Struct, kw_only=True):
    """POST /rerank."""

    query: Text
    documents: Annotated[list[Text | Document], Meta(min_length=1, max_length=MAX_INPUTS)]
    model: ShortText | None = None
    top_n: NumBest | None = None


class VectorUsage(msgspec.Struct):
    """Nothing is generated, so the total is the input."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingData(msgspec.Struct):
    """One vector: numbers, or little-endian float32 in base64."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class ClassData(msgspec.Struct):
    """Probabilities of all labels, and the likeliest label."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class ScoreData(msgspec.Struct):
    """One pair's score."""

    index: int
    score: float
    object: str = "score"


class RankedDocument(msgspec.Struct):
    """A document at its place; `index` is where it stood in the request."""

    index: int
    document: Document
    relevance_score: float


class VectorReply(msgspec.Struct, kw_only=True):
    """The frame of embeddings, classes and scores."""

    model: str
    usage: VectorUsage
    id: str | UnsetType = UNSET
    created: int | UnsetType = UNSET
    object: str = "list"


class EmbeddingReply(VectorReply, kw_only=True):
    """Of /v1/embeddings."""

    data: list[EmbeddingData]


class ClassifyReply(VectorReply, kw_only=True):
    """Of /classify."""

    data: list[ClassData]


class ScoreReply(VectorReply, kw_only=True):
    """Of /score."""

    data: list[ScoreData]


class RerankReply(msgspec.Struct, kw_only=True):
    """The frame of a ranking, best first."""

    id: str
    model: str
    results: list[RankedDocument]
    usage: VectorUsage
