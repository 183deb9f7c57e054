"""The text orcinus-tiny learns from: its answers are right, and nothing held out is in it."""

import itertools
import json
import random
import re
from collections import Counter
from datetime import date, timedelta
from decimal import Decimal

import pytest
from tiny.calls import CALL_CLOSE, CALL_OPEN
from tiny.exercise import Exercise, Split, calculations, split_of
from tiny.measures import UNITS
from tiny.text import TASKS, Conversation, Plain, exercise, held_out_text, training_text
from tiny.words import MONTHS, WEEKDAYS

WITH_OPERANDS = tuple(task for task in TASKS if task != "small_talk")


def training_documents(count: int, seed: int = 0) -> list[Conversation | Plain]:
    return list(itertools.islice(training_text(seed), count))


def exercises_in(documents: list[Conversation | Plain]) -> list[Exercise]:
    return [each for doc in documents for each in (doc.exercises if isinstance(doc, Conversation) else (doc.source,))]


TRAINING = exercises_in(training_documents(20_000))


def training_exercises(task: str) -> list[Exercise]:
    return [each for each in TRAINING if each.task == task]


def held_out_exercises(task: str, count: int) -> list[Exercise]:
    rng = random.Random(5)
    return [exercise(rng, task, Split.HELD_OUT) for _ in range(count)]


