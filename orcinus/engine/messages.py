"""What the front end and the engine process say to each other: one union a direction, msgpack on the wire.

New fields have defaults, so an older peer still decodes. Imports without torch.
"""

from __future__ import annotations

import msgspec

from orcinus.core.progress import Progress
from orcinus.core.request import FinishReason, PoolingType, Request


class Add(msgspec.Struct, frozen=True, tag="add"):
    """Start (or resume) a request."""

    request: Request


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """End a request, or one of its answers. A stop string found in the text ends with cause `stop`."""

    request_id: str
    index: int | None = None
    cause: FinishReason = FinishReason.ABORT


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Leave after the running iteration."""


class EngineDescription(msgspec.Struct, frozen=True, tag="description"):
    """Sent once when the engine is ready: what the door needs to know, and what people like to read.

    Args:
        model: folder of the checkpoint.
        architecture: as its configuration names it.
        fingerprint: numerics fingerprint; bits are comparable only within one (DESIGN.md §3).
        eos_token_ids: end-of-sequence tokens of the checkpoint.
        max_sequence_tokens: the longest prompt + answer.
        max_request_tokens: KV tokens a request may need over all its answers.
        max_batch_size: sequences an iteration; also bounds n.
        max_batch_tokens: tokens an iteration; also bounds a prompt that can't be cut.
        memory_plan: printed at start.
        generates: it has a vocabulary head.
        hidden_size: elements of an embedding.
        labels: of its classifier, if it has one.
        pooling: how a prompt's states become one vector.
        is_causal: prompts can be cut into chunks.
        pair_segments: the two texts of a pair are told apart.
    """

    model: str
    architecture: str
    num_parameters: int
    dtype: str
    device: str
    fingerprint: str
    weights_revision: str
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    max_sequence_tokens: int
    max_request_tokens: int
    max_batch_size: int
    max_batch_tokens: int
    memory_plan: str = ""
    generates: bool = True
    hidden_size: int = 0
    labels: tuple[str, ...] = ()
    pooling: PoolingType = "last"
    is_causal: bool = True
    pair_segments: bool = False


class Outputs(msgspec.Struct, frozen=True, tag="outputs"):
    """What one iteration gave, and the state of the queues after it."""

    progress: tuple[Progress, ...]
    num_waiting: int = 0
    num_running: int = 0
    free_blocks: int = 0
    total_blocks: int = 0
    iterations: int = 0
    preemptions: int = 0


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The engine can't start or go on; `message` says what to do."""

    message: str
    exit_code: int = 1


ToEngine = Add | Abort | Shutdown
FromEngine = EngineDescription | Outputs | Failed
