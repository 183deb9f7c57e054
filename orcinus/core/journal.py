"""The journal: one event a decision, with its why. No prompt text, bounded, always on."""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence

import msgspec

Part = tuple[int, int, int]
"""One sequence's part of a plan: its id, the first position, the number of tokens."""


class Added(msgspec.Struct, frozen=True, tag="added"):
    """A request came in; its n sequences are numbered from `first_seq_id`."""

    at: float
    request_id: str
    prompt_tokens: int
    max_tokens: int
    n: int
    resumed_tokens: int
    first_seq_id: int = 0


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """A request was turned away at the door, for its `deadline`."""

    at: float
    request_id: str
    reason: str


class Blocked(msgspec.Struct, frozen=True, tag="blocked"):
    """The first request in line had to wait: for `kv_blocks`, `batch_size`, `token_budget` or `in_flight`.

    Or it was admitted and waits, for `prefix`: a plan in flight computes what it can share.
    """

    at: float
    request_id: str
    reason: str


class CacheHit(msgspec.Struct, frozen=True, tag="cache_hit"):
    """A sequence began behind `tokens` whose KV was there; again after each preemption."""

    at: float
    request_id: str
    index: int
    tokens: int


class Evicted(msgspec.Struct, frozen=True, tag="evicted"):
    """So many cached `blocks` were taken for other KV since the last plan."""

    at: float
    blocks: int


class Spilled(msgspec.Struct, frozen=True, tag="spilled"):
    """So many of the evicted `blocks` went to the host's memory, and `stored` new ones to the disk, with one plan."""

    at: float
    blocks: int
    stored: int


class Restored(msgspec.Struct, frozen=True, tag="restored"):
    """A sequence begins behind `tokens`, for the KV of their last `blocks` blocks comes back from host or disk."""

    at: float
    request_id: str
    index: int
    tokens: int
    blocks: int


class Fetched(msgspec.Struct, frozen=True, tag="fetched"):
    """So many `blocks` of a sequence's KV come back from host or disk ahead of its turn."""

    at: float
    request_id: str
    index: int
    blocks: int


class Lost(msgspec.Struct, frozen=True, tag="lost"):
    """A sequence has to compute what the disk didn't hold after all."""

    at: float
    request_id: str
    index: int


class Admitted(msgspec.Struct, frozen=True, tag="admitted"):
    """A request left the queue; `reserved` blocks are promised to it (admission `reserve`)."""

    at: float
    request_id: str
    waited: float
    reserved: int


class Scheduled(msgspec.Struct, frozen=True, tag="scheduled", gc=False):
    """One plan was made: [sequence id, first position, tokens] for each sequence, see `work`.

    Args:
        base: the lowest of the sequence ids, which never repeat and may outgrow 32 bits.
        packed: of each sequence id - base, first position and tokens, uint32. As tuples, a journal full of these at 64
            sequences would hold 550 MiB instead of 60.
    """

    at: float
    epoch: int
    iteration: int
    tokens: int
    base: int
    packed: bytes

    @classmethod
    def of(cls, at: float, epoch: int, iteration: int, work: Iterable[Part]) -> Scheduled:
        """The event of a plan with `work`."""
        parts = list(work)
        base = min((seq_id for seq_id, _, _ in parts), default=0)
        packed = array("I", [number for seq_id, start, count in parts for number in (seq_id - base, start, count)])
        return cls(at, epoch, iteration, sum(count for _, _, count in parts), base, packed.tobytes())

    @property
    def work(self) -> tuple[Part, ...]:
        """The parts, unpacked each time."""
        numbers = array("I")
        numbers.frombytes(self.packed)
        ids = [self.base + number for number in numbers[::3]]
        return tuple(zip(ids, numbers[1::3], numbers[2::3], strict=True))


class Repeated(msgspec.Struct, frozen=True, tag="repeated"):
    """Plans alike but for positions: that of `first`, and one at each of `later`, each a token further than the last.

    It takes the room of one event; readers of the journal see each plan.
    """

    first: Scheduled
    later: array[float]

    def plans(self) -> Iterator[Scheduled]:
        """Each as if it had been written by itself."""
        first = self.first
        yield first
        numbers = array("I", first.packed)
        for further, at in enumerate(self.later, start=1):
            numbers[1::3] = array("I", [start + 1 for start in numbers[1::3]])
            yield Scheduled(at, first.epoch, first.iteration + further, first.tokens, first.base, numbers.tobytes())


class _ScheduledLine(msgspec.Struct, frozen=True, tag="scheduled"):
    """`Scheduled` as people read it."""

    at: float
    epoch: int
    iteration: int
    tokens: int
    work: tuple[Part, ...]


class Forked(msgspec.Struct, frozen=True, tag="forked"):
    """A sequence took over `shared_blocks` of its group's leader."""

    at: float
    request_id: str
    index: int
    shared_blocks: int


class BeamsChosen(msgspec.Struct, frozen=True, tag="beams_chosen"):
    """A request's beams took their next tokens.

    Args:
        parents: of each slot the one that it goes on from; -1 where no beam is.
        answers: found so far.
        blocks: that the beams hold, of which they would need `blocks_unshared` if each held its own.
    """

    at: float
    request_id: str
    parents: tuple[int, ...]
    answers: int
    blocks: int
    blocks_unshared: int


class Preempted(msgspec.Struct, frozen=True, tag="preempted"):
    """A request gave its blocks back so that `in_favour_of` could grow; it returns by recompute."""

    at: float
    request_id: str
    in_favour_of: str
    tokens_dropped: int


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """One answer ended."""

    at: float
    request_id: str
    index: int
    reason: str
    generated_tokens: int


class EpochStarted(msgspec.Struct, frozen=True, tag="epoch"):
    """What was in flight is abandoned; `kv_lost`: and the workers' memory with it."""

    at: float
    epoch: int
    abandoned_plans: int
    kv_lost: bool


Event = (
    Added
    | Refused
    | Blocked
    | CacheHit
    | Evicted
    | Spilled
    | Restored
    | Fetched
    | Lost
    | Admitted
    | Scheduled
    | Forked
    | BeamsChosen
    | Preempted
    | Finished
    | EpochStarted
)


class Journal:
    """The last `capacity` events in order, and the number of each kind since the start."""

    def __init__(self, capacity: int = 65_536) -> None:
        self._events: deque[Event | Repeated] = deque(maxlen=capacity)
        self.counts: Counter[str] = Counter()

    def write(self, event: Event) -> None:
        """Append one event."""
        self._events.append(event)
        self.counts[type(event).__name__] += 1

    def repeat(self, first: Scheduled, instants: Sequence[float]) -> None:
        """Append a plan of each of `instants`: `first`, and those a token further."""
        if len(instants) == 1:
            self.write(first)
            return
        self._events.append(Repeated(first, array("d", instants[1:])))
        self.counts[Scheduled.__name__] += len(instants)

    def __iter__(self) -> Iterator[Event]:
        for event in self._events:
            if isinstance(event, Repeated):
                yield from event.plans()
            else:
                yield event

    def __len__(self) -> int:
        return len(self._events)

    def encode(self) -> bytes:
        """The events as JSON lines: for people, for `explain`, for golden files."""
        encoder = msgspec.json.Encoder()
        return b"\n".join(encoder.encode(_readable(event)) for event in self)


def _readable(event: Event) -> msgspec.Struct:
    if isinstance(event, Scheduled):
        return _ScheduledLine(event.at, event.epoch, event.iteration, event.tokens, event.work)
    return event
