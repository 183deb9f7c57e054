"""Sentences whose fields are to be given as JSON."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from tiny import phrases
from tiny.exercise import Check, Exercise
from tiny.words import CITIES, COLOURS, FOODS, ITEMS, JOBS, MONTHS, NAMES, WEEKDAYS

Value = str | int


@dataclass(frozen=True)
class Scene:
    """Fields, how each is drawn, and the sentences that mention all of them."""

    values: dict[str, Callable[[random.Random], Value]]
    sentences: tuple[str, ...]


def _one_of(choices: tuple[str, ...]) -> Callable[[random.Random], Value]:
    return lambda rng: rng.choice(choices)


def _number(low: int, high: int) -> Callable[[random.Random], Value]:
    return lambda rng: rng.randint(low, high)


SCENES = (
    Scene(
        {"name": _one_of(NAMES), "age": _number(1, 99), "city": _one_of(CITIES)},
        (
            "{name} is {age} years old and lives in {city}.",
            "My friend {name} from {city} is {age} years old.",
            "{name} lives in {city} and is {age} years old.",
            "At the age of {age}, {name} moved to {city}.",
        ),
    ),
    Scene(
        {"name": _one_of(NAMES), "job": _one_of(JOBS), "city": _one_of(CITIES)},
        (
            "{name} works as a {job} in {city}.",
            "{name} from {city} is a {job}.",
            "In {city} there is a {job} named {name}.",
        ),
    ),
    Scene(
        {"name": _one_of(NAMES), "item": _one_of(ITEMS), "colour": _one_of(COLOURS), "price": _number(1, 999)},
        (
            "{name} bought a {colour} {item} for {price} euros.",
            "{name} paid {price} euros for a {colour} {item}.",
            "For {price} euros {name} sold a {colour} {item}.",
        ),
    ),
    Scene(
        {"item": _one_of(ITEMS), "quantity": _number(2, 99), "price": _number(1, 999)},
        (
            "Please send me {quantity} of the {item} at {price} euros each.",
            "We need {quantity} pieces of the {item}, which costs {price} euros.",
        ),
    ),
    Scene(
        {"name": _one_of(NAMES), "day": _one_of(WEEKDAYS), "hour": _number(1, 12), "city": _one_of(CITIES)},
        (
            "{name} has a meeting in {city} on {day} at {hour}.",
            "On {day} at {hour} {name} arrives in {city}.",
            "Meet {name} on {day} at {hour} in {city}.",
        ),
    ),
    Scene(
        {"name": _one_of(NAMES), "day": _number(1, 28), "month": _one_of(MONTHS), "food": _one_of(FOODS)},
        (
            "{name} ordered {food} for the party on {day} {month}.",
            "On {day} {month} {name} will bring {food}.",
        ),
    ),
    Scene(
        {"from": _one_of(CITIES), "to": _one_of(CITIES), "price": _number(10, 999)},
        (
            "A ticket from {from} to {to} costs {price} euros.",
            "The train from {from} goes to {to} for {price} euros.",
        ),
    ),
)


def joined(parts: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]


def extract(rng: random.Random) -> Exercise:
    """Two or more fields of a sentence, in the order asked."""
    scene = rng.choice(SCENES)
    values = {field: draw(rng) for field, draw in scene.values.items()}
    asked = rng.sample(list(values), rng.randint(2, len(values)))
    sentence = rng.choice(scene.sentences).format(**values)
    prompt = rng.choice(phrases.EXTRACT).format(fields=joined(asked), sentence=sentence)
    answer = json.dumps({field: values[field] for field in asked})
    key = " ".join(str(value) for value in values.values())
    return Exercise("extract", key, prompt, answer, check=Check.JSON)
