"""The time of one runner, shared out among the requests that it works on."""

from __future__ import annotations


class Occupancy:
    """While k requests are under way each of them is charged 1/k of the time, so that the charges add up to the time
    in which the runner was busy. Times are loop times."""

    __slots__ = ("_at_s", "_each_s", "_running")

    def __init__(self) -> None:
        self._running = 0
        self._each_s = 0.0  # what a request would be charged that has been under way from the start
        self._at_s = 0.0

    def begin(self, now_s: float) -> float:
        """Count a request; return the mark that `end` needs."""
        self._advance(now_s)
        self._running += 1
        return self._each_s

    def end(self, mark: float, now_s: float) -> float:
        """Count the end of a request; return its share of the time, in seconds."""
        self._advance(now_s)
        self._running -= 1
        return self._each_s - mark

    def _advance(self, now_s: float) -> None:
        if self._running:
            self._each_s += (now_s - self._at_s) / self._running
        self._at_s = now_s
