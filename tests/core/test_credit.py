"""Admission in the front end: monotone, bounded answers, and a wait that comes true."""

from __future__ import annotations

from core_harness import make_request
from hypothesis import given, settings
from hypothesis import strategies as st

from orcinus.core.credit import LEAST_RETRY, MOST_RETRY, Cost, Credit

CAPACITY = Cost(1000, 8)


def test_a_request_costs_its_worst_case() -> None:
    assert Cost.of(make_request("a", 10, max_tokens=30, n=3)) == Cost(120, 3)


def test_what_fits_is_let_in_at_once_and_an_idle_engine_takes_anything() -> None:
    credit = Credit(CAPACITY, max_wait=0.0)
    assert credit.retry_after(Cost(5000, 20), 0.0) is None
    for _ in range(8):
        assert credit.retry_after(Cost(100, 1), 0.0) is None
        credit.take(Cost(100, 1), 0.0)
    assert credit.retry_after(Cost(100, 1), 0.0) is not None, "no sequence is left"
    credit.give_back(Cost(100, 1), 1.0)
    assert credit.retry_after(Cost(301, 1), 1.0) is not None, "no tokens are left"
    assert credit.retry_after(Cost(300, 1), 1.0) is None


def test_the_wait_is_what_a_steady_pace_makes_it() -> None:
    """One request of 100 tokens ends each half second, always 8 are live: a ninth waits for one to end."""
    credit = Credit(CAPACITY, max_wait=2.0)
    for _ in range(8):
        credit.take(Cost(100, 1), 0.0)
    now = 0.0
    for _ in range(200):
        now += 0.5
        credit.give_back(Cost(100, 1), now)
        credit.take(Cost(100, 1), now)
    assert abs(credit.expected_wait(Cost(100, 1), now) - 0.5) < 0.1
    assert credit.retry_after(Cost(100, 1), now) is None
    for _ in range(8):
        credit.take(Cost(100, 1), now)
    wait = credit.expected_wait(Cost(100, 1), now)
    assert abs(wait - 4.5) < 0.9
    assert credit.retry_after(Cost(100, 1), now) == wait - 2.0


def test_idle_time_does_not_slow_the_pace() -> None:
    credit = Credit(CAPACITY, max_wait=0.0)
    credit.take(Cost(900, 1), 0.0)
    credit.give_back(Cost(900, 1), 1.0)
    credit.take(Cost(900, 1), 10_000.0)
    assert credit.expected_wait(Cost(1000, 1), 10_000.0) < 1.1


def test_a_larger_engine_lets_more_in() -> None:
    credit = Credit(CAPACITY, max_wait=0.0)
    credit.take(Cost(1000, 1), 0.0)
    assert credit.retry_after(Cost(10, 1), 0.0) is not None
    credit.resize(Cost(2000, 8))
    assert credit.retry_after(Cost(10, 1), 0.0) is None


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(1, 400), st.integers(1, 3), st.floats(0, 5)), max_size=30),
    st.integers(1, 2000),
    st.floats(0, 20),
)
def test_with_less_load_nobody_is_refused_who_was_let_in_with_more(
    events: list[tuple[int, int, float]], tokens: int, max_wait: float
) -> None:
    credit, now, live = Credit(CAPACITY, max_wait), 0.0, []
    for size, sequences, passed in events:
        now += passed
        if live and size % 2:
            credit.give_back(live.pop(), now)
        else:
            live.append(Cost(size, sequences))
            credit.take(live[-1], now)
    small, large = (credit.retry_after(Cost(each, 1), now) for each in (tokens, tokens + 100))
    assert small is None or (large is not None and small <= large)
    for answer in (small, large):
        assert answer is None or LEAST_RETRY <= answer <= MOST_RETRY
