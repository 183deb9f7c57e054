"""An engine process that takes a model's time without its work: real core, loop and frames; iterations sleep.

Started by `overload.py --paced` in the place of `orcinus.engine.process`, where other jobs on the same cores would
change how fast a real model is while it is measured.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from pathlib import Path

import msgspec
import zmq
from null_engine import NullExecutor

from orcinus.core.config import SchedulerConfig
from orcinus.core.core import Core
from orcinus.core.plan import IterationPlan, IterationResult
from orcinus.core.quarantine import Suspects
from orcinus.engine.beat import Beat
from orcinus.engine.channel import Channel
from orcinus.engine.clock import MonotonicClock
from orcinus.engine.loop import Engine
from orcinus.engine.messages import EngineDescription, OrderToEngine
from orcinus.engine.process import Control, EngineProcess

PLACES, BUDGET, NUM_BLOCKS = 64, 512, 5461
ITERATION_SECONDS, PROMPT_SECONDS, ANSWER_SECONDS = 0.010, 0.0004, 0.0005


class PacedExecutor(NullExecutor):
    """Answers when a model would have: so much for each iteration, token of a prompt and running answer.

    Args:
        slowness: all times, times this.
    """

    def __init__(self, slowness: float) -> None:
        super().__init__()
        self._slowness = slowness
        self._plans: deque[IterationPlan] = deque()

    def submit(self, plan: IterationPlan) -> None:
        """Its work begins when it is collected."""
        self._plans.append(plan)

    def collect(self) -> IterationResult:
        """Sleep, then answer."""
        plan = self._plans.popleft()
        answers = sum(work.num_tokens == 1 for work in plan.work)
        prompt = PROMPT_SECONDS * (plan.num_tokens - answers)
        time.sleep(self._slowness * (ITERATION_SECONDS + ANSWER_SECONDS * answers + prompt))
        super().submit(plan)
        return super().collect()


def main() -> None:
    """Serve until told to leave."""
    options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    config = SchedulerConfig(num_blocks=NUM_BLOCKS, max_batch_tokens=BUDGET, max_batch_size=PLACES)
    engine = Engine(Core(config), PacedExecutor(float(options["--slowness"])), MonotonicClock())
    control: Control = Channel.inherited(int(options["--control"]), msgspec.msgpack.Decoder(OrderToEngine))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.bind(f"ipc://{options['--socket']}")
    control.send(
        EngineDescription(
            model="paced",
            architecture="Paced",
            num_parameters=0,
            dtype="float32",
            device="cpu",
            fingerprint="paced",
            weights_revision="paced",
            vocab_size=32_000,
            eos_token_ids=(2,),
            max_sequence_tokens=4096,
            max_request_tokens=NUM_BLOCKS * config.block_size,
            max_batch_size=PLACES,
            max_batch_tokens=BUDGET,
        )
    )
    EngineProcess(engine, socket, control, Beat(Path(options["--beat"])), Suspects()).run()
    context.destroy(linger=1000)


if __name__ == "__main__":
    main()
