"""The time of a runner is shared out among its requests: nothing is charged twice, and nothing is missing."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.backend.occupancy import Occupancy


def test_a_request_alone_is_charged_all_of_its_time() -> None:
    occupancy = Occupancy()
    mark = occupancy.begin(10.0)
    assert occupancy.end(mark, 14.0) == pytest.approx(4.0)


def test_requests_that_run_together_share_the_time() -> None:
    """The first is alone for 2 s, then both run for 4 s, then the second is alone for 1 s."""
    occupancy = Occupancy()
    first = occupancy.begin(0.0)
    second = occupancy.begin(2.0)
    assert occupancy.end(first, 6.0) == pytest.approx(2 + 4 / 2)
    assert occupancy.end(second, 7.0) == pytest.approx(4 / 2 + 1)


def test_idle_time_is_charged_to_nobody() -> None:
    occupancy = Occupancy()
    occupancy.end(occupancy.begin(0.0), 1.0)
    assert occupancy.end(occupancy.begin(100.0), 101.0) == pytest.approx(1.0)


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 20)), min_size=1, max_size=20))
def test_charges_add_up_to_the_time_in_which_the_runner_was_busy(spans: list[tuple[float, float]]) -> None:
    moments = sorted({at for start, took in spans for at in (start, start + took)})
    busy_s = sum(
        later - earlier
        for earlier, later in itertools.pairwise(moments)
        if any(start <= earlier and later <= start + took for start, took in spans)
    )
    steps = sorted(
        [(start, 0, number) for number, (start, _) in enumerate(spans)]
        + [(start + took, 1, number) for number, (start, took) in enumerate(spans)]
    )
    occupancy, marks, charged_s = Occupancy(), dict[int, float](), 0.0
    for at_s, is_end, number in steps:
        if is_end:
            charged_s += occupancy.end(marks[number], at_s)
        else:
            marks[number] = occupancy.begin(at_s)
    assert charged_s == pytest.approx(busy_s, abs=1e-6)
