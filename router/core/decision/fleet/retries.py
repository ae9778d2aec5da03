"""The retry budget: retries are a part of the requests, so that a failing fleet gets no storm on top."""

from __future__ import annotations

from collections import deque

SHARE, FREE = 0.2, 3
"""Retries may be this part of the requests within `WINDOW_S`, and so many more."""

WINDOW_S = 10.0


class RetryBudget:
    """Counts requests and retries within the window. All times are seconds of one clock."""

    def __init__(self, share: float = SHARE) -> None:
        self._share = share
        self._requests = 0
        self._spent: deque[float] = deque()
        self._began: deque[tuple[float, int]] = deque()  # (second, requests in it)

    def began(self, now_s: float) -> None:
        """Count a request."""
        self._requests += 1
        if self._began and self._began[-1][0] > now_s - 1.0:
            at_s, count = self._began[-1]
            self._began[-1] = (at_s, count + 1)
        else:
            self._began.append((now_s, 1))
            self._forget(now_s)

    def take(self, now_s: float) -> bool:
        """Return True if one more request may be sent a second time, and count it."""
        self._forget(now_s)
        if len(self._spent) >= self._share * self._requests + FREE:
            return False
        self._spent.append(now_s)
        return True

    def _forget(self, now_s: float) -> None:
        while self._began and self._began[0][0] <= now_s - WINDOW_S:
            self._requests -= self._began.popleft()[1]
        while self._spent and self._spent[0] <= now_s - WINDOW_S:
            self._spent.popleft()
