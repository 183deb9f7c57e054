"""Repeats a recording and says in words what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from orcinus.core import recording
from orcinus.core.plan import IterationPlan
from orcinus.core.recording import AdvanceInput, Difference

# Sequences of a plan that a line of explanation names.
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Replayed:
    """What was repeated: lines read, iterations run, and the first decision that differs, if one does."""

    lines: int
    iterations: int
    difference: Difference | None


def check_replay(lines: Iterable[bytes]) -> Replayed:
    """Repeat a recording.

    Raises:
        ValueError: this is no recording.
    """
    counted = _Counted(lines)
    core, difference = recording.replay(counted)
    return Replayed(counted.count, core.scheduler.num_iterations, difference)


class _Counted:
    """Lines, and how many of them were read."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = lines
        self.count = 0

    def __iter__(self) -> Iterator[bytes]:
        for line in self._lines:
            self.count += 1
            yield line


def explain(found: Replayed) -> str:
    """A line if all is well; else both decisions, and in which sequences they differ."""
    if found.difference is None:
        return f"{found.lines:,} lines, {found.iterations:,} iterations: every decision is the recorded one"
    recorded, replayed = found.difference.recorded, found.difference.replayed
    return "\n".join(
        (
            f"line {found.difference.line}, at {recorded.at:.6f} s: the first decision that differs",
            f"  recorded: {_in_words(recorded)}",
            f"  replayed: {_in_words(replayed)}",
            *_differences(recorded.plan, replayed.plan),
        )
    )


def _in_words(decision: AdvanceInput) -> str:
    plan = decision.plan
    if plan is None:
        return decision.decision
    parts = [f"{work.seq_id}@{work.start}+{work.num_tokens}" for work in plan.work[:_SHOWN]]
    more = f" and {len(plan.work) - _SHOWN} more" if len(plan.work) > _SHOWN else ""
    return f"iteration {plan.iteration} runs {plan.num_tokens} tokens: {', '.join(parts)}{more}"


def _differences(recorded: IterationPlan | None, replayed: IterationPlan | None) -> Iterator[str]:
    """By part of the plan: work, new sequences, block tables, copies, finished."""
    if recorded is None or replayed is None:
        return
    for name in recorded.__struct_fields__:
        before, after = getattr(recorded, name), getattr(replayed, name)
        if before != after and isinstance(before, tuple):
            only = [each for each in before if each not in after][:_SHOWN]
            instead = [each for each in after if each not in before][:_SHOWN]
            yield f"  {name}: only recorded {only}, only replayed {instead}"
        elif before != after:
            yield f"  {name}: recorded {before}, replayed {after}"
