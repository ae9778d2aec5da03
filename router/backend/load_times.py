"""What loads and unloads take on one backend, as measured; the line and the return to bigger variants go by it."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

from router.core.decision.costs import LoadCosts

MOST_MODELS = 256
"""The number of models of which the time of a load is kept."""

NEWEST = 0.5
"""The weight of the newest measurement: the files of a model may have left the page cache since, or come into it."""

LEAST_S = 0.01
"""A load or unload counts as at least this long."""


class LoadTimes:
    """The measured seconds of one backend. `costs` is the same object until something is measured.

    Until a load was measured here, the mean speed of the loads on other backends counts, if there are any.
    """

    def __init__(self) -> None:
        self.costs = LoadCosts()
        self._loads_s: dict[str, float] = {}
        self._bytes_per_s: float | None = None
        self._unload_s: float | None = None
        self._stays_s: dict[str, float] = {}
        self._last_load = -1
        self._others: tuple[LoadTimes, ...] = ()

    def learn_from(self, others: Iterable[LoadTimes]) -> None:
        """Set the times of the other backends; they are to learn from this one as well."""
        self._others = tuple(others)

    def loaded(self, weights: str, size_bytes: int, took_s: float) -> None:
        """Count a load of `size_bytes` that ended well after `took_s` seconds."""
        took_s = max(LEAST_S, took_s)
        before_s = self._loads_s.pop(weights, None)  # to the end: the first is the longest unloaded
        self._loads_s[weights] = _newest(before_s, took_s)
        if len(self._loads_s) > MOST_MODELS:
            del self._loads_s[next(iter(self._loads_s))]
        if size_bytes > 0:
            self._bytes_per_s = _newest(self._bytes_per_s, size_bytes / took_s)
        self._publish()
        for other in self._others:
            other.heard()

    def heard(self) -> None:
        """Count that a load was measured on another backend."""
        if self._bytes_per_s is None:
            self._publish()

    def unloading(self, newest: str, order: int, stayed_s: float) -> None:
        """Count that a model is unloaded `stayed_s` after the last load, that of `newest`; `order` is its number."""
        if order <= self._last_load:  # not the first one since
            return
        self._last_load = order
        before_s = self._stays_s.pop(newest, stayed_s)
        self._stays_s[newest] = min(stayed_s, _newest(before_s, stayed_s))
        if len(self._stays_s) > MOST_MODELS:
            del self._stays_s[next(iter(self._stays_s))]
        self._publish()

    def unloaded(self, took_s: float) -> None:
        """Count an unload until its memory was free."""
        self._unload_s = _newest(self._unload_s, max(LEAST_S, took_s))
        self._publish()

    def _publish(self) -> None:
        first = LoadCosts()
        others = [speed for other in self._others if (speed := other._bytes_per_s) is not None]
        bytes_per_s = self._bytes_per_s or (fmean(others) if others else first.bytes_per_s)
        self.costs = LoadCosts(bytes_per_s, self._unload_s or first.unload_s, dict(self._loads_s), dict(self._stays_s))


def _newest(before: float | None, now: float) -> float:
    return now if before is None else NEWEST * now + (1 - NEWEST) * before
