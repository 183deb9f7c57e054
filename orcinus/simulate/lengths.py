"""How long prompts and answers are: fixed, uniform or log-normal, written as `fixed:128`, `uniform:32:512`,
`lognormal:120:0.8:4096` (median, sigma, longest)."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Protocol

from orcinus.errors import ConfigurationError

_LONGEST = 1 << 20


class Lengths(Protocol):
    """The seam: numbers of tokens, at least 1."""

    @property
    def longest(self) -> int:
        """None is longer."""
        ...

    def draw(self, rng: random.Random) -> int:
        """One of them."""
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """All equal."""

    length: int

    @property
    def longest(self) -> int:
        """The one."""
        return self.length

    def draw(self, rng: random.Random) -> int:
        """The one."""
        return self.length


@dataclass(frozen=True, slots=True)
class Uniform:
    """Each length from `low` to `high` as likely."""

    low: int
    high: int

    @property
    def longest(self) -> int:
        """The upper end."""
        return self.high

    def draw(self, rng: random.Random) -> int:
        """Both ends included."""
        return rng.randint(self.low, self.high)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Many short ones, a few long ones; cut at `longest`."""

    median: float
    sigma: float
    longest: int = _LONGEST

    def draw(self, rng: random.Random) -> int:
        """Rounded, at least 1."""
        return max(1, min(self.longest, round(rng.lognormvariate(math.log(self.median), self.sigma))))


_SHAPES = {"fixed": (1, 1), "uniform": (2, 2), "lognormal": (2, 3)}


def parse_lengths(text: str, what: str) -> Lengths:
    """From its written form; a bare number is a fixed length.

    Args:
        what: the flag, for the message.

    Raises:
        ConfigurationError: another name, wrong numbers.
    """
    name, *parts = text.split(":") if not text.isdigit() else ("fixed", text)
    try:
        numbers = [float(part) for part in parts]
        least, most = _SHAPES[name]
        if not least <= len(numbers) <= most:
            raise ValueError
        lengths = _make(name, numbers)
    except (KeyError, ValueError) as error:
        raise ConfigurationError(
            f"{what} is {text!r}; write fixed:128, uniform:32:512 or lognormal:120:0.8:4096 (median, sigma, longest)"
        ) from error
    return lengths


def _make(name: str, numbers: list[float]) -> Lengths:
    if name == "fixed":
        lengths: Lengths = Fixed(_at_least_one(numbers[0]))
    elif name == "uniform":
        lengths = Uniform(_at_least_one(numbers[0]), _at_least_one(numbers[1]))
        if numbers[0] > numbers[1]:
            raise ValueError
    else:
        if numbers[0] <= 0 or numbers[1] < 0:
            raise ValueError
        lengths = LogNormal(numbers[0], numbers[1], *map(_at_least_one, numbers[2:]))
    return lengths


def _at_least_one(number: float) -> int:
    if number < 1 or number != int(number):
        raise ValueError
    return int(number)
