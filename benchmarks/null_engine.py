"""An engine process whose executor answers at once: real core, real loop, real frames, no model.

Started by `http_streams.py` in the place of `orcinus.engine.process`. Sequence s's token at position p is
100 + (p mod 26), so that a client knows every answer beforehand.
"""

from __future__ import annotations

import sys
from collections import deque
from pathlib import Path

import msgspec
import zmq

from orcinus.core.config import SchedulerConfig
from orcinus.core.core import Core
from orcinus.core.plan import IterationPlan, IterationResult, Output, SequenceOutput
from orcinus.core.quarantine import Suspects
from orcinus.engine.beat import Beat
from orcinus.engine.channel import Channel
from orcinus.engine.clock import MonotonicClock
from orcinus.engine.loop import Engine
from orcinus.engine.messages import EngineDescription, OrderToEngine
from orcinus.engine.process import Control, EngineProcess

SEQUENCES = 256
FIRST_TOKEN, NUM_TOKENS = 100, 26
VOCAB_SIZE, MAX_SEQUENCE_TOKENS = 32_000, 4096


class NullExecutor:
    """Implements `Executor`."""

    def __init__(self) -> None:
        self._results: deque[IterationResult] = deque()

    def submit(self, plan: IterationPlan) -> None:
        """Answer there and then."""
        outputs = tuple(
            SequenceOutput(work.seq_id, (FIRST_TOKEN + (work.start + work.num_tokens) % NUM_TOKENS,))
            for work in plan.work
            if work.output & Output.SAMPLE
        )
        self._results.append(IterationResult(plan.epoch, plan.iteration, outputs))

    def collect(self) -> IterationResult:
        """The oldest answer."""
        return self._results.popleft()

    def close(self) -> None:
        """There is nothing to let go."""


def serve(name: str, executor: NullExecutor, config: SchedulerConfig, options: dict[str, str]) -> None:
    """Be the engine process that `options` places, until told to leave. `name` stands where a model's would."""
    engine = Engine(Core(config), executor, MonotonicClock())
    control: Control = Channel.inherited(int(options["--control"]), msgspec.msgpack.Decoder(OrderToEngine))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.bind(f"ipc://{options['--socket']}")
    control.send(
        EngineDescription(
            model=name,
            architecture=name,
            num_parameters=0,
            dtype="float32",
            device="cpu",
            fingerprint=name,
            weights_revision=name,
            vocab_size=VOCAB_SIZE,
            eos_token_ids=(2,),
            max_sequence_tokens=MAX_SEQUENCE_TOKENS,
            max_request_tokens=config.num_blocks * config.block_size,
            max_batch_size=config.max_batch_size,
            max_batch_tokens=config.max_batch_tokens,
        )
    )
    EngineProcess(engine, socket, control, Beat(Path(options["--beat"])), Suspects()).run()
    context.destroy(linger=1000)


def given_options() -> dict[str, str]:
    """What the supervisor says, by option."""
    return dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))


if __name__ == "__main__":
    room = SchedulerConfig(num_blocks=SEQUENCES * 140, max_batch_tokens=8192, max_batch_size=SEQUENCES)
    serve("null", NullExecutor(), room, given_options())
