"""What is made of the vectors that an engine hands out: embeddings, probabilities of labels, scores. Without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from orcinus.core.progress import Progress
from orcinus.core.request import FinishReason, Request, unpack_tokens
from orcinus.errors import InvalidRequest, RequestFailed

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    """One text as a vector."""

    embedding: list[float]


@dataclass(frozen=True, slots=True)
class ClassificationOutput:
    """Probabilities of the labels, in the checkpoint's order, and the name of the likeliest."""

    probs: list[float]
    label: str


@dataclass(frozen=True, slots=True)
class ScoringOutput:
    """How well two texts belong together: a probability from a classifier, a cosine from embeddings."""

    score: float


Kind = TypeVar("Kind", EmbeddingOutput, ClassificationOutput, ScoringOutput)


@dataclass(frozen=True, slots=True)
class PooledOutput(Generic[Kind]):
    """An input and what was made of it. Names as in vLLM."""

    request_id: str
    prompt_token_ids: list[int]
    outputs: Kind


class VectorCollector:
    """Waits for the one vector of a request. `vector` is there once `finished`."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.vector: Vector = np.empty(0, dtype=np.float32)
        self.finished = False

    def take(self, progress: Progress, now: float) -> None:
        """The end, with the vector.

        Raises:
            RequestFailed: it ended in an error.
        """
        if progress.finish_reason is FinishReason.ERROR:
            raise RequestFailed(progress.error_message, code=progress.error_code)
        self.vector = unpack_vector(progress.pooled)
        self.finished = True

    def output(self, outputs: Kind) -> PooledOutput[Kind]:
        """The input beside what was made of its vector."""
        return PooledOutput(self.request.request_id, unpack_tokens(self.request.prompt).tolist(), outputs)


def unpack_vector(pooled: bytes) -> Vector:
    """The vector in a `Progress`."""
    return np.frombuffer(pooled, dtype=np.float32)


def embedding(vector: Vector, dimensions: int | None = None, *, normalize: bool = True) -> Vector:
    """The first `dimensions` elements (for models trained so), scaled to length 1 unless told otherwise.

    Raises:
        InvalidRequest: more dimensions than there are.
    """
    if dimensions is not None and not 1 <= dimensions <= len(vector):
        raise InvalidRequest(
            f"dimensions is {dimensions}, which is not between 1 and {len(vector)}", param="dimensions"
        )
    vector = vector[:dimensions]
    length = float(np.linalg.norm(vector.astype(np.float64)))
    return (vector / length).astype(np.float32) if normalize and length > 0 else vector


def probabilities(scores: Vector) -> list[float]:
    """Of several labels by softmax, of a single one by the logistic function."""
    values = scores.astype(np.float64)
    if len(values) == 1:
        return [_logistic(float(values[0]))]
    weights = np.exp(values - values.max())
    shares: list[float] = (weights / weights.sum()).tolist()
    return shares


def likeliest(probs: list[float], labels: tuple[str, ...]) -> str:
    """The label with the largest probability, the first of equals. A single label is named whatever its probability."""
    return labels[probs.index(max(probs))]


def similarity(first: Vector, second: Vector) -> float:
    """Cosine of the angle between two embeddings; 0 where one has no length."""
    lengths = np.linalg.norm(first.astype(np.float64)) * np.linalg.norm(second.astype(np.float64))
    return float(first.astype(np.float64) @ second.astype(np.float64) / lengths) if lengths else 0.0


def pair_up(first: str | Sequence[str], second: str | Sequence[str]) -> list[tuple[str, str]]:
    """One against one, one against each, or each against its counterpart.

    Raises:
        InvalidRequest: lists that don't fit each other.
    """
    firsts = [first] if isinstance(first, str) else list(first)
    seconds = [second] if isinstance(second, str) else list(second)
    if len(firsts) == 1:
        firsts *= len(seconds)
    if not firsts or len(firsts) != len(seconds):
        raise InvalidRequest(
            f"{len(firsts)} first texts don't pair with {len(seconds)} second ones; give one first text, or as many as "
            "second ones",
            param="text_1",
            code="invalid_value",
        )
    return list(zip(firsts, seconds, strict=True))


def check_scorable(labels: tuple[str, ...]) -> None:
    """A classifier of one label scores pairs; without one, embeddings are compared.

    Raises:
        InvalidRequest: several labels, of which none is the score.
    """
    if len(labels) > 1:
        raise InvalidRequest(
            f"this model's classifier has {len(labels)} labels, so there is no single score; classify the pairs",
            param="model",
            code="unsupported_task",
        )


def _logistic(x: float) -> float:
    """Without overflow on either side."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
