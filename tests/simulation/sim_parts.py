"""What a simulated engine is put together from, besides core, the worker and the clients."""

from __future__ import annotations

from dataclasses import dataclass

from orcinus.core.journal import Event, Journal
from orcinus.core.plan import IterationPlan, IterationResult, Output, SequenceOutput


class Minutes(Journal):
    """The journal, and what was written since somebody looked."""

    def __init__(self) -> None:
        super().__init__()
        self.news: list[Event] = []

    def write(self, event: Event) -> None:
        """Append one event."""
        super().write(event)
        self.news.append(event)

    def read(self) -> list[Event]:
        """What is new."""
        news, self.news = self.news, []
        return news


@dataclass(slots=True)
class PlanOut:
    """A plan in flight, and the blocks it may touch, by whom; the worker may or may not have run it."""

    plan: IterationPlan
    touched: dict[int, set[int]]
    result: IterationResult | None = None


def invented_result(plan: IterationPlan) -> IterationResult:
    """An answer to `plan` with tokens that are wrong, should anybody take them."""
    sampling = (work for work in plan.work if Output.SAMPLE in work.output)
    return IterationResult(plan.epoch, plan.iteration, tuple(SequenceOutput(work.seq_id, (0,)) for work in sampling))
