"""What deciding costs: core's loop around an executor that answers at once (issue 2: ≤ 15 µs a scheduled sequence).

    python benchmarks/null_executor.py [--sequences 64] [--iterations 400] [--repeats 15] [--policy fcfs] [--waiting 0]

`loop` is advance + answer + update; the answer's own cost is measured apart and taken off. `wire` adds msgpack encoding
and decoding of plan and result, as between processes. Garbage collection stays on, as in the server.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import deque
from collections.abc import Callable

import msgspec

from orcinus.core.config import SchedulerConfig
from orcinus.core.core import Collect, Core, Submit
from orcinus.core.plan import IterationPlan, IterationResult, Output, SequenceOutput
from orcinus.core.request import Request, SamplingParams, pack_tokens

PROMPT_TOKENS = 128

Transport = Callable[[IterationPlan], IterationResult]


def answer(plan: IterationPlan) -> IterationResult:
    """The null executor: token 1 for whoever is to sample."""
    outputs = tuple(SequenceOutput(work.seq_id, (1,)) for work in plan.work if work.output & Output.SAMPLE)
    return IterationResult(plan.epoch, plan.iteration, outputs)


class Wire:
    """The null executor behind msgpack, both ways; counts the bytes of the plans."""

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._plans = msgspec.msgpack.Decoder(IterationPlan)
        self._results = msgspec.msgpack.Decoder(IterationResult)
        self.plan_sizes: list[int] = []

    def __call__(self, plan: IterationPlan) -> IterationResult:
        frame = self._encoder.encode(plan)
        self.plan_sizes.append(len(frame))
        return self._results.decode(self._encoder.encode(answer(self._plans.decode(frame))))


def full_core(sequences: int, iterations: int, lookahead: int, policy: str = "fcfs", waiting: int = 0) -> Core:
    """A core with `sequences` requests that decode for longer than the benchmark runs, and `waiting` more."""
    max_tokens = iterations + 64
    blocks = sequences * ((PROMPT_TOKENS + max_tokens) // 16 + 2)
    config = SchedulerConfig(
        num_blocks=blocks,
        max_batch_tokens=8192,
        max_batch_size=sequences,
        lookahead=1 if lookahead else 0,
        policy=policy,
        enable_prefix_caching=policy == "prefix",
    )
    core = Core(config)
    params = SamplingParams(max_tokens=max_tokens, seed=1)
    prompt = pack_tokens([5] * PROMPT_TOKENS)
    for number in range(sequences + waiting):
        name, tenant = f"request-{number}", f"tenant-{number % 8}" if policy == "fair" else ""
        core.add(Request(request_id=name, prompt=prompt, params=params, eos_token_ids=(2,), tenant=tenant), 0.0)
    return core


class Loop:
    """Submit, collect, update, as the engine does. Results wait in order until they are collected."""

    def __init__(self, core: Core, transport: Transport) -> None:
        self._core = core
        self._transport = transport
        self._results: deque[IterationResult] = deque()

    def run(self, iterations: int) -> float:
        """Seconds for `iterations` iterations, answers included."""
        begun = time.perf_counter()
        collected = 0
        while collected < iterations:
            decision = self._core.advance(0.0)
            if isinstance(decision, Submit):
                self._results.append(self._transport(decision.plan))
            else:
                assert isinstance(decision, Collect)
                self._core.update(self._results.popleft(), 0.0)
                collected += 1
        return time.perf_counter() - begun


def cost_of_answer(core: Core, iterations: int) -> float:
    """Seconds that the null executor itself takes for as many full plans."""
    decision = core.advance(0.0)
    assert isinstance(decision, Submit)
    begun = time.perf_counter()
    for _ in range(iterations):
        answer(decision.plan)
    return time.perf_counter() - begun


def measure(
    sequences: int, iterations: int, lookahead: int, *, wire: bool, policy: str, waiting: int
) -> tuple[float, Wire]:
    """Microseconds a scheduled sequence of one run, warm-up and the executor's own cost left out."""
    transport = Wire()
    loop = Loop(full_core(sequences, iterations, lookahead, policy, waiting), transport if wire else answer)
    loop.run(8)
    transport.plan_sizes.clear()
    spent = loop.run(iterations)
    own = cost_of_answer(full_core(sequences, iterations, lookahead), iterations)
    return (spent - own) / iterations / sequences * 1e6, transport


def main() -> None:
    """Print a table: median and spread over repeats that take turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--policy", default="fcfs")
    parser.add_argument("--waiting", type=int, default=0, help="requests in the queue that find no place")
    options = parser.parse_args()
    cases = [(lookahead, wire) for lookahead in (0, 1) for wire in (False, True)]
    times: dict[tuple[int, bool], list[float]] = {case: [] for case in cases}
    sizes: dict[int, float] = {}
    for _ in range(options.repeats):
        for lookahead, wire in cases:
            cost, transport = measure(
                options.sequences,
                options.iterations,
                lookahead,
                wire=wire,
                policy=options.policy,
                waiting=options.waiting,
            )
            times[lookahead, wire].append(cost)
            if wire:
                sizes[lookahead] = statistics.mean(transport.plan_sizes) / options.sequences
    size = f"{options.sequences} decoding sequences, {options.iterations} iterations, {options.repeats} repeats"
    print(f"{size}, {options.policy}")
    for (lookahead, wire), costs in times.items():
        low, middle, high = min(costs), statistics.median(costs), max(costs)
        name = "loop + wire" if wire else "loop"
        print(f"lookahead {lookahead}  {name:<12} {middle:6.2f} µs a sequence  (min {low:.2f}, max {high:.2f})")
    for lookahead, size in sizes.items():
        print(f"lookahead {lookahead}  steady decode plan: {size:.1f} bytes a sequence (mean, block deltas included)")


if __name__ == "__main__":
    main()
