"""`orcinus eval`: asks an endpoint exercises and counts the right answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from orcinus.bench.asks import Ask, Failure, FailureKind
from orcinus.bench.endpoint import Target, connections, failure_of, served_model, status_failure
from orcinus.bench.tasks import Exercise
from orcinus.errors import ConfigurationError


class _Text(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Text


class _Reply(msgspec.Struct):
    choices: list[_Choice]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one exercise. A failed request counts as asked and not as right."""

    exercise: Exercise
    given: str
    failure: Failure | None = None

    @property
    def right(self) -> bool:
        """Whether it passed the check."""
        return self.failure is None and self.exercise.is_right(self.given)


@dataclass(frozen=True, slots=True)
class Score:
    """Of some answers."""

    asked: int
    right: int
    failed: int

    @property
    def accuracy(self) -> float:
        """Share of right ones among all asked."""
        return self.right / self.asked

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> Score:
        """Count them."""
        return cls(len(answers), sum(a.right for a in answers), sum(a.failure is not None for a in answers))


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """How exercises are asked; see `orcinus eval --help`."""

    base_url: str
    model: str | None
    api_key: str | None
    concurrency: int
    max_tokens: int
    timeout: float

    def __post_init__(self) -> None:
        for name in ("concurrency", "max_tokens", "timeout"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be above 0")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Answers in the order of the exercises."""

    model: str
    answers: list[Answer]

    def by_task(self) -> dict[str, list[Answer]]:
        """In the order in which the tasks first appear."""
        tasks: dict[str, list[Answer]] = {}
        for answer in self.answers:
            tasks.setdefault(answer.exercise.task, []).append(answer)
        return tasks


async def evaluate(exercises: Sequence[Exercise], config: EvalConfig) -> Evaluation:
    """Ask them all, `config.concurrency` at a time, greedily.

    Raises:
        ConfigurationError: nobody answers there, or every single request failed.
    """
    gate = asyncio.Semaphore(config.concurrency)
    with tqdm(total=len(exercises), unit="answer", disable=None, dynamic_ncols=True) as bar:
        async with connections(config.api_key, config.timeout) as session:
            model = config.model or await served_model(session, config.base_url)
            target = Target(base_url=config.base_url, model=model, kind="chat")

            async def one(exercise: Exercise) -> Answer:
                async with gate:
                    answer = await _ask(session, target, exercise, config.max_tokens)
                bar.update()
                return answer

            answers = await asyncio.gather(*map(one, exercises))
    if all(answer.failure is not None for answer in answers):
        raise ConfigurationError(f"{target.url} answered none of {len(answers)} requests. {answers[0].failure}")
    return Evaluation(model, answers)


async def _ask(session: aiohttp.ClientSession, target: Target, exercise: Exercise, max_tokens: int) -> Answer:
    body = target.body(Ask(exercise.messages, max_tokens), stream=False)
    try:
        async with session.post(target.url, data=body) as response:
            content = await response.read()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return Answer(exercise, "", failure_of(error))
    if response.status != 200:
        return Answer(exercise, "", status_failure(response.status, content))
    try:
        message = msgspec.json.decode(content, type=_Reply).choices[0].message
    except (msgspec.DecodeError, IndexError) as error:
        return Answer(exercise, "", Failure(FailureKind.FOREIGN, str(error)))
    return Answer(exercise, message.content or "")


def eval_table(evaluation: Evaluation, num_mistakes: int) -> RenderableType:
    """Accuracies, what failed, and some wrong answers of each task."""
    table = Table(title=evaluation.model, title_justify="left")
    for number, heading in enumerate(("task", "right", "asked", "failed", "accuracy")):
        table.add_column(heading, justify="right" if number else "left")
    tasks = evaluation.by_task()
    for name, answers in tasks.items():
        table.add_row(name, *_score_cells(Score.of(answers)), end_section=name == list(tasks)[-1])
    table.add_row("overall", *_score_cells(Score.of(evaluation.answers)), style="bold")
    failures = {answer.failure.label: answer.failure for answer in evaluation.answers if answer.failure is not None}
    shown = [Text(f"! {failure}", style="yellow") for failure in failures.values()]
    mistakes = [line for answers in tasks.values() for line in _mistakes(answers, num_mistakes)]
    return Group(table, *shown, *mistakes)


def _score_cells(score: Score) -> tuple[str, ...]:
    return f"{score.right:,}", f"{score.asked:,}", f"{score.failed:,}", f"{score.accuracy:.1%}"


def _mistakes(answers: Sequence[Answer], count: int) -> list[Text]:
    wrong = [answer for answer in answers if not answer.right and answer.failure is None]
    return [
        Text(
            f"{answer.exercise.task}: {answer.exercise.messages[-1]['content']!r}\n"
            f"    gave {answer.given!r}\n    right is {answer.exercise.answer!r} ({answer.exercise.check})"
        )
        for answer in wrong[:count]
    ]


def eval_json(evaluation: Evaluation) -> dict[str, object]:
    """Accuracies by task and overall."""

    def fields(answers: Sequence[Answer]) -> dict[str, float]:
        score = Score.of(answers)
        return {"asked": score.asked, "right": score.right, "failed": score.failed, "accuracy": score.accuracy}

    tasks = {name: fields(answers) for name, answers in evaluation.by_task().items()}
    return {"model": evaluation.model, "tasks": tasks, "overall": fields(evaluation.answers)}


def write_answers(evaluation: Evaluation, file: Path) -> None:
    """A JSON line an exercise, in their order, so that two engines' files can be compared.

    Raises:
        ConfigurationError: the file can't be written.
    """
    lines = (
        {
            "task": answer.exercise.task,
            "messages": answer.exercise.messages,
            "answer": answer.exercise.answer,
            "given": answer.given,
            "right": answer.right,
            "error": None if answer.failure is None else str(answer.failure),
        }
        for answer in evaluation.answers
    )
    try:
        file.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    except OSError as error:
        raise ConfigurationError(f"--answers {file} can't be written: {error}") from error
