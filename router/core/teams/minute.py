"""At most so many requests in any 60 seconds. Pure; the caller supplies the time."""

from __future__ import annotations

import math
from array import array

MINUTE_S = 60.0

MOST_TIMES = 6000
"""Times that are kept. A limit above it keeps one time for several requests that follow each other: the last one's."""


class Minute:
    """The requests of the last minute, exactly: a request is allowed when the one `limit` before it is 60 s old.

    Above `MOST_TIMES` a few less than the limit are allowed (fewer than `per_time`), never more.
    """

    __slots__ = ("_at", "_open", "_recent", "_times", "limit", "per_time")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.per_time = -(-limit // MOST_TIMES)  # requests that share one time
        self._times = array("d", [-math.inf]) * (limit // self.per_time)
        self._at = 0  # the place of the next time, which holds the oldest one
        self._open = 0  # further requests that may share the newest time
        self._recent = 0  # times of the last minute, when that was last counted

    def wait_s(self, now_s: float, count: int = 1) -> float:
        """Return how long until the next `count` requests are allowed together; 0 if they are now.

        More than the limit are allowed when as many as the limit are.
        """
        times_s, at = self._times, self._at
        if count == 1 and times_s[at] + MINUTE_S <= now_s:  # common case: even the oldest time is over
            return 0.0
        times = min(-(-(count - self._open) // self.per_time), len(self._times))  # that they need
        if times <= 0:
            return 0.0
        return max(0.0, times_s[(at + times - 1) % len(times_s)] + MINUTE_S - now_s)

    def take(self, now_s: float) -> None:
        """Count a request that is allowed."""
        if self._open and self._recent:
            self._times[self._at - 1] = now_s
            self._open -= 1
        else:
            at, size = self._at, len(self._times)
            self._times[at] = now_s
            self._at, self._open = (at + 1) % size, self.per_time - 1
            if self._recent < size:
                self._recent += 1

    def left(self, now_s: float) -> int:
        """Return how many further requests are allowed now."""
        times, at, recent = self._times, self._at, self._recent
        while recent and times[at - recent] + MINUTE_S <= now_s:
            recent -= 1
        self._recent = recent
        return (len(times) - recent) * self.per_time + (self._open if recent else 0)

    def reset_s(self, now_s: float) -> float:
        """Return how long until as many as the limit are allowed again."""
        return max(0.0, self._times[self._at - 1] + MINUTE_S - now_s)

    def with_limit(self, limit: int) -> Minute:
        """Return the same minute under another limit."""
        if limit == self.limit:
            return self
        other = Minute(limit)
        for time_s in (*self._times[self._at :], *self._times[: self._at]):  # the oldest first
            for _ in range(self.per_time):
                other.take(time_s)
        return other
