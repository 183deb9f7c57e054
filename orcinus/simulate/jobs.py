"""A job: one request of a simulated load, and what only the model would know of it: how long its answer gets."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import inf

from msgspec.structs import replace

from orcinus.core.request import FinishReason, Request, SamplingParams, ServiceClass

# What the model says: a word nobody reads, or the end.
FILLER, END = 1, 2
# Token ids of generated prompts start above what has a meaning here.
FIRST_ID = 10


@dataclass(slots=True)
class Job:
    """One request. It ends by itself after `output` tokens, which the scheduler doesn't know; it knows `max_tokens`.

    Args:
        at: arrival in seconds; of a follow-up, seconds after the answer that it follows.
        prompt: packed token ids.
        answers: packed tokens of each of the n answers, where they matter: a follow-up repeats them, or they were
            recorded. Without them, filler.
        deadline, hangs_up: seconds after arrival at which nobody wants the answer any more: core ends it, the client
            does.
        stops_at: tokens after which the client's stop string ends it, if one does.
        follow_up: the next turn of the conversation.
        recorded: the request as a recording has it; then it says all that core is told.
    """

    at: float
    prompt: bytes
    output: int
    max_tokens: int
    answers: tuple[bytes, ...] = ()
    n: int = 1
    tenant: str = ""
    priority: int = 0
    service_class: ServiceClass = ServiceClass.NORMAL
    cache_salt: str = ""
    deadline: float | None = None
    hangs_up: float | None = None
    stops_at: int | None = None
    follow_up: Job | None = None
    recorded: Request | None = None

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt) // 4

    def request(self, number: int, arrived_at: float) -> Request:
        """What core is told. The seed carries the number, so that the simulated worker knows whose answer it makes."""
        if self.recorded is not None:
            params = replace(self.recorded.params, seed=number)
            return replace(self.recorded, request_id=str(number), params=params, arrived_at=arrived_at)
        return Request(
            request_id=str(number),
            prompt=self.prompt,
            params=SamplingParams(n=self.n, max_tokens=self.max_tokens, seed=number),
            eos_token_ids=(END,),
            priority=self.priority,
            service_class=self.service_class,
            tenant=self.tenant,
            deadline=None if self.deadline is None else arrived_at + self.deadline,
            cache_salt=self.cache_salt,
            arrived_at=arrived_at,
        )


@dataclass(frozen=True, slots=True)
class Arrival:
    """A job that comes."""

    job: Job


@dataclass(frozen=True, slots=True)
class HangUp:
    """A client that leaves, or whose stop string was found."""

    request_id: str
    cause: FinishReason = FinishReason.ABORT
    index: int | None = None


Input = Arrival | HangUp


@dataclass
class Inbox:
    """All that comes from outside, in order of time: a stream of jobs, and what the run itself gives rise to."""

    jobs: Iterable[Job]
    _stream: Iterator[Job] = field(init=False)
    _next: Job | None = field(init=False)
    _later: list[tuple[float, int, Input]] = field(default_factory=list)
    _count: int = 0

    def __post_init__(self) -> None:
        self._stream = iter(self.jobs)
        self._next = next(self._stream, None)

    @property
    def next_at(self) -> float:
        """When something comes next; infinity if nothing does."""
        first = self._next.at if self._next is not None else inf
        return min(first, self._later[0][0]) if self._later else first

    def put(self, at: float, what: Input) -> None:
        """Something will come at `at`."""
        heapq.heappush(self._later, (at, self._count, what))
        self._count += 1

    def take(self) -> tuple[float, Input]:
        """The next one, and when; there is one."""
        job = self._next
        if job is not None and (not self._later or job.at <= self._later[0][0]):
            self._next = next(self._stream, None)
            assert self._next is None or self._next.at >= job.at, "jobs must come in order of arrival"
            return job.at, Arrival(job)
        at, _, what = heapq.heappop(self._later)
        return at, what
