"""Runs designed plans on a real engine and times them, for a cost model of this machine and checkpoint."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import NamedTuple

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
# Of mixed traffic: requests that come later, one whenever another has ended; bounds of prompts and answers.
_LATER = 12
_MIXED_PROMPTS = (4, 512)
_MIXED_OUTPUTS = (2, 60)
_WARM_UP_ROUNDS = 3
_OWN_CORE = 0.9


class Round(NamedTuple):
    """Requests as (prompt, answer) in tokens, `batch` of them at once and then one whenever another has ended."""

    batch: int
    asked: tuple[tuple[int, int], ...]

    @property
    def most(self) -> int:
        """KV tokens that may be needed at a time, at most."""
        return self.batch * max(prompt + answer for prompt, answer in self.asked)


def even(batch: int, prompt: int) -> Round:
    """All of a length, in step: the corners of what can be asked."""
    return Round(batch, ((prompt, _OUTPUT),) * batch)


def mixed(batch: int, rng: random.Random) -> Round:
    """As traffic is: batches whose members come and go, prompts beside decodes. Lengths are log-uniform."""

    def length(bounds: tuple[int, int]) -> int:
        return round(math.exp(rng.uniform(*map(math.log, bounds))))

    return Round(batch, tuple((length(_MIXED_PROMPTS), length(_MIXED_OUTPUTS)) for _ in range(batch + _LATER)))


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
    try:
        measurement = Measurement(engine, description, timer, seed)
        measurement.go_on(seconds, say)
        return measurement.profile()
    finally:
        engine.close()


class Measurement:
    """Iterations of one engine that were timed; more can be added at any time, which is good where speed drifts.

    Raises:
        ConfigurationError: the model doesn't generate.
    """

    def __init__(
        self, engine: Engine, description: EngineDescription, timer: Callable[[], float], seed: int = 0
    ) -> None:
        if not description.generates:
            raise ConfigurationError(f"{description.model} generates no tokens; only generating models are profiled")
        self._description = description
        self.engine = engine
        self._runner = _Runner(engine, description, random.Random(seed), timer)
        # In random order, so that a slow minute of the machine doesn't strike one kind.
        self._rounds = enumerate(_rounds(description, random.Random(seed)))
        self._fitted, self._held_out = list[Sample](), list[Sample]()

    def go_on(self, seconds: float, say: Callable[[str], None]) -> None:
        """Run rounds for about so long."""
        for _ in range(_WARM_UP_ROUNDS):
            self._runner.run(even(2, 32))
        ends_at, said_at = time.monotonic() + seconds, time.monotonic()
        busy = _BusyMachine()
        while time.monotonic() < ends_at:
            number, each = next(self._rounds)
            samples = self._held_out if number % _HELD_OUT == _HELD_OUT - 1 else self._fitted
            samples.extend(self._runner.run(each))
            if time.monotonic() - said_at > 5:
                said_at = time.monotonic()
                count = len(self._fitted) + len(self._held_out)
                say(f"{count} iterations measured, {max(0.0, ends_at - said_at):.0f} s left")
        busy.warn(say)

    def profile(self) -> Profile:
        """Of all that was measured.

        Raises:
            ConfigurationError: too little.
        """
        cost = fit(self._fitted)
        return Profile(
            cost=cost,
            scheduler=self.engine.scheduler.config,
            name=f"{self._description.model} ({self._description.dtype} on {self._description.device})",
            fingerprint=self._description.fingerprint,
            num_iterations=len(self._fitted) + len(self._held_out),
            residuals=residuals(cost, self._held_out or self._fitted),
        )


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
            each
            for batch in _BATCHES
            if batch <= description.max_batch_size
            for prompts in [rng.sample(_PROMPTS, 4)]
            for each in [even(batch, min(prompt, longest)) for prompt in prompts] + [mixed(batch, rng) for _ in prompts]
            # Together they must fit the pool, or they would measure preemption.
            if each.most <= description.max_request_tokens
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
        left = iter(each.asked)
        for prompt, answer in islice(left, each.batch):
            self._add(prompt, answer)
        seconds, rows = list[float](), list[int]()
        first, begun_at = self._engine.scheduler.num_iterations, self._timer()
        while (progress := self._engine.step()) is not None:
            if not progress and self._engine.scheduler.num_in_flight:
                continue
            seconds.append(self._timer() - begun_at)
            rows.append(sum(bool(part.tokens) for part in progress))
            for prompt, answer in islice(left, sum(part.finish_reason is not None for part in progress)):
                self._add(prompt, answer)
            begun_at = self._timer()
        plans = [event for event in self._engine.scheduler.journal if isinstance(event, Scheduled)][-len(seconds) :]
        assert plans[0].iteration == first, "the journal has lost a plan of this round"
        return [
            Sample(features_of_work(((start, tokens) for _, start, tokens in plan.work), count_rows), spent)
            for plan, count_rows, spent in zip(plans, rows, seconds, strict=True)
        ]

    def _add(self, num_prompt: int, num_answer: int) -> None:
        prompt = [self._rng.randrange(self._vocab_size) for _ in range(num_prompt)]
        # Sampled, as most clients ask: drawing costs more than taking the likeliest token.
        params = SamplingParams(max_tokens=num_answer, seed=1, ignore_eos=True)
        request = Request(request_id=f"profile-{next(self._numbers)}", prompt=pack_tokens(prompt), params=params)
        refused = self._engine.add(request)
        assert not refused, "a round fits the engine"
