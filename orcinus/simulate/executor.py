"""Workers that take modelled time and say what the trace knows: an `Executor` without a model."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from orcinus.core.clock import VirtualClock
from orcinus.core.config import SchedulerConfig
from orcinus.core.plan import (
    Erase,
    IterationPlan,
    IterationResult,
    NewSequence,
    Output,
    SequenceOutput,
    Swap,
    SwapIn,
    TokenLogprobs,
    Work,
)
from orcinus.core.request import TOKEN_TYPECODE, unpack_tokens
from orcinus.simulate.cost import Features, Machine
from orcinus.simulate.jobs import END, FILLER, Job

# Beyond any answer.
_NEVER = 2**62


class Pace(Protocol):
    """How long an iteration takes: from a cost model, or as it was recorded."""

    @property
    def num_stages(self) -> int:
        """Stages in a row."""
        ...

    def times(self, iteration: int, features: Features) -> tuple[float, float]:
        """Seconds in each stage, and between two."""
        ...

    def copies(self, swaps: Sequence[Swap]) -> float:
        """Seconds in each stage that go into KV from elsewhere, before the work."""
        ...


@dataclass(frozen=True, slots=True)
class Modelled:
    """By the machine's cost model. `config` says what copies cost, as core believes it."""

    machine: Machine
    config: SchedulerConfig | None = None

    @property
    def num_stages(self) -> int:
        """The machine's."""
        return self.machine.num_stages

    def times(self, iteration: int, features: Features) -> tuple[float, float]:
        """The same for equal features."""
        return self.machine.stage_seconds(features), self.machine.transfer_seconds(features)

    def copies(self, swaps: Sequence[Swap]) -> float:
        """Each block's price; what goes to disk goes beside the work."""
        if not swaps or self.config is None:
            return 0.0
        host = self.config.num_host_blocks
        on_host = sum(not isinstance(swap, Erase) and swap.slot < host for swap in swaps)
        from_disk = sum(isinstance(swap, SwapIn) and swap.slot >= host for swap in swaps)
        return on_host * self.config.host_block_seconds + from_disk * self.config.disk_block_seconds


class Ran(NamedTuple):
    """One plan in modelled time."""

    plan: IterationPlan
    began_at: float
    done_at: float
    result: IterationResult


class _Answer:
    """What one sequence will say. Outputs are made once: most iterations give each sequence the same one."""

    __slots__ = ("ends", "filler", "fillers", "last", "last_at", "tokens")

    def __init__(self, new: NewSequence, job: Job) -> None:
        # A recorded request has end tokens of its own, and none of them may slip in.
        token = FILLER
        while token in new.end_token_ids:
            token += 1
        self.filler = SequenceOutput(new.seq_id, (token,))
        self.fillers = array(TOKEN_TYPECODE, (token,))
        self.last = SequenceOutput(new.seq_id, (END,))
        # A limit ends an answer without an end token.
        self.last_at = new.num_prompt_tokens + job.output - 1 if job.output < job.max_tokens else -1
        self.tokens: tuple[int, array[int]] | None = None
        self.ends: list[int] = []
        if new.num_candidates:
            self._search(new, job, token)
            return
        if job.answers:
            self.tokens = (new.num_prompt_tokens, unpack_tokens(job.answers[new.index]))
            # What was recorded ends as it was recorded.
            self.last_at = self.last_at if job.recorded is None else -1
        self.ends = self._ends(new)

    def next_end(self, position: int) -> int:
        """The first position from `position` on whose token may end the answer; far away if there is none."""
        place = bisect_left(self.ends, position)
        return self.ends[place] if place < len(self.ends) else _NEVER

    def _ends(self, new: NewSequence) -> list[int]:
        """A recorded answer may hold several: those before `min_tokens` end nothing."""
        ends = [] if self.last_at < 0 else [self.last_at]
        if self.tokens is not None:
            first, tokens = self.tokens
            kept = frozenset(new.end_token_ids)
            ends += [first + place for place, token in enumerate(tokens) if token in kept]
        return sorted(ends)

    def _search(self, new: NewSequence, job: Job, token: int) -> None:
        """Every beam has as many continuations as core can choose from; all end where the longest answer did."""
        ids = [each for each in range(token, token + 2 * new.num_candidates) if each not in new.end_token_ids]
        falling = tuple(-1.0 - place for place in range(new.num_candidates))
        found = TokenLogprobs(-1.0, 1, tuple(ids[: new.num_candidates]), falling)
        self.filler = SequenceOutput(new.seq_id, (token,), (found,))
        # Of one that was given up nothing is known: it goes on.
        self.last_at = -1
        if new.end_token_ids and any(job.answers) and job.output < job.max_tokens:
            end = new.end_token_ids[0]
            self.last = SequenceOutput(new.seq_id, (end,), (TokenLogprobs(-1.0, 1, (end,), (-1.0,)),))
            self.last_at = new.num_prompt_tokens + job.output - 1

    def at(self, position: int, seq_id: int) -> SequenceOutput:
        """What is sampled for `position`."""
        if position == self.last_at:
            return self.last
        if self.tokens is None:
            return self.filler
        first, tokens = self.tokens
        # Past the trace's answer there is nothing to repeat.
        known = 0 <= position - first < len(tokens)
        return SequenceOutput(seq_id, (tokens[position - first],)) if known else self.filler


