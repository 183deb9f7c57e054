"""Admission in the front end: monotone, bounded answers, and waits that come true."""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_harness import make_request
from hypothesis import given, settings
from hypothesis import strategies as st

from orcinus.core.credit import LEAST_RETRY, MOST_RETRY, Cost, Credit

CAPACITY = Cost(1000, 8, 500)


def cost(tokens: int, sequences: int = 1, prompt: int = 1) -> Cost:
    return Cost(tokens, sequences, prompt, 1)


def test_a_request_costs_its_worst_case() -> None:
    assert Cost.of(make_request("a", 10, max_tokens=30, n=3)) == Cost(120, 3, 10, 1)


def test_what_fits_is_let_in_at_once_and_an_idle_engine_takes_anything() -> None:
    credit = Credit(CAPACITY, max_wait=0.0)
    assert credit.retry_after(0.0) is None
    for _ in range(8):
        assert credit.retry_after(0.0) is None
        credit.take(cost(100), 0.0)
    assert credit.retry_after(0.0) is not None, "no sequence is left"
    credit.give_back(cost(100), 1.0)
    assert credit.retry_after(1.0) is None
    credit.take(cost(300), 1.0)
    credit.give_back(cost(100), 2.0)
    credit.take(cost(100), 2.0)
    assert credit.retry_after(2.0) is not None, "no tokens are left"


def test_prompts_that_are_still_to_be_read_make_newcomers_wait() -> None:
    credit = Credit(Cost(10**6, 100, 500), max_wait=1.0)
    for number in range(20):
        credit.take(cost(300, prompt=300), 0.0)
        # An iteration of 500 tokens is guessed to take a quarter of a second.
        assert (credit.retry_after(0.0) is None) == (300 * (number + 1) <= 2000)
    for _ in range(15):
        credit.begin(cost(300, prompt=300), 0.0005)
    assert credit.retry_after(0.0005) is None, "what has begun makes nobody wait"


def test_answers_that_need_less_than_their_worst_case_keep_nobody_out() -> None:
    """An engine that gives KV as it is needed has begun them all, although their worst cases don't fit."""
    credit = Credit(CAPACITY, max_wait=1.0)
    for _ in range(5):
        credit.take(cost(1000), 0.0)
        credit.begin(cost(1000), 0.1)
    assert credit.retry_after(0.2) is None


def test_the_wait_is_what_a_steady_pace_makes_it() -> None:
    """One of 8 that run ends each half second, and another begins: a ninth waits for one to end."""
    credit = Credit(replace(CAPACITY, tokens=10**6), max_wait=2.0)
    for _ in range(8):
        credit.take(cost(100), 0.0)
        credit.begin(cost(100), 0.0)
    now = 0.0
    for _ in range(200):
        now += 0.5
        credit.give_back(cost(100), now)
        credit.take(cost(100), now)
        credit.begin(cost(100), now)
    assert abs(credit.expected_wait(now) - 0.5) < 0.1
    assert credit.retry_after(now) is None
    for _ in range(8):
        credit.take(cost(100), now)
    assert abs(credit.expected_wait(now) - 4.5) < 0.9
    first, second = credit.retry_after(now), credit.retry_after(now)
    assert first == pytest.approx(4.5 - 1.0, abs=0.9), "when half of what may wait does"
    assert second == pytest.approx(4.0, abs=0.9), "the next one is for another place"
    assert second > first


def test_who_does_not_come_back_keeps_no_place() -> None:
    credit = Credit(CAPACITY, max_wait=0.0)
    for _ in range(8):
        credit.take(cost(100), 0.0)
    told = [credit.retry_after(0.0) for _ in range(100)]
    assert told[-1] == MOST_RETRY
    for _ in range(8):
        credit.give_back(cost(100), 1.0, has_begun=False)
    for _ in range(8):
        assert credit.retry_after(2.0) is None
        credit.take(cost(100), 2.0)
    again = credit.retry_after(2.0)
    assert again is not None
    assert again < MOST_RETRY / 10


def test_idle_time_does_not_slow_the_pace() -> None:
    credit = Credit(CAPACITY, max_wait=0.0)
    for _ in range(8):
        credit.take(cost(100), 0.0)
    busy = credit.expected_wait(0.0)
    for _ in range(8):
        credit.begin(cost(100), 0.0)
        credit.give_back(cost(100), 0.0)
    for _ in range(8):
        credit.take(cost(100), 10_000.0)
    assert credit.expected_wait(10_000.0) <= busy


def test_a_larger_engine_lets_more_in() -> None:
    credit = Credit(CAPACITY, max_wait=0.0)
    credit.take(cost(1000), 0.0)
    assert credit.retry_after(0.0) is not None
    credit.resize(replace(CAPACITY, tokens=2000))
    assert credit.retry_after(0.0) is None


def test_after_a_crash_newcomers_wait_behind_all_that_is_resumed() -> None:
    credit = Credit(Cost(10**6, 100, 500), max_wait=1.0)
    for _ in range(40):
        credit.take(cost(300, prompt=300), 0.0)
        credit.begin(cost(300, prompt=300), 0.0)
    assert credit.retry_after(0.0) is None
    credit.begin_anew(0.0)
    assert credit.retry_after(0.0) is not None


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(1, 400), st.integers(1, 3), st.integers(1, 300), st.floats(0, 5)), max_size=30),
    st.integers(0, 30),
    st.floats(0, 20),
)
def test_with_less_load_nobody_is_refused_who_was_let_in_with_more(
    events: list[tuple[int, int, int, float]], without: int, max_wait: float
) -> None:
    """Two histories that differ in one request that hasn't ended, looked at in one instant."""

    def answer(*, is_full: bool) -> float | None:
        credit, now = Credit(CAPACITY, max_wait), 0.0
        for number, (tokens, sequences, prompt, _) in enumerate(events):
            if is_full or number != without:
                credit.take(Cost(tokens, sequences, prompt, 1), now)
        return credit.retry_after(now)

    less, more = answer(is_full=False), answer(is_full=True)
    assert less is None or (more is not None and less <= more)
    for one in (less, more):
        assert one is None or LEAST_RETRY <= one <= MOST_RETRY
