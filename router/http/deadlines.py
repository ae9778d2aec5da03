"""One timer for many connections: each has its own `deadline`, and a periodic sweep expires those that have passed."""

from __future__ import annotations

import asyncio
from typing import Protocol

NEVER = float("inf")

MIN_INTERVAL_S = 0.01
"""Minimum interval between two sweeps."""


class HasDeadline(Protocol):
    """Something that may time out. `deadline` is in loop time, `NEVER` while there is none."""

    deadline: float

    def expire(self) -> None: ...


class Deadlines:
    """Calls `expire()` on every member whose deadline has passed, at most `interval_s` late.

    A timer per request would cost more than all other bookkeeping of a request, and the limits are coarse. The sweep
    runs only while there are members. One that is itself much too late leaves it to the next one: this process had
    stood still, and what the other sides have sent meanwhile is read first.
    """

    def __init__(self, interval_s: float = 0.5) -> None:
        self._interval_s = interval_s
        self._members: set[HasDeadline] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0
        self._has_waited = False

    @classmethod
    def of(cls, *limits_s: float, max_s: float = 0.5) -> Deadlines:
        """Return Deadlines that are late by at most a quarter of the shortest limit and by at most `max_s`."""
        return cls(max(MIN_INTERVAL_S, min(max_s, min(limits_s) / 4)))

    def add(self, member: HasDeadline) -> None:
        self._members.add(member)
        if self._timer is None:
            self._sweep_later(asyncio.get_running_loop())

    def discard(self, member: HasDeadline) -> None:
        self._members.discard(member)
        if not self._members and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        loop, due_s = asyncio.get_running_loop(), self._due_s
        self._sweep_later(loop)
        now = loop.time()
        self._has_waited = not self._has_waited and now > due_s + self._interval_s
        if self._has_waited:
            return
        for member in [member for member in self._members if member.deadline <= now]:
            if member.deadline <= now:  # expiring another member may have given this one a new deadline
                member.expire()

    def _sweep_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due_s = loop.time() + self._interval_s
        self._timer = loop.call_later(self._interval_s, self._sweep)
