"""One timer for many connections: each carries its own `deadline`, and a sweep expires those that have passed."""

from __future__ import annotations

import asyncio
from typing import Protocol

NEVER = float("inf")

LEAST_INTERVAL_S = 0.01
"""No sweep is more frequent than this."""


class HasDeadline(Protocol):
    """Something that waits. `deadline` is in loop time, `NEVER` while it waits for nothing."""

    deadline: float

    def expire(self) -> None: ...


class Deadlines:
    """Calls `expire()` on every member whose deadline has passed, at most `interval_s` late.

    A timer for each request costs more than all other bookkeeping of a request, and our limits are coarse. The sweep
    runs only while there are members.
    """

    def __init__(self, interval_s: float = 0.5) -> None:
        self._interval_s = interval_s
        self._members: set[HasDeadline] = set()
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def of(cls, *limits_s: float, most_s: float = 0.5) -> Deadlines:
        """Deadlines that are at most a quarter of the shortest limit, and at most `most_s`, late."""
        return cls(max(LEAST_INTERVAL_S, min(most_s, min(limits_s) / 4)))

    def add(self, member: HasDeadline) -> None:
        self._members.add(member)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._sweep)

    def discard(self, member: HasDeadline) -> None:
        self._members.discard(member)
        if not self._members and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._interval_s, self._sweep)
        now = loop.time()
        for member in [member for member in self._members if member.deadline <= now]:
            if member.deadline <= now:  # another one's end may have given it something new to wait for
                member.expire()
