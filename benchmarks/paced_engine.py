"""An engine process that takes a model's time without its work: real core, loop and frames; iterations sleep.

Started by `overload.py --paced` in the place of `orcinus.engine.process`, where other jobs on the same cores would
change how fast a real model is while it is measured.
"""

from __future__ import annotations

import time
from collections import deque

from null_engine import NullExecutor, given_options, serve

from orcinus.core.config import SchedulerConfig
from orcinus.core.plan import IterationPlan, IterationResult

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


if __name__ == "__main__":
    given = given_options()
    room = SchedulerConfig(num_blocks=NUM_BLOCKS, max_batch_tokens=BUDGET, max_batch_size=PLACES)
    serve("paced", PacedExecutor(float(given["--slowness"])), room, given)