class SimulatedExecutor:
    """Plans pass through the stages in order; a stage runs one at a time. `jobs` are found by their seed."""

    def __init__(self, pace: Pace, clock: VirtualClock, jobs: dict[int, Job]) -> None:
        self._pace = pace
        self._clock = clock
        self._jobs = jobs
        self._answers: dict[int, _Answer] = {}
        self._in_flight: deque[Ran] = deque()
        self._free_at = [0.0] * pace.num_stages
        self.busy = [0.0] * pace.num_stages
        # Seconds that work waited for KV from elsewhere.
        self.copying = 0.0

    @property
    def next_done_at(self) -> float:
        """When the oldest plan comes back; there is one."""
        return self._in_flight[0].done_at

    def submit(self, plan: IterationPlan) -> None:
        """Take a plan; its time is known at once."""
        now = self._clock.now()
        self.forget(plan.finished)
        for new in plan.new:
            number = new.params.seed
            assert number is not None
            self._answers[new.seq_id] = _Answer(new, self._jobs[number])
        features, outputs = self._run(plan.work)
        work, transfer = self._pace.times(plan.iteration, features)
        waited = self._pace.copies(plan.swaps)
        stage = waited + max(work, self._pace.copies(plan.ahead))
        self.copying += stage - work
        began_at, done_at = self._pass_through(now, stage, transfer)
        times = (stage,) * len(self._free_at)
        result = IterationResult(plan.epoch, plan.iteration, tuple(outputs), stage_times=times)
        self._in_flight.append(Ran(plan, began_at, done_at, result))

    def stride(self, iteration: int, decodes: int, context: int) -> tuple[float, float]:
        """Begin and end of an iteration that only decodes, and is collected at once."""
        stage, transfer = self._pace.times(iteration, Features(decodes, 0, decodes, context, 0, decodes))
        return self._pass_through(self._clock.now(), stage, transfer)

    def forget(self, seq_ids: Iterable[int]) -> None:
        """As a plan says it."""
        for seq_id in seq_ids:
            self._answers.pop(seq_id, None)

    def tokens_to_end(self, seq_id: int, position: int) -> int:
        """See core's `Answers`."""
        return self._answers[seq_id].next_end(position) - position + 1

    def tokens(self, seq_id: int, position: int, count: int) -> array[int]:
        """See core's `Answers`."""
        answer = self._answers[seq_id]
        if answer.tokens is None and not position <= answer.last_at < position + count:
            return answer.fillers * count
        outputs = (answer.at(each, seq_id).tokens for each in range(position, position + count))
        return array(TOKEN_TYPECODE, [token for tokens in outputs for token in tokens])

    def collect(self) -> IterationResult:
        """The oldest result; the clock moves to its instant."""
        return self.collect_ran().result

    def collect_ran(self) -> Ran:
        """The same, with its times."""
        ran = self._in_flight.popleft()
        self._clock.advance_to(max(self._clock.now(), ran.done_at))
        return ran

    def close(self) -> None:
        """Nothing runs."""
        self._in_flight.clear()

    def _run(self, work: tuple[Work, ...]) -> tuple[Features, list[SequenceOutput]]:
        """Features and outputs in one pass: it is half of the simulator's own cost."""
        prefill = decodes = context = pairs = 0
        outputs: list[SequenceOutput] = []
        answers, sample = self._answers, Output.SAMPLE
        for item in work:
            start, count, seq_id = item.start, item.num_tokens, item.seq_id
            if count == 1 and start:
                decodes += 1
                context += start + 1
            else:
                prefill += count
                pairs += count * start + count * (count + 1) // 2
            if item.output is sample:
                answer = answers[seq_id]
                position = start + count
                if answer.tokens is None and position != answer.last_at:
                    outputs.append(answer.filler)
                else:
                    outputs.append(answer.at(position, seq_id))
            elif item.output & (Output.SAMPLE | Output.POOLED):
                outputs.append(answers[seq_id].at(start + count, seq_id))
        return Features(prefill + decodes, prefill, decodes, context, pairs, len(outputs)), outputs

    def _pass_through(self, now: float, stage: float, transfer: float) -> tuple[float, float]:
        """Begin and end of a plan that comes at `now`: it enters a stage once it and the stage are ready."""
        free_at, busy = self._free_at, self.busy
        began_at = at = max(now, free_at[0])
        for index in range(len(free_at)):
            if index:
                at = max(at + transfer, free_at[index])
            at += stage
            free_at[index] = at
            busy[index] += stage
        return began_at, at
