"""Circuit breakers: a place, or a model on a place, that fails again and again is left out for a while.

A breaker opens after `failures` in a row, or if more than half of at least `LEAST` results within `WINDOW_S` were
failures. It stays open for `open_s`, for twice that if it opens again at once, and so on up to `MOST_OPEN_S`. Then one
request goes there as a trial: its result closes the breaker, or opens it again.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque

LEAST, WINDOW_S, MOST_OPEN_S = 10, 30.0, 300.0
TRIAL_S = 0.1
"""What is said to be left while a trial is under way."""

MOST_BREAKERS = 1024
"""Breakers that are kept at most; those without a failure are not kept at all."""

MOST_RESULTS = 64
"""Results that one breaker remembers at most."""


class Breaker:
    """One breaker. All times are seconds of one clock."""

    __slots__ = ("_ejections", "_failures", "_open_s", "_results", "_row", "_trial_since_s", "open_until_s")

    def __init__(self, failures: int = 5, open_s: float = 30.0) -> None:
        self._failures, self._open_s = failures, open_s
        self._row = 0
        self._ejections = 0
        self._results: deque[tuple[float, bool]] = deque(maxlen=MOST_RESULTS)
        self._trial_since_s = -math.inf
        self.open_until_s = -math.inf

    def is_open(self, now_s: float) -> bool:
        """Return True while no request should go there: until its time is over, and while a trial is under way."""
        if now_s < self.open_until_s:
            return True
        return self._ejections > 0 and now_s < self._trial_since_s + self._open_s

    def begin(self, now_s: float) -> None:
        """Note that a request goes there: if the breaker was open it is the trial."""
        if self._ejections:
            self._trial_since_s = now_s

    def succeeded(self, now_s: float) -> None:
        """Count an answer."""
        self._results.append((now_s, True))
        self._row = self._ejections = 0
        self._trial_since_s = self.open_until_s = -math.inf

    def has_failures(self, now_s: float) -> bool:
        """Return whether there was a failure within the last `WINDOW_S`."""
        return any(not is_good and at_s > now_s - WINDOW_S for at_s, is_good in self._results)

    def failed(self, now_s: float) -> bool:
        """Count a failure; return True if it opens the breaker."""
        self._results.append((now_s, False))
        self._row += 1
        if now_s < self.open_until_s:  # one that was sent before it opened
            return False
        recent = [is_good for at_s, is_good in self._results if at_s > now_s - WINDOW_S]
        is_half = len(recent) >= LEAST and 2 * recent.count(False) > len(recent)
        if not (self._ejections or self._row >= self._failures or is_half):
            return False
        self._ejections += 1
        self.open_until_s = now_s + min(MOST_OPEN_S, self._open_s * self._ejections)
        self._trial_since_s = -math.inf
        self._results.clear()
        return True


class Breakers:
    """The breakers of all places, and of all models on them. `key` is (place, "") or (place, model)."""

    def __init__(self, failures: int = 5, open_s: float = 30.0) -> None:
        self._failures, self._open_s = failures, open_s
        self._known: OrderedDict[tuple[str, str], Breaker] = OrderedDict()

    def __bool__(self) -> bool:
        """Return True if there has been a failure that no success has followed."""
        return bool(self._known)

    def open_for_s(self, place: str, model: str, now_s: float) -> float:
        """Return for how many seconds more a model on a place ("" = the place) is left out; 0 if it is not."""
        breaker = self._known.get((place, model))
        return max(breaker.open_until_s - now_s, TRIAL_S) if breaker is not None and breaker.is_open(now_s) else 0.0

    def begin(self, place: str, model: str, now_s: float) -> None:
        """Note that a request goes there."""
        for key in ((place, ""), (place, model)):
            if (breaker := self._known.get(key)) is not None:
                breaker.begin(now_s)

    def succeeded(self, place: str, model: str, now_s: float) -> None:
        """Count an answer: breakers without a failure need not be kept."""
        for key in ((place, ""), (place, model)):
            if (breaker := self._known.get(key)) is not None:
                breaker.succeeded(now_s)
                if not breaker.has_failures(now_s):
                    del self._known[key]

    def failed(self, place: str, model: str, now_s: float) -> bool:
        """Count a failure of a model ("" = of the place as a whole); return True if it opens a breaker."""
        key = place, model
        breaker = self._known.get(key)
        if breaker is None:
            breaker = self._known[key] = Breaker(self._failures, self._open_s)
            if len(self._known) > MOST_BREAKERS:
                self._known.popitem(last=False)
        return breaker.failed(now_s)
