"""Time that goes on evenly while the wall clock is set."""

from __future__ import annotations

import pytest

from router.telemetry import SteadyTime

HOUR_S, YEARS_S = 3600.0, 10 * 365 * 86400.0


class Clocks:
    """A clock that never jumps, and a wall clock that a test sets."""

    def __init__(self) -> None:
        self.now_s, self.set_by_s = 50.0, 0.0

    def now(self) -> float:
        return self.now_s

    def unix_now(self) -> float:
        return 1_800_000_000.0 + self.now_s + self.set_by_s


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S, YEARS_S, -YEARS_S])
def test_ages_do_not_jump_and_what_is_shown_is_as_long_ago_as_it_is_j10(jump_s: float) -> None:
    """By the wall clock as it is set now."""
    clocks = Clocks()
    time = SteadyTime(clocks.now, clocks.unix_now)
    at_s = time.now_s()
    assert time.shown_s(at_s) == clocks.unix_now()
    clocks.now_s += 5
    clocks.set_by_s = jump_s
    assert time.now_s() - at_s == 5
    assert clocks.unix_now() - time.shown_s(at_s) == 5


def test_what_is_shown_stays_the_same_while_the_clocks_differ_by_a_moment() -> None:
    """Two readings of two clocks are never taken at once, and a page that is unchanged is not sent again."""
    clocks = Clocks()
    time = SteadyTime(clocks.now, clocks.unix_now)
    at_s = time.now_s()
    before = time.shown_s(at_s)
    clocks.set_by_s = 0.4
    assert time.shown_s(at_s) == before
