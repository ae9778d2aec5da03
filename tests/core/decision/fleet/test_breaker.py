"""Breakers and the budget of retries (C3, C5)."""

from __future__ import annotations

from router.core.decision.fleet.breaker import MOST_BREAKERS, MOST_OPEN_S, Breaker, Breakers
from router.core.decision.fleet.retries import RetryBudget


def test_it_opens_after_failures_in_a_row_and_lets_one_trial_through():
    """A success in between begins a new row."""
    one = Breaker(failures=3, open_s=30)
    assert [one.failed(0), one.failed(0)] == [False, False]
    one.succeeded(0)
    assert [one.failed(1), one.failed(1), one.failed(1)] == [False, False, True]
    assert (one.is_open(30.9), one.is_open(31)) == (True, False)
    one.begin(31)
    assert one.is_open(31)
    one.succeeded(32)
    assert not one.is_open(32)


def test_it_stays_open_longer_each_time_the_trial_fails():
    """Up to a maximum; a trial that never ends does not keep it open."""
    one, now_s, times = Breaker(failures=1, open_s=30), 0.0, []
    for _ in range(15):
        assert one.failed(now_s)
        times.append(one.open_until_s - now_s)
        now_s = one.open_until_s
        one.begin(now_s)
    assert times[:3] == [30, 60, 90]
    assert times[-1] == MOST_OPEN_S
    assert not one.is_open(now_s + 30)


def test_it_opens_if_more_than_half_of_ten_within_30_s_failed():
    """However they alternate."""
    one = Breaker(failures=99)
    results = [one.failed(number) if number % 3 else one.succeeded(number) for number in range(12)]
    assert True in results
    slow = Breaker(failures=99)
    assert not any(slow.failed(40 * number) for number in range(12))


def test_breakers_are_kept_only_for_what_fails():
    """Names of clients cannot fill the memory."""
    found = Breakers(failures=1)
    found.succeeded("a", "m", 0)
    assert not found
    for number in range(MOST_BREAKERS + 50):
        found.failed("a", f"m{number}", 0)
    assert found.open_for_s("a", "m0", 0) == 0
    assert found.open_for_s("a", f"m{MOST_BREAKERS}", 0) == 30
    assert found.open_for_s("a", "", 0) == 0


def test_retries_are_a_part_of_the_requests():
    """And three more."""
    budget = RetryBudget(0.2)
    assert [budget.take(0) for _ in range(4)] == [True, True, True, False]
    for _ in range(10):
        budget.began(0)
    assert [budget.take(0) for _ in range(3)] == [True, True, False]
    assert budget.take(11)
