"""Sums, differences and products."""

import random

from tiny import phrases
from tiny.exercise import Exercise

TOP = 999


def _operand(rng: random.Random) -> int:
    """0 to 999, mostly of three digits; short numbers are rare among them, so they get a share of their own."""
    return rng.randint(0, rng.choices((TOP, 99, 9), weights=(70, 22, 8))[0])


def add(rng: random.Random) -> Exercise:
    """A sum of two numbers from 0 to 999."""
    a, b = _operand(rng), _operand(rng)
    prompt = rng.choice(phrases.ADD).format(a=a, b=b)
    return Exercise("add", f"{min(a, b)}+{max(a, b)}", prompt, f"{a} + {b} = {a + b}")


def subtract(rng: random.Random) -> Exercise:
    """A difference of two numbers from 0 to 999 that isn't negative."""
    b, a = sorted((_operand(rng), _operand(rng)))
    prompt = rng.choice(phrases.SUBTRACT).format(a=a, b=b)
    return Exercise("subtract", f"{a}-{b}", prompt, f"{a} - {b} = {a - b}")


def multiply(rng: random.Random) -> Exercise:
    """A product of a number below 100 and a digit, by way of the tens: 900 products are too few to learn by heart."""
    a, b = rng.randint(0, rng.choices((99, 9), weights=(90, 10))[0]), rng.randint(0, 9)
    # Two digits stay in their order: nothing in the question would tell which of them the answer puts first.
    swapped = rng.random() < 0.2 and a > 9
    prompt = rng.choice(phrases.MULTIPLY).format(a=b if swapped else a, b=a if swapped else b)
    tens = f"{a // 10 * 10 * b} + {a % 10 * b} = " if a > 9 else ""
    return Exercise("multiply", f"{max(a, b)}*{min(a, b)}", prompt, f"{a} * {b} = {tens}{a * b}")
