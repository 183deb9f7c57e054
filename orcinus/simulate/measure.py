"""Runs designed plans on a real engine and times them, for a cost model of this machine and checkpoint."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from orcinus.core.journal import Scheduled
from orcinus.core.request import Request, SamplingParams, pack_tokens
from orcinus.engine.build import build_engine
from orcinus.engine.clock import MonotonicClock
from orcinus.engine.config import EngineConfig
from orcinus.engine.loop import Engine
from orcinus.engine.messages import EngineDescription
from orcinus.errors import ConfigurationError
from orcinus.simulate.cost import features_of_work
from orcinus.simulate.fit import Sample, fit, residuals
from orcinus.simulate.profile import Profile

# Every fifth round is kept from the fit, to judge it by.
_HELD_OUT = 5
_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_PROMPTS = (1, 4, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
_OUTPUT = 12
_WARM_UP_ROUNDS = 3
_OWN_CORE = 0.9


@dataclass(frozen=True, slots=True)
class Round:
    """So many requests at once, with prompts of this length; `late` ones come while the others decode."""

    batch: int
    prompt: int
    late: int = 0


def measure(
    config: EngineConfig,
    seconds: float,
    say: Callable[[str], None],
    timer: Callable[[], float] = time.perf_counter,
    seed: int = 0,
) -> Profile:
    """Load the model, run rounds for about so many seconds, fit.

    Args:
        timer: `time.process_time` leaves out what other jobs took of the machine; that is the engine's time only with
            a single thread.

    Raises:
        ConfigurationError: the model doesn't generate, or too little could be measured.
        CheckpointError, MemoryPlanError, BatchVarianceError: as `build_engine` does.
    """
    engine, description = build_engine(config, MonotonicClock(), say)
    if not description.generates:
        raise ConfigurationError(f"{config.model} generates no tokens; only generating models are profiled")
    try:
        runner = _Runner(engine, description, random.Random(seed), timer)
        fitted, held_out = _collect(runner, description, seconds, random.Random(seed), say)
    finally:
        engine.close()
    cost = fit(fitted)
    return Profile(
        cost=cost,
        scheduler=engine.scheduler.config,
        name=f"{config.model} ({description.dtype} on {description.device})",
        fingerprint=description.fingerprint,
        num_iterations=len(fitted) + len(held_out),
        residuals=residuals(cost, held_out or fitted),
    )


def _collect(
    runner: _Runner, description: EngineDescription, seconds: float, rng: random.Random, say: Callable[[str], None]
) -> tuple[list[Sample], list[Sample]]:
    """(to fit, held out). Rounds come in random order, so that a slow minute of the machine doesn't strike one kind."""
    for _ in range(_WARM_UP_ROUNDS):
        runner.run(Round(2, 32))
    fitted, held_out = list[Sample](), list[Sample]()
    ends_at, said_at = time.monotonic() + seconds, time.monotonic()
    busy = _BusyMachine()
    for number, each in enumerate(_rounds(description, rng)):
        if time.monotonic() > ends_at:
            break
        (held_out if number % _HELD_OUT == _HELD_OUT - 1 else fitted).extend(runner.run(each))
        if time.monotonic() - said_at > 5:
            said_at = time.monotonic()
            say(f"{len(fitted) + len(held_out)} iterations measured, {max(0.0, ends_at - said_at):.0f} s left")
    busy.warn(say)
    return fitted, held_out


class _BusyMachine:
    """Notices that others took the processor while we measured."""

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def warn(self, say: Callable[[str], None]) -> None:
        """If this process had less than a core for itself."""
        share = (time.process_time() - self._processor) / (time.perf_counter() - self._wall)
        if share < _OWN_CORE:
            say(
                f"warning: this process had {share:.0%} of a core while it measured, so other jobs are in the figures; "
                "stop them, or use --processor-time with --threads 1"
            )


def _rounds(description: EngineDescription, rng: random.Random) -> Iterator[Round]:
    """For ever: a pass over the short list of kinds, shuffled, then the next."""
    longest = min(description.max_sequence_tokens, description.max_request_tokens) - _OUTPUT - 1
    for _ in count():
        kinds = [
            Round(batch, min(prompt, longest), late)
            for batch in _BATCHES
            if batch <= description.max_batch_size
            for prompt in rng.sample(_PROMPTS, 4)
            for late in (0, rng.choice((0, 1)))
            # Together they must fit the pool, or they would measure preemption.
            if (batch + late) * (min(prompt, longest) + _OUTPUT) <= description.max_request_tokens
        ]
        rng.shuffle(kinds)
        yield from kinds


class _Runner:
    """Rounds on one engine. What ran is read from the journal, how long it took from the clock."""

    def __init__(
        self, engine: Engine, description: EngineDescription, rng: random.Random, timer: Callable[[], float]
    ) -> None:
        self._engine = engine
        self._timer = timer
        self._vocab_size = description.vocab_size
        self._rng = rng
        self._numbers = count()

    def run(self, each: Round) -> list[Sample]:
        """All iterations of a round: each from the decision before it to its result."""
        for _ in range(each.batch):
            self._add(each.prompt)
        seconds, rows = list[float](), list[int]()
        first = self._engine.scheduler.num_iterations
        late, begun_at = each.late, self._timer()
        while (progress := self._engine.step()) is not None:
            if not progress and self._engine.scheduler.num_in_flight:
                continue
            seconds.append(self._timer() - begun_at)
            rows.append(sum(bool(part.tokens) for part in progress))
            if late and len(seconds) == _OUTPUT // 2:
                late = 0
                self._add(self._rng.choice(_PROMPTS[:8]))
            begun_at = self._timer()
        plans = [event for event in self._engine.scheduler.journal if isinstance(event, Scheduled)][-len(seconds) :]
        assert plans[0].iteration == first, "the journal has lost a plan of this round"
        return [
            Sample(features_of_work(((start, tokens) for _, start, tokens in plan.work), count_rows), spent)
            for plan, count_rows, spent in zip(plans, rows, seconds, strict=True)
        ]

    def _add(self, num_prompt: int) -> None:
        prompt = [self._rng.randrange(self._vocab_size) for _ in range(num_prompt)]
        # Sampled, as most clients ask: drawing costs more than taking the likeliest token.
        params = SamplingParams(max_tokens=_OUTPUT, seed=1, ignore_eos=True)
        request = Request(request_id=f"profile-{next(self._numbers)}", prompt=pack_tokens(prompt), params=params)
        refused = self._engine.add(request)
        assert not refused, "a round fits the engine"
