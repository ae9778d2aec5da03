"""What requests take of a loaded model."""

from __future__ import annotations

import random

import pytest

from router.core.teams.meter import Meter


def test_a_request_alone_takes_all_of_the_time() -> None:
    """From its beginning to its end; the pause before it counts for nobody."""
    meter = Meter()
    assert meter.leave(meter.enter(10), 14) == 4
    assert meter.leave(meter.enter(100), 101) == 1


def test_requests_in_parallel_share_the_time() -> None:
    """One of four seconds, joined for two of them by another one."""
    meter = Meter()
    first = meter.enter(0)
    second = meter.enter(1)
    assert meter.leave(second, 3) == 1
    assert meter.leave(first, 4) == 3


def test_all_parts_add_up_to_the_time_in_which_it_was_busy() -> None:
    """Whatever overlaps: here it is never idle."""
    rng, meter, now_s, total_s = random.Random(1), Meter(), 0.0, 0.0
    under_way = [meter.enter(0)]
    for _ in range(1000):
        now_s += rng.random()
        if len(under_way) > 1 and rng.random() < 0.5:
            total_s += meter.leave(under_way.pop(rng.randrange(len(under_way))), now_s)
        else:
            under_way.append(meter.enter(now_s))
    total_s += sum(meter.leave(entered, now_s) for entered in under_way)
    assert total_s == pytest.approx(now_s)
