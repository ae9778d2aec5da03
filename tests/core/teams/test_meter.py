"""What requests take of a loaded model."""

from __future__ import annotations

import random

import pytest

from router.core.teams.meter import Meter


def test_a_request_alone_takes_all_of_the_time() -> None:
    """From its beginning to its end; the pause before it counts for nobody."""
    meter = Meter()
    assert meter.leave(meter.enter(10, 1), 14, 1) == 4
    assert meter.leave(meter.enter(100, 0), 101, 0) == 1


def test_requests_in_parallel_share_the_time() -> None:
    """One of four seconds, joined for two of them by another one."""
    meter = Meter()
    first = meter.enter(0, 2)
    second = meter.enter(1, 2)
    assert meter.leave(second, 3, 2) == 1
    assert meter.leave(first, 4, 2) == 3


def test_a_request_behind_another_one_takes_nothing_until_that_has_ended() -> None:
    """By the order in which they came; one that leaves before has taken nothing."""
    meter = Meter()
    first, second, third, fourth = (meter.enter(at_s, 1) for at_s in (0, 1, 2, 3))
    assert meter.leave(third, 5, 1) == 0
    assert meter.leave(first, 10, 1) == 10
    assert meter.leave(second, 12, 1) == 2
    assert meter.leave(fourth, 13, 1) == 1


def test_places_that_are_found_later_are_used() -> None:
    """A runner may turn out to have more of them, and one that has fewer works on what it has begun."""
    meter = Meter()
    first, second = meter.enter(0, 1), meter.enter(0, 1)
    third = meter.enter(2, 3)
    assert meter.leave(first, 5, 1) == 3
    fourth = meter.enter(5, 1)
    assert meter.leave(second, 7, 1) == 2
    assert meter.leave(third, 7, 1) == 2
    assert meter.leave(fourth, 8, 1) == 1


@pytest.mark.parametrize("places", [1, 2, 4, 1000])
def test_all_parts_add_up_to_the_time_in_which_it_was_busy(places: int) -> None:
    """Whatever overlaps: here it is never idle."""
    rng, meter, now_s, total_s = random.Random(1), Meter(), 0.0, 0.0
    under_way = [meter.enter(0, places)]
    for _ in range(1000):
        now_s += rng.random()
        if len(under_way) > 1 and rng.random() < 0.5:
            total_s += meter.leave(under_way.pop(rng.randrange(len(under_way))), now_s, places)
        else:
            under_way.append(meter.enter(now_s, places))
    total_s += sum(meter.leave(part, now_s, places) for part in under_way)
    assert total_s == pytest.approx(now_s)
