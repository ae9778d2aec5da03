"""At most so many requests in any 60 seconds."""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.teams.minute import MOST_TIMES, Minute


def granted(minute: Minute, times_s: Iterator[float]) -> list[float]:
    """The times at which a request was allowed."""
    found = []
    for now_s in times_s:
        if not minute.wait_s(now_s):
            minute.take(now_s)
            found.append(now_s)
    return found


def in_minutes(times_s: list[float], until_s: float) -> tuple[int, int]:
    """The fewest and the most in any 60 s, also in those that begin or end with one of them."""
    starts = [*times_s, *(time_s + 1e-6 for time_s in times_s)]
    counts = [bisect_left(times_s, at + 60) - bisect_left(times_s, at) for at in starts if at + 60 <= until_s]
    return min(counts), max(counts)


@pytest.mark.parametrize("every_s", [0.003, 0.1, 0.37, 0.59])
def test_100_a_minute_are_100_in_any_60_seconds_g9(every_s: float) -> None:
    """However fast they come: never one more, and at most one less."""
    times_s = granted(Minute(100), (number * every_s for number in range(int(600 / every_s))))
    fewest, most = in_minutes(times_s, 590)
    assert most == 100
    assert fewest >= 99


def test_100_a_minute_that_come_in_bursts_are_never_more_g9() -> None:
    """At random instants, with pauses."""
    rng, now_s, times = random.Random(1), 0.0, []
    while now_s < 1200:
        now_s += rng.choice([0.001, 0.001, 0.001, 5.0, 0.5])
        times.append(now_s)
    found = granted(Minute(100), iter(times))
    assert in_minutes(found, 1200)[1] == 100


@given(st.integers(1, 20), st.lists(st.integers(0, 30_000), max_size=80))
def test_no_order_of_requests_gets_more_than_the_limit(limit: int, pauses: list[int]) -> None:
    """And what is refused is refused because the limit was reached within the 60 s before."""
    minute, now_s, found = Minute(limit), 0.0, []
    for pause in pauses:
        now_s += pause / 1024
        recent = len(found) - bisect_right(found, now_s - 60)
        assert minute.left(now_s) == limit - recent
        if wait_s := minute.wait_s(now_s):
            assert recent == limit
            assert found[-limit] + 60 == pytest.approx(now_s + wait_s)
        else:
            assert recent < limit
            minute.take(now_s)
            found.append(now_s)
            assert minute.reset_s(now_s) == 60


def test_what_is_left_and_when_all_of_it_is_again() -> None:
    """As the headers of answers show it."""
    minute = Minute(3)
    assert (minute.left(5), minute.reset_s(5)) == (3, 0)
    minute.take(5)
    minute.take(10)
    assert (minute.left(12), minute.reset_s(12)) == (1, 58)
    minute.take(12)
    assert minute.wait_s(12) == 53
    assert (minute.left(65), minute.wait_s(65)) == (1, 0)


@pytest.mark.parametrize("limit", [MOST_TIMES + 1, 20_000, 100_000])
def test_a_large_limit_takes_bounded_memory_and_is_never_exceeded(limit: int) -> None:
    """A little less than the limit is allowed."""
    minute, count = Minute(limit), 0
    while not minute.wait_s(count / limit):
        assert minute.left(count / limit) > 0
        minute.take(count / limit)
        count += 1
    assert limit - minute.per_time < count <= limit
    assert minute.wait_s(59.9) > 0
    assert minute.wait_s(62) == 0


def test_of_a_large_limit_all_is_left_again_after_a_minute() -> None:
    """Not one more than that, though the newest time could be shared by another request."""
    minute = Minute(2 * MOST_TIMES)
    minute.take(0)
    assert minute.left(30) == 2 * MOST_TIMES - 1
    assert minute.left(100) == 2 * MOST_TIMES
    minute.take(100)
    assert minute.left(100) == 2 * MOST_TIMES - 1


def test_another_limit_keeps_what_was_used() -> None:
    """A reload refills nothing."""
    minute = Minute(5)
    for now_s in (1, 2, 3):
        minute.take(now_s)
    assert minute.with_limit(5) is minute
    assert minute.with_limit(10).left(4) == 7
    less = minute.with_limit(2)
    assert (less.left(4), less.wait_s(4)) == (0, 58)
