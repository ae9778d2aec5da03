"""Unix time that goes on evenly when the wall clock is set: for ages, and for what happened before what.

A wall clock jumps: by a time server after a start without one, by hand, with a suspended machine. What is only shown
may jump with it; what is compared must not.
"""

from __future__ import annotations

from collections.abc import Callable

NOISE_S = 1.0
"""A smaller difference of the clocks is not followed: a time that is shown would change with each reading."""


class SteadyTime:
    """Starts at the Unix time of `unix_now`, the wall clock, and goes on with `now`, which never jumps (the loop's)."""

    def __init__(self, now: Callable[[], float], unix_now: Callable[[], float]) -> None:
        self._now, self._unix_now = now, unix_now
        self._begin_s = unix_now() - now()
        self._set_by_s = 0.0

    def now_s(self) -> float:
        """Return the seconds since 1970, as if the wall clock had not been set since the start."""
        return self._begin_s + self._now()

    def shown_s(self, at_s: float) -> float:
        """Return a time of `now_s` by the wall clock as it is set now: as long ago as it really is."""
        set_by_s = self._unix_now() - self.now_s()
        if abs(set_by_s - self._set_by_s) >= NOISE_S:
            self._set_by_s = set_by_s
        return at_s + self._set_by_s
