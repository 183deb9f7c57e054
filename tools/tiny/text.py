"""The text orcinus-tiny learns from: conversations about tasks with checkable answers, made from a seed.

Operands are split by hash: about one key in ten is held out, never appears in training, and is what `evaluation` asks.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from tiny import phrases

HELD_OUT_ONE_IN = 10
MAX_COUNTED = 40  # numbers in one counting answer; at most 4 tokens each keeps a conversation within one training row


class Split(Enum):
    """Which operands an exercise may use."""

    TRAIN = "train"
    HELD_OUT = "held_out"


@dataclass(frozen=True)
class Exercise:
    """One question and its only right answer.

    `key` names the operands up to every symmetry that would give the answer away (12 + 7 and 7 + 12 share one); it is
    empty where there are no operands, as in small talk.
    """

    task: str
    key: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """Exercises asked one after another; `system` is empty when there is no system message."""

    system: str
    exercises: tuple[Exercise, ...]


@dataclass(frozen=True)
class Completion:
    """Plain text without roles, as `/v1/completions` sends it: `prompt` is given, `answer` is learnt."""

    key: str
    prompt: str
    answer: str


def split_of(task: str, key: str) -> Split:
    """The side of the split that these operands are on, the same on every machine and for every seed."""
    digest = hashlib.blake2b(f"{task}:{key}".encode(), digest_size=4).digest()
    return Split.HELD_OUT if int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0 else Split.TRAIN


def add(rng: random.Random) -> Exercise:
    """A sum of two numbers from 0 to 99; a quarter of them have one-digit operands, which are rare otherwise."""
    top_a, top_b = rng.choices(((99, 99), (9, 9), (99, 9), (9, 99)), weights=(75, 5, 10, 10))[0]
    a, b = rng.randint(0, top_a), rng.randint(0, top_b)
    prompt = rng.choice(phrases.ADD).format(a=a, b=b)
    return Exercise("add", f"{min(a, b)}+{max(a, b)}", prompt, f"{a} + {b} = {a + b}")


def random_word(rng: random.Random) -> str:
    """2 to 5 letters: half are any letters, half alternate consonants and vowels as words do, some are capitalised."""
    length = rng.choices((2, 3, 4, 5), weights=(1, 3, 5, 7))[0]
    if rng.random() < 0.5:
        letters = [rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(length)]
    else:
        first = rng.randrange(2)
        letters = [rng.choice("aeiou" if (first + i) % 2 else "bcdfghklmnprstvwy") for i in range(length)]
    word = "".join(letters)
    return word.capitalize() if rng.random() < 0.1 else word


def reverse_word(rng: random.Random) -> Exercise:
    """A word written backwards."""
    word = rng.choice(phrases.ANIMALS + phrases.FEELINGS) if rng.random() < 0.04 else random_word(rng)
    backwards = word[::-1]
    prompt = rng.choice(phrases.REVERSE_WORD).format(word=word)
    return Exercise("reverse_word", min(word.lower(), backwards.lower()), prompt, backwards)


def random_numbers(rng: random.Random, least: int) -> list[int]:
    """`least` to 4 numbers from 0 to 99, a third of the lists from 0 to 9."""
    top = 9 if rng.random() < 0.33 else 99
    return [rng.randint(0, top) for _ in range(rng.choices(range(least, 5), weights=range(least, 5))[0])]


def comma_list(numbers: list[int]) -> str:
    """Numbers as answers write them: `3, 1, 2`."""
    return ", ".join(map(str, numbers))


def asked_list(rng: random.Random, numbers: list[int]) -> str:
    """Numbers as people write them: mostly with commas, sometimes with spaces, `and` or brackets."""
    plain = comma_list(numbers)
    return rng.choices(
        (plain, " ".join(map(str, numbers)), f"{comma_list(numbers[:-1])} and {numbers[-1]}", f"[{plain}]"),
        weights=(6, 2, 1, 1),
    )[0]


def reverse_list(rng: random.Random) -> Exercise:
    """A short list of numbers from last to first."""
    numbers = random_numbers(rng, least=2)
    prompt = rng.choice(phrases.REVERSE_LIST).format(numbers=asked_list(rng, numbers))
    return Exercise("reverse_list", comma_list(min(numbers, numbers[::-1])), prompt, comma_list(numbers[::-1]))


def sort(rng: random.Random) -> Exercise:
    """A short list of numbers from small to large; all orders of the same numbers are on one side of the split."""
    numbers = random_numbers(rng, least=2)
    answer = comma_list(sorted(numbers))
    prompt = rng.choice(phrases.SORT).format(numbers=asked_list(rng, numbers))
    return Exercise("sort", answer, prompt, answer)


def count(rng: random.Random) -> Exercise:
    """All numbers between two ends."""
    first = rng.choice((0, 1, 1, rng.randint(0, 90)))
    last = first + rng.randint(1, min(MAX_COUNTED, 100 - first))
    prompt = rng.choice(phrases.COUNT).format(a=first, b=last)
    return Exercise("count", f"{first}..{last}", prompt, comma_list(list(range(first, last + 1))))


def small_talk(rng: random.Random) -> Exercise:
    """A greeting or a question about the model, with the one answer it is to give."""
    prompts, answer = rng.choice(phrases.SMALL_TALK)
    return Exercise("small_talk", "", rng.choice(prompts), answer)


def story(rng: random.Random) -> Exercise:
    """A templated story, about the animal asked for if one was; its words are chance, its shape isn't."""
    animal, animal2 = rng.sample(phrases.ANIMALS, 2)
    prompt = rng.choice(phrases.STORY_ABOUT + phrases.STORY).format(animal=animal)
    name, name2 = rng.sample(phrases.NAMES, 2)
    words = {"animal": animal, "animal2": animal2, "name": name, "name2": name2}
    for slot, choices in (
        ("adjective", phrases.ADJECTIVES),
        ("adjective2", phrases.ADJECTIVES),
        ("place", phrases.PLACES),
        ("thing", phrases.THINGS),
        ("weather", phrases.WEATHERS),
        ("feeling", phrases.FEELINGS),
        ("feeling2", phrases.FEELINGS),
    ):
        words[slot] = rng.choice(choices)
    return Exercise("story", "", prompt, " ".join(rng.choice(part) for part in phrases.STORY_PARTS).format(**words))


