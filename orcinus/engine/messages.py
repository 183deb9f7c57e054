"""What supervisor, front ends and engine say to each other: one union a direction, msgpack on the wire.

New fields have defaults, so an older peer still decodes. Imports without torch.
"""

from __future__ import annotations

import msgspec

from orcinus.core.explain import Life
from orcinus.core.progress import Progress
from orcinus.core.request import FinishReason, PoolingType, Request
from orcinus.errors import CheckpointError, ConfigurationError, EngineDied, SystemFault


class Add(msgspec.Struct, frozen=True, tag="add"):
    """Start (or resume) a request."""

    request: Request


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """End a request, or one of its answers. A stop string found in the text ends with cause `stop`."""

    request_id: str
    index: int | None = None
    cause: FinishReason = FinishReason.ABORT


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """A front end's first word: its socket is known from here on."""


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Are you there? A living engine's beat goes on; a front end gets the state of the queues."""


class FrontGone(msgspec.Struct, frozen=True, tag="front_gone"):
    """The supervisor knows that this front end has died: nobody reads its answers any more."""

    identity: bytes


class Watch(msgspec.Struct, frozen=True, tag="watch"):
    """Somebody at this front end looks on: tell it who is in each iteration, until told to stop."""

    on: bool


class Explain(msgspec.Struct, frozen=True, tag="explain"):
    """What does the journal know of these requests? `ticket` comes back with the answer."""

    ticket: int
    request_ids: tuple[str, ...]


class Explained(msgspec.Struct, frozen=True, tag="explained"):
    """The lives of those that it remembers."""

    ticket: int
    lives: tuple[Life, ...]


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
    """What one iteration gave, and the state of the queues after it.

    Args:
        free_blocks: `cached_blocks` of them hold KV that may be found again.
        host_blocks, disk_blocks: hold KV beside the device's.
        spilled_blocks, stored_blocks, restored_blocks, lost_blocks: since the start: copied to the host, written to
            disk, brought back from either, and not found on disk after all.
        stage_idle: of each pipeline stage, the share of the time under load in which it had nothing to work on.
    """

    progress: tuple[Progress, ...]
    num_waiting: int = 0
    num_running: int = 0
    free_blocks: int = 0
    total_blocks: int = 0
    iterations: int = 0
    preemptions: int = 0
    cached_blocks: int = 0
    stage_idle: tuple[float, ...] = ()
    host_blocks: int = 0
    disk_blocks: int = 0
    spilled_blocks: int = 0
    stored_blocks: int = 0
    restored_blocks: int = 0
    lost_blocks: int = 0


class Member(msgspec.Struct, frozen=True, array_like=True):
    """A sequence as a timeline names it: by the number `key`."""

    key: int
    request_id: str
    index: int
    num_prompt_tokens: int


class Part(msgspec.Struct, frozen=True, array_like=True):
    """One sequence's part of an iteration: `num_tokens` tokens from position `start`."""

    key: int
    start: int
    num_tokens: int
    is_prefill: bool


class Iteration(msgspec.Struct, frozen=True, array_like=True):
    """One iteration that has ended: when it began, how many seconds it took, and what it sampled."""

    number: int
    began_at: float
    seconds: float
    num_sampled: int
    parts: tuple[Part, ...]


class Timeline(msgspec.Struct, frozen=True, tag="timeline"):
    """To a front end that watches: the iterations since the last such frame, `members` being all who were in them."""

    members: tuple[Member, ...]
    iterations: tuple[Iteration, ...]
    num_waiting: int = 0
    num_running: int = 0
    free_blocks: int = 0
    total_blocks: int = 0
    preemptions: int = 0


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """A process can't start; `message` says what to do, `exit_code` what kind of fault it is."""

    message: str
    exit_code: int = 1

    def fault(self) -> SystemFault:
        """What it is on this side."""
        return _FAULT_BY_EXIT_CODE.get(self.exit_code, EngineDied)(self.message)


EXIT_BAD_CONFIGURATION = 2
EXIT_BAD_CHECKPOINT = 3
_FAULT_BY_EXIT_CODE: dict[int, type[SystemFault]] = {
    EXIT_BAD_CONFIGURATION: ConfigurationError,
    EXIT_BAD_CHECKPOINT: CheckpointError,
}


def exit_code_of(fault: SystemFault) -> int:
    """Checkpoints apart from all else that a user can set right."""
    return EXIT_BAD_CHECKPOINT if isinstance(fault, CheckpointError) else EXIT_BAD_CONFIGURATION


class EngineUp(msgspec.Struct, frozen=True, tag="engine_up"):
    """The supervisor to a front end: engine number `epoch` listens at `path`."""

    epoch: int
    path: str
    description: EngineDescription


class EngineDown(msgspec.Struct, frozen=True, tag="engine_down"):
    """The engine is dead, and another one is being started."""

    reason: str


class EngineGone(msgspec.Struct, frozen=True, tag="engine_gone"):
    """The engine is dead, and no other one will come."""

    reason: str


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Take nothing new, finish what runs, leave."""


class Leave(msgspec.Struct, frozen=True, tag="leave"):
    """End what runs, leave."""


class FrontReady(msgspec.Struct, frozen=True, tag="front_ready"):
    """A front end answers requests."""


class EngineUnreadable(msgspec.Struct, frozen=True, tag="engine_unreadable"):
    """The engine sends what no engine of ours sends: it is to be replaced."""


ToEngine = Hello | Add | Abort | Ping | Watch | Explain
"""From front ends, over ZMQ."""
FromEngine = Outputs | Timeline | Explained
"""To the front end that asked."""
OrderToEngine = Ping | FrontGone | Shutdown
"""From the supervisor, over the channel."""
ReportFromEngine = EngineDescription | Failed
"""To the supervisor, once: how starting went."""
ReportFromFront = FrontReady | EngineUnreadable | Failed
