"""What an exercise is, and which side of the split its operands are on."""

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

HELD_OUT_ONE_IN = 10


class Split(Enum):
    """Which operands an exercise may use."""

    TRAIN = "train"
    HELD_OUT = "held_out"


class Check(Enum):
    """How an answer is compared: whole and equal, as parsed JSON, or against a pattern that must match all of it."""

    EXACT = "exact"
    JSON = "json"
    PATTERN = "pattern"


@dataclass(frozen=True)
class Exercise:
    """One question and its right answer.

    `key` names the operands up to every symmetry that would give the answer away (12 + 7 and 7 + 12 share one); it is
    empty where there are no operands, as in small talk. `tools` are descriptions that the system message must show.
    `pattern` is what a right answer matches where `answer` is only one of many. `result` is what the called tool gave
    back and what is then said.
    """

    task: str
    key: str
    prompt: str
    answer: str
    check: Check = Check.EXACT
    pattern: str = ""
    tools: tuple[str, ...] = ()
    result: tuple[str, str] | None = None


Maker = Callable[[random.Random], Exercise]


def split_of(task: str, key: str) -> Split:
    """The side of the split that these operands are on, the same on every machine and for every seed."""
    digest = hashlib.blake2b(f"{task}:{key}".encode(), digest_size=4).digest()
    return Split.HELD_OUT if int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0 else Split.TRAIN


def calculations(text: str) -> Iterator[tuple[str, str]]:
    """Task and key of each sum, difference and product that a text works out, also as a step of something else."""
    for a, sign, b in re.findall(r"(\d+) ([-+*]) (\d+) = ", text):
        low, high = sorted((int(a), int(b)))
        match sign:
            case "+":
                yield "add", f"{low}+{high}"
            case "-":
                yield "subtract", f"{a}-{b}"
            case "*":
                yield "multiply", f"{high}*{low}"


def on_side(made: Exercise, split: Split) -> bool:
    """Whether the exercise's operands are on this side; one without operands is on both.

    A training exercise works out nothing that is held out, not even as a step: 28 + 5 in a date, 240 + 42 in a product.
    """
    own = not made.key or split_of(made.task, made.key) is split
    if split is Split.HELD_OUT or not own:
        return own
    return all(split_of(task, key) is Split.TRAIN for task, key in calculations(made.answer))


def drawn(rng: random.Random, make: Maker, split: Split) -> Exercise:
    """The first exercise of this maker whose operands are on the given side."""
    while not on_side(made := make(rng), split):
        pass
    return made
