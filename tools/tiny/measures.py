"""Days of the week, dates of a common year, and metric units.

Answers write their steps down: the weeks in a number of days, the day that overflows its month.
"""

import random
from decimal import Decimal

from tiny import phrases
from tiny.exercise import Exercise
from tiny.words import MONTHS, WEEKDAYS

MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
MOST_WEEKDAY_STEPS = 60
MOST_DATE_STEPS = 28  # a step never jumps over a whole month
# Larger unit, smaller unit, zeros between them.
UNITS = (
    ("km", "m", 3),
    ("m", "cm", 2),
    ("cm", "mm", 1),
    ("m", "mm", 3),
    ("kg", "g", 3),
    ("g", "mg", 3),
    ("l", "ml", 3),
    ("t", "kg", 3),
    ("kilometres", "metres", 3),
    ("metres", "centimetres", 2),
    ("kilograms", "grams", 3),
    ("litres", "millilitres", 3),
)


def weekday(rng: random.Random) -> Exercise:
    """The day of the week some days before or after another."""
    start, steps, after = rng.randrange(7), rng.randint(1, MOST_WEEKDAY_STEPS), rng.random() < 0.5
    side = "after" if after else "before"
    passed = [WEEKDAYS[(start + (step if after else -step)) % 7] for step in range(steps % 7 + 1)]
    prompt = rng.choice(phrases.WEEKDAY).format(n=steps, side=side, day=WEEKDAYS[start])
    answer = f"{steps} days = {steps // 7} weeks + {steps % 7} days, {', '.join(passed)}: {passed[-1]}"
    return Exercise("weekday", f"{WEEKDAYS[start]} {side} {steps}", prompt, answer)


def date(rng: random.Random) -> Exercise:
    """A date some days before or after another, or the days between two dates of one month."""
    kind = rng.randrange(3)
    return (_date_after, _date_before, _days_between)[kind](rng)


def _random_date(rng: random.Random) -> tuple[int, int]:
    month = rng.randrange(12)
    return rng.randint(1, MONTH_DAYS[month]), month


def _date_after(rng: random.Random) -> Exercise:
    day, month = _random_date(rng)
    steps = rng.randint(1, MOST_DATE_STEPS)
    total, length = day + steps, MONTH_DAYS[month]
    work = f"{day} + {steps} = {total}"
    answer = f"{work}: {total} {MONTHS[month]}"
    if total > length:
        answer = f"{work}, {total} - {length} = {total - length}: {total - length} {MONTHS[(month + 1) % 12]}"
    return _date_exercise(rng, day, month, steps, "after", answer)


def _date_before(rng: random.Random) -> Exercise:
    day, month = _random_date(rng)
    steps = rng.randint(1, MOST_DATE_STEPS)
    if steps < day:
        answer = f"{day} - {steps} = {day - steps}: {day - steps} {MONTHS[month]}"
    else:
        length = MONTH_DAYS[month - 1]
        total = day + length
        answer = f"{day} + {length} = {total}, {total} - {steps} = {total - steps}: {total - steps} {MONTHS[month - 1]}"
    return _date_exercise(rng, day, month, steps, "before", answer)


def _date_exercise(rng: random.Random, day: int, month: int, steps: int, side: str, answer: str) -> Exercise:
    prompt = rng.choice(phrases.DATE).format(n=steps, side=side, day=day, month=MONTHS[month])
    return Exercise("date", f"{day} {month} {side} {steps}", prompt, answer)


def _days_between(rng: random.Random) -> Exercise:
    month = rng.randrange(12)
    first, last = sorted(rng.sample(range(1, MONTH_DAYS[month] + 1), 2))
    prompt = rng.choice(phrases.DAYS_BETWEEN).format(day=first, last=last, month=MONTHS[month])
    return Exercise("date", f"{month} {first}..{last}", prompt, f"{last} - {first} = {last - first} days")


def units(rng: random.Random) -> Exercise:
    """A length, weight or volume in a larger or a smaller metric unit."""
    large, small, zeros = rng.choice(UNITS)
    digits = rng.randint(1, rng.choice((9, 99, 999)))
    amount = Decimal(digits).scaleb(-rng.choice((0, 0, min(zeros, 1))))
    values = [(amount, large), (amount.scaleb(zeros), small)]
    if rng.random() < 0.5:
        values.reverse()
    (value, unit), (result, target) = values
    prompt = rng.choice(phrases.CONVERT).format(value=_plain(value), unit=unit, target=target)
    answer = f"{_plain(value)} {unit} = {_plain(result)} {target}"
    return Exercise("units", f"{_plain(amount)} {large} {small}", prompt, answer)


def _plain(value: Decimal) -> str:
    """Without an exponent and without zeros behind the point."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
