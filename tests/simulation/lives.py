"""One seed, one life: a configuration and a list of events, drawn before anything runs, so that they can be cut out."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Literal

from closed_form import EOS, VOCAB, Trouble

from orcinus.core.config import SchedulerConfig
from orcinus.core.plan import NUMERICAL_ERROR
from orcinus.core.policy import POLICIES
from orcinus.core.request import BeamSearch, FinishReason, Pooling, Request, SamplingParams, ServiceClass, pack_tokens

FAMILIES = 2


@dataclass(frozen=True, slots=True)
class Arrive:
    """A client asks something. The prompt begins with `shared` tokens of its family's, the rest is its own.

    `follows`: instead, it goes on where an earlier request stands, as a chat does. `width`: of the search for the `n`
    answers; 0 for none, then they are drawn.
    """

    number: int
    family: int
    shared: int
    own: int
    max_tokens: int
    n: int = 1
    seed: int = 1
    service_class: ServiceClass = ServiceClass.NORMAL
    priority: int = 0
    tenant: str = ""
    cache_salt: str = ""
    adapter: str = ""
    ignore_eos: bool = False
    min_tokens: int = 0
    stop_token: int | None = None
    logprobs: bool = False
    prompt_logprobs: bool = False
    patience: float | None = None
    pooling: str = ""
    follows: int | None = None
    width: int = 0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False

    def prompt(self) -> list[int]:
        """Its tokens."""
        return _stream(self.family, self.shared) + _stream(1000 + self.number, self.own)

    def request(self, now: float, prompt: list[int]) -> Request:
        """As it comes through the door."""
        params = SamplingParams(
            n=self.n,
            max_tokens=self.max_tokens,
            min_tokens=self.min_tokens,
            seed=self.seed,
            ignore_eos=self.ignore_eos,
            stop_token_ids=None if self.stop_token is None else [self.stop_token, EOS],
            logprobs=0 if self.logprobs else None,
            prompt_logprobs=0 if self.prompt_logprobs else None,
        )
        return Request(
            request_id=f"r{self.number}",
            prompt=pack_tokens(prompt),
            params=SamplingParams() if self.pooling else params,
            eos_token_ids=(EOS,),
            arrived_at=now,
            service_class=self.service_class,
            priority=self.priority,
            tenant=self.tenant,
            cache_salt=self.cache_salt,
            adapter=self.adapter,
            deadline=None if self.patience is None else now + self.patience,
            pooling=Pooling(type="last", whole=self.pooling == "whole") if self.pooling else None,
            beams=self._search(),
        )

    def _search(self) -> BeamSearch | None:
        early, penalty = self.early_stopping, self.length_penalty
        return BeamSearch(width=self.width, length_penalty=penalty, early_stopping=early) if self.width else None


@dataclass(frozen=True, slots=True)
class Abort:
    """A client goes away, or found a stop string; `which` and `index` choose among what there is then."""

    which: int
    index: int | None
    cause: FinishReason


@dataclass(frozen=True, slots=True)
class Resume:
    """A client hangs up and comes back with what it has got."""

    which: int


@dataclass(frozen=True, slots=True)
class Advance:
    """The loop asks core what to do."""


@dataclass(frozen=True, slots=True)
class Step:
    """The loop asks core what to do, and does it, `times` over."""

    times: int


@dataclass(frozen=True, slots=True)
class Run:
    """The worker runs its next plan, perhaps with trouble."""

    trouble: Trouble | None


@dataclass(frozen=True, slots=True)
class Collect:
    """The oldest result comes in."""


@dataclass(frozen=True, slots=True)
class Hold:
    """The worker is slow: no result comes in for so many events."""

    events: int


@dataclass(frozen=True, slots=True)
class Stale:
    """A result of an older epoch comes in, perhaps once more."""

    which: int


@dataclass(frozen=True, slots=True)
class Epoch:
    """The workers are fenced: plans in flight are abandoned, one of them half done."""

    kv_lost: bool
    half_done: int


@dataclass(frozen=True, slots=True)
class Crash:
    """The engine dies; the next one is told what the front end knows."""


@dataclass(frozen=True, slots=True)
class Jump:
    """The clock jumps forward."""

    seconds: float


Event = Arrive | Abort | Resume | Advance | Step | Run | Collect | Hold | Stale | Epoch | Crash | Jump


@dataclass(frozen=True, slots=True)
class Life:
    """What happens to one engine before it is left in peace."""

    seed: int
    config: SchedulerConfig
    events: tuple[Event, ...]

    @classmethod
    def of(cls, seed: int) -> Life:
        """The life of this seed, the same each time."""
        rng = random.Random(seed)
        longest = rng.choice([4, 8, 10, 30])
        config = draw_config(rng, longest)
        weights = draw_weights(rng)
        kinds = rng.choices(list(weights), list(weights.values()), k=rng.choice([10, 30, 60, 60, 120]))
        kinds = ["arrive"] * rng.choice([0, 2, 4, 8]) + kinds
        draw = _Draw(rng, longest)
        return cls(seed, config, tuple(draw.event(kind) for kind in kinds))

    def cut(self, keep: list[int]) -> Life:
        """With these events alone."""
        return replace(self, events=tuple(self.events[at] for at in keep))


def draw_config(rng: random.Random, longest: int) -> SchedulerConfig:
    """Small, so that everything runs out all the time: also beside prompts and answers of `longest` tokens."""
    max_batch_size = rng.choice([1, 2, 3, 4, 8, 8])
    caching = rng.random() < 0.75
    block_size = rng.choice([1, 1, 2, 2, 4, 16])
    # So many that each fits alone and few fit together; or any number, from hardly any to plenty.
    few = rng.randint(2 * longest, 5 * longest) // block_size + 1
    blocks = rng.choice([few, few, few, rng.randint(1, 8), rng.randint(4, 20), rng.randint(8, 64), 64])
    return SchedulerConfig(
        # At the least, a prompt of one token and its answer of one fit.
        num_blocks=max(blocks, 2 if block_size == 1 else 1),
        block_size=block_size,
        max_batch_tokens=max_batch_size + rng.choice([0, 1, 3, 10, 500]),
        max_batch_size=max_batch_size,
        num_stages=rng.choice([1, 1, 2, 3, 4]),
        lookahead=rng.choice([0, 1]),
        admission=rng.choice(["reserve", "on_demand", "on_demand"]),
        policy=rng.choice([*sorted(POLICIES), "fcfs", "fcfs"]),
        enable_prefix_caching=caching,
        target_iteration_seconds=rng.choice([None, None, 0.002]),
        # With one, whoever waits is soon overdue.
        max_wait_seconds=rng.choice([10.0, 0.02]),
        max_overtakes=rng.choice([0, 1, 8]),
        even_plans=rng.random() < 0.5,
        num_host_blocks=rng.choice([0, 1, 3, 8, 64]) if caching else 0,
        num_disk_blocks=rng.choice([0, 0, 1, 4, 32]) if caching else 0,
        host_block_seconds=rng.choice([0.0, 0.0, 1e-3]),
        disk_block_seconds=rng.choice([0.0, 0.0, 1e-4, 1e-3]),
    )


# How often each kind comes in a common life. Those behind the bar are left out of some lives, and rife in others.
COMMON = {"arrive": 14.0, "advance": 30.0, "run": 14.0, "collect": 24.0, "step": 6.0}
FAULTS = {
    "abort": 4.0,
    "resume": 1.5,
    "row_fails": 3.0,
    "copy_fails": 1.0,
    "disk_fails": 3.0,
    "hold": 1.5,
    "stale": 2.0,
    "epoch": 1.5,
    "crash": 0.7,
    "jump": 1.0,
}


def draw_weights(rng: random.Random) -> dict[str, float]:
    """Each life has its own mix: what is always there hides what happens without it."""
    weights = {kind: weight * rng.choice([0.5, 1, 1, 2]) for kind, weight in COMMON.items()}
    return weights | {kind: weight * rng.choice([0, 0.3, 1, 1, 4]) for kind, weight in FAULTS.items()}


class _Draw:
    """Draws events. What they refer to is drawn as a number, and means something only when they happen."""

    def __init__(self, rng: random.Random, longest: int) -> None:
        self._rng = rng
        self._arrived = 0
        self._searches = rng.choice([0.0, 0.1, 0.1, 0.7])
        # Lives of one tenant, of plain requests and so on come up often enough.
        self._tenants = rng.choice([[""], ["", "a"], ["", "a", "b"]])
        self._salts = rng.choice([[""], ["", "s"]])
        self._adapters = rng.choice([[""], [""], ["", "x"]])
        self._plain = rng.random() < 0.3
        self._longest = longest
        self._ignores = rng.choice([0.0, 0.3, 1.0])

    def event(self, kind: str) -> Event:
        rng = self._rng
        match kind:
            case "arrive":
                return self._arrive()
            case "abort":
                cause = rng.choice([FinishReason.ABORT, FinishReason.STOP])
                return Abort(rng.randrange(1 << 16), rng.choice([None, None, 0, 1, 2]), cause)
            case "row_fails":
                return Run(Trouble(rng.randrange(1 << 16), rng.choice([NUMERICAL_ERROR, "no_token"])))
            case "copy_fails":
                return Run(Trouble(0, rng.choice([NUMERICAL_ERROR, "copy_failed"]), in_copies=True))
            case "disk_fails":
                return Run(Trouble(rng.randrange(1 << 16), "", in_disk=True))
            case "epoch":
                return Epoch(rng.random() < 0.4, rng.randint(0, 4))
            case "jump":
                return Jump(rng.choice([0.01, 0.1, 3.0, 4000.0]))
        number = rng.randrange(1 << 16)
        simple = {"advance": Advance(), "run": Run(None), "collect": Collect(), "crash": Crash()}
        chosen = {"step": Step(number % 20), "hold": Hold(number % 30), "stale": Stale(number)}
        return (simple | chosen | {"resume": Resume(number)})[kind]

    def _arrive(self) -> Arrive:
        rng = self._rng
        self._arrived += 1
        max_tokens = rng.choice([self._longest, rng.randint(1, self._longest)])
        plain = Arrive(
            number=self._arrived,
            family=rng.randrange(FAMILIES),
            shared=rng.choice([0, self._longest // 2, self._longest, rng.randint(0, self._longest)]),
            own=rng.choice([1, 1, 2, rng.randint(1, self._longest)]),
            max_tokens=max_tokens,
            seed=rng.choice([self._arrived, rng.randrange(3)]),
            tenant=rng.choice(self._tenants),
            cache_salt=rng.choice(self._salts),
            adapter=rng.choice(self._adapters),
            ignore_eos=rng.random() < self._ignores,
            follows=rng.randrange(1 << 16) if rng.random() < 0.2 else None,
        )
        if self._plain:
            return plain
        adorned = self._adorn(plain)
        return self._searching(adorned) if rng.random() < self._searches else adorned

    def _adorn(self, plain: Arrive) -> Arrive:
        rng = self._rng
        return replace(
            plain,
            n=rng.choice([1, 1, 1, 2, 3, 4]),
            service_class=rng.choice(list(ServiceClass)) if rng.random() < 0.2 else ServiceClass.NORMAL,
            priority=rng.choice([0, 0, -1, 1, 5]),
            ignore_eos=rng.random() < self._ignores,
            min_tokens=rng.choice([0, 0, 1, plain.max_tokens]),
            stop_token=rng.randrange(VOCAB) if rng.random() < 0.3 else None,
            logprobs=rng.random() < 0.3,
            prompt_logprobs=rng.random() < 0.15,
            patience=rng.choice([0.0, 0.005, 0.05, 5.0]) if rng.random() < 0.12 else None,
            pooling=rng.choice(["whole", "chunked"]) if rng.random() < 0.1 else "",
        )

    def _searching(self, adorned: Arrive) -> Arrive:
        rng = self._rng
        return replace(
            adorned,
            width=adorned.n + rng.choice([0, 0, 1, 2]),
            length_penalty=rng.choice([1.0, 1.0, 0.0, -1.0, 2.0]),
            early_stopping=rng.choice([False, False, True, "never"]),
            pooling="",
            prompt_logprobs=False,
        )


def _stream(which: int, count: int) -> list[int]:
    """The first tokens of an endless text."""
    return [(which * 7919 + at * at * 31 + at * 17 + which * at * 5) % VOCAB for at in range(count)]