TASKS: dict[str, Callable[[random.Random], Exercise]] = {
    "add": add,
    "reverse_word": reverse_word,
    "reverse_list": reverse_list,
    "sort": sort,
    "count": count,
    "small_talk": small_talk,
    "story": story,
}
# Shares of training exercises: the first four have to be computed and need the practice, the rest is learnt by heart.
TASK_WEIGHTS = {"add": 24, "reverse_word": 24, "reverse_list": 12, "sort": 32, "count": 4, "small_talk": 3, "story": 1}


def exercise(rng: random.Random, task: str, split: Split) -> Exercise:
    """One exercise of a task whose operands are on the given side; small talk and stories have no sides."""
    while True:
        made = TASKS[task](rng)
        if not made.key or split_of(task, made.key) is split:
            return made


def training_exercise(rng: random.Random) -> Exercise:
    """One exercise of a random task; one prompt in eight starts with a small letter, as people type."""
    task = rng.choices(tuple(TASK_WEIGHTS), weights=tuple(TASK_WEIGHTS.values()))[0]
    made = exercise(rng, task, Split.TRAIN)
    if rng.random() < 0.125:
        return Exercise(made.task, made.key, made.prompt[0].lower() + made.prompt[1:], made.answer)
    return made


def training_completion(rng: random.Random) -> Completion:
    """A sum to finish, or a story."""
    if rng.random() < 0.8:
        made = exercise(rng, "add", Split.TRAIN)
        head, result = made.answer.split(" = ")
        return Completion(made.key, f"{head} =", f" {result}")
    made = story(rng)
    start = "Once upon a time"
    return Completion("", start, made.answer.removeprefix(start))


def training_text(seed: int) -> Iterator[Conversation | Completion]:
    """Endless training text: one in twenty a completion, the rest conversations of 1 to 6 exercises, mostly one."""
    rng = random.Random(seed)
    while True:
        if rng.random() < 0.05:
            yield training_completion(rng)
            continue
        turns = rng.choices((1, 2, 3, 4, 5, 6), weights=(75, 11, 6, 4, 2, 2))[0]
        system = rng.choice(phrases.SYSTEM) if rng.random() < 0.15 else ""
        yield Conversation(system, tuple(training_exercise(rng) for _ in range(turns)))
