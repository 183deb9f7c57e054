"""The text orcinus-tiny learns from: conversations about tasks with checkable answers, made from a seed.

Operands are split by hash: about one key in ten is held out, never appears in training, and is what `evaluation` asks.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tiny import phrases
from tiny.arithmetic import add, multiply, subtract
from tiny.calls import TOOLS, call, offered_tools, tool
from tiny.exercise import Exercise, Maker, Split, drawn
from tiny.fields import extract
from tiny.measures import date, units, weekday
from tiny.sequences import count, letters, reverse_list, reverse_word, sort
from tiny.stories import story


def small_talk(rng: random.Random) -> Exercise:
    """A greeting or a question about the model, with the one answer it is to give."""
    prompts, answer = rng.choice(phrases.SMALL_TALK)
    return Exercise("small_talk", "", rng.choice(prompts), answer)


TASKS: dict[str, Maker] = {
    "add": add,
    "subtract": subtract,
    "multiply": multiply,
    "sort": sort,
    "reverse_list": reverse_list,
    "reverse_word": reverse_word,
    "letters": letters,
    "count": count,
    "weekday": weekday,
    "date": date,
    "units": units,
    "extract": extract,
    "tool": tool,
    "story": story,
    "small_talk": small_talk,
}
# Shares of training exercises, by how much practice each needs; tool calls and stories are long. What was learnt early
# makes room for what wasn't: copying words into JSON comes late.
EARLY_WEIGHTS = {
    "add": 18,
    "subtract": 18,
    "multiply": 7,
    "sort": 14,
    "reverse_list": 5,
    "reverse_word": 11,
    "letters": 6,
    "count": 4,
    "weekday": 5,
    "date": 8,
    "units": 6,
    "extract": 6,
    "tool": 4,
    "story": 1,
    "small_talk": 2,
}
LATE_WEIGHTS = EARLY_WEIGHTS | {
    "add": 12,
    "multiply": 6,
    "sort": 11,
    "reverse_word": 9,
    "letters": 7,
    "count": 7,
    "weekday": 7,
    "date": 7,
    "extract": 16,
    "tool": 8,
}
EARLY_DOCUMENTS = 230_000  # a little more than half of what an hour gets through
PLAIN_TASKS = ("add", "subtract", "multiply", "units", "story")  # answers that make sense without their question


@dataclass(frozen=True)
class Conversation:
    """Exercises asked one after another; `system` is empty when there is no system message."""

    system: str
    tools: tuple[str, ...]
    exercises: tuple[Exercise, ...]


@dataclass(frozen=True)
class Plain:
    """Text without roles, as `/v1/completions` sends it; all of it is learnt."""

    source: Exercise

    @property
    def text(self) -> str:
        """What is written: the answer of the exercise."""
        return self.source.answer


def exercise(rng: random.Random, task: str, split: Split) -> Exercise:
    """One exercise of a task whose operands are on the given side."""
    return drawn(rng, TASKS[task], split)


def _as_typed(rng: random.Random, made: Exercise) -> Exercise:
    """One prompt in eight starts with a small letter, as people type."""
    if rng.random() >= 0.125:
        return made
    return replace(made, prompt=made.prompt[0].lower() + made.prompt[1:])


def _without_tools(rng: random.Random, weights: dict[str, int]) -> Conversation:
    """1 to 6 exercises, mostly one."""
    turns = rng.choices((1, 2, 3, 4, 5, 6), weights=(78, 10, 6, 3, 2, 1))[0]
    system = rng.choice(phrases.SYSTEM) if rng.random() < 0.12 else ""
    tasks = [task for task in weights if task != "tool"]
    picked = rng.choices(tasks, weights=[weights[task] for task in tasks], k=turns)
    return Conversation(system, (), tuple(_as_typed(rng, exercise(rng, task, Split.TRAIN)) for task in picked))


def _with_tools(rng: random.Random) -> Conversation:
    """1 to 3 requests for the same tools, now and then a question that needs none of them."""
    offered = offered_tools(rng)
    requests = []
    for _ in range(rng.choices((1, 2, 3), weights=(50, 30, 20))[0]):
        if rng.random() < 0.15:
            requests.append(exercise(rng, rng.choice(("add", "small_talk", "reverse_word")), Split.TRAIN))
        else:
            requests.append(drawn(rng, lambda source: call(source, offered), Split.TRAIN))
    system = rng.choice(phrases.SYSTEM) if rng.random() < 0.3 else ""
    described = tuple(each.described() for each in offered)
    return Conversation(system, described, tuple(_as_typed(rng, each) for each in requests))


def training_text(seed: int) -> Iterator[Conversation | Plain]:
    """Endless training text: one document in twenty without roles, the rest conversations."""
    rng = random.Random(seed)
    for index in itertools.count():
        weights = EARLY_WEIGHTS if index < EARLY_DOCUMENTS else LATE_WEIGHTS
        tool_share = weights["tool"] / sum(weights.values())
        draw = rng.random()
        if draw < 0.05:
            task = rng.choices(PLAIN_TASKS, weights=(6, 6, 4, 2, 1))[0]
            yield Plain(exercise(rng, task, Split.TRAIN))
        elif draw < 0.05 + tool_share:
            yield _with_tools(rng)
        else:
            yield _without_tools(rng, weights)


def held_out_text(seed: int, characters: int) -> list[str]:
    """Plain text with held-out operands for perplexity, one document an entry, at least `characters` in all."""
    rng = random.Random(seed)
    texts: list[str] = []
    while sum(map(len, texts)) < characters:
        texts += [exercise(rng, task, Split.HELD_OUT).answer for task in PLAIN_TASKS]
    return texts


def tool_descriptions() -> tuple[str, ...]:
    """Every function that the model has seen, as its system messages show it."""
    return tuple(each.described() for each in TOOLS)