def numbers_in(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", text)]


@pytest.mark.parametrize("task", WITH_OPERANDS)
def test_no_training_exercise_has_held_out_operands(task: str) -> None:
    keys = {each.key for each in training_exercises(task)}
    assert keys
    assert not any(split_of(task, key) is Split.HELD_OUT for key in keys)
    assert not keys & {each.key for each in held_out_exercises(task, 300)}


def test_nothing_held_out_is_worked_out_in_training_not_even_as_a_step() -> None:
    worked_out = [step for each in TRAINING for step in calculations(each.answer)]
    tasks = Counter(task for task, _ in worked_out)
    assert min(tasks["add"], tasks["subtract"], tasks["multiply"]) > 500
    assert not [step for step in worked_out if split_of(*step) is Split.HELD_OUT]


def test_a_sum_has_one_side_in_either_order() -> None:
    asked = {frozenset(numbers_in(each.answer)[:2]) for each in held_out_exercises("add", 500)}
    learnt = {frozenset(numbers_in(each.answer)[:2]) for each in training_exercises("add")}
    assert not asked & learnt


def test_a_word_has_one_side_in_either_direction() -> None:
    learnt = {each.answer.lower() for each in training_exercises("reverse_word")}
    asked = {each.answer.lower() for each in held_out_exercises("reverse_word", 1_000)}
    assert not asked & (learnt | {word[::-1] for word in learnt})


def test_a_list_to_sort_has_one_side_in_any_order() -> None:
    learnt = {tuple(sorted(numbers_in(each.prompt))) for each in training_exercises("sort")}
    asked = {tuple(sorted(numbers_in(each.prompt))) for each in held_out_exercises("sort", 1_000)}
    assert not asked & learnt


@pytest.mark.parametrize("task", ["add", "sort", "reverse_word", "date", "extract", "story"])
def test_about_one_exercise_in_ten_is_held_out(task: str) -> None:
    rng = random.Random(7)
    keys = {TASKS[task](rng).key for _ in range(3_000)}
    share = sum(split_of(task, key) is Split.HELD_OUT for key in keys) / len(keys)
    assert 0.08 < share < 0.12


def test_held_out_text_works_out_held_out_operands() -> None:
    texts = held_out_text(seed=2, characters=20_000)
    steps = [next(calculations(text)) for text in texts if text[0].isdigit() and next(calculations(text), None)]
    assert len(steps) > 30
    # The first calculation of a text is what it is about; a product's sum is a step.
    assert all(split_of(*step) is Split.HELD_OUT for step in steps)


@pytest.mark.parametrize("task", ["add", "subtract", "multiply"])
def test_arithmetic_is_right_in_every_step(task: str) -> None:
    for each in training_exercises(task):
        parts = [eval_sum(part) for part in each.answer.split(" = ")]
        assert len(set(parts)) == 1, each
        assert set(numbers_in(each.prompt)) == set(numbers_in(each.answer)[:2])


def eval_sum(text: str) -> int:
    match text.split():
        case [a]:
            return int(a)
        case [a, "+", b]:
            return int(a) + int(b)
        case [a, "-", b]:
            return int(a) - int(b)
        case [a, "*", b]:
            return int(a) * int(b)
    raise AssertionError(text)


def test_lists_are_sorted_reversed_and_counted_rightly() -> None:
    for each in TRAINING:
        numbers, given = numbers_in(each.answer), numbers_in(each.prompt)
        if each.task == "sort":
            assert numbers == sorted(given)
        elif each.task == "reverse_list":
            assert numbers == given[::-1]
        elif each.task == "count":
            assert numbers == list(range(given[0], given[1] + 1))


def test_words_are_reversed_and_counted_rightly() -> None:
    for each in training_exercises("reverse_word"):
        assert f'"{each.answer[::-1]}"' in each.prompt
    for each in training_exercises("letters"):
        *letter, word = re.findall(r'"([^"]*)"', each.prompt)
        if len(letter) == 1 and each.prompt.index(letter[0]) > each.prompt.index(word):
            letter, word = [word], letter[0]
        assert int(each.answer) == (word.count(letter[0]) if letter else len(word)), each


def test_days_of_the_week_are_right() -> None:
    monday = date(2024, 1, 1)
    for each in training_exercises("weekday"):
        days = numbers_in(each.prompt)[0] * (1 if " after " in each.prompt else -1)
        start = next(index for index, name in enumerate(WEEKDAYS) if name in each.prompt)
        weeks, rest = numbers_in(each.answer)[1:]
        passed = re.findall("|".join(WEEKDAYS), each.answer)
        assert 7 * weeks + rest == abs(days)
        assert passed[:-1] == [
            WEEKDAYS[(monday + timedelta(days=start + step * (1 if days > 0 else -1))).weekday()]
            for step in range(rest + 1)
        ]
        assert passed[-1] == WEEKDAYS[(monday + timedelta(days=start + days)).weekday()]


def date_in(text: str) -> date:
    """A day and a month of a common year."""
    day, month = re.findall(rf"(\d+) ({'|'.join(MONTHS)})", text)[-1]
    return date(2023, MONTHS.index(month) + 1, int(day))


def test_dates_are_right() -> None:
    for each in training_exercises("date"):
        for step in each.answer.removesuffix(" days").split(": ")[0].split(", "):
            sides = step.split(" = ")
            assert eval_sum(sides[0]) == eval_sum(sides[1])
        if "How many" in each.prompt or "how many" in each.prompt:
            first, last = numbers_in(each.prompt)
            assert numbers_in(each.answer)[-1] == last - first
            continue
        days = numbers_in(each.prompt)[0] * (1 if " after " in each.prompt else -1)
        reached = date_in(each.prompt) + timedelta(days=days)
        assert (date_in(each.answer).month, date_in(each.answer).day) == (reached.month, reached.day)


def test_units_are_right() -> None:
    zeros_between = {(large, small): zeros for large, small, zeros in UNITS}
    for each in training_exercises("units"):
        value, unit, _, result, target = each.answer.split()
        if (unit, target) in zeros_between:
            assert Decimal(value).scaleb(zeros_between[unit, target]) == Decimal(result)
        else:
            assert Decimal(result).scaleb(zeros_between[target, unit]) == Decimal(value)


def test_extracted_fields_stand_in_the_sentence_in_the_order_asked() -> None:
    for each in training_exercises("extract"):
        fields = json.loads(each.answer)
        # A prompt may begin with a small letter, and with a name.
        assert all(str(value).lower() in each.prompt.lower() for value in fields.values())
        assert ", ".join(list(fields)[:-1]) + " and " + list(fields)[-1] in each.prompt


def test_tool_calls_name_a_described_tool_and_give_what_it_requires() -> None:
    for each in training_exercises("tool"):
        call = json.loads(each.answer.removeprefix(CALL_OPEN).removesuffix(CALL_CLOSE))
        described = {tool["function"]["name"]: tool["function"] for tool in map(json.loads, each.tools)}
        assert list(call["arguments"]) == described[call["name"]]["parameters"]["required"]
        assert all(str(value) in each.prompt for value in call["arguments"].values())


def test_stories_have_the_shape_that_their_pattern_asks_for() -> None:
    for each in training_exercises("story"):
        assert re.fullmatch(each.pattern, each.answer, re.DOTALL)


def test_the_same_seed_makes_the_same_text_and_another_seed_other_text() -> None:
    assert training_documents(200) == training_documents(200)
    assert training_documents(200) != training_documents(200, seed=1)
