"""Bounds for the values of labels: clients and reloads may bring any number of new ones."""

from __future__ import annotations

from collections.abc import Callable, Collection

from prometheus_client import Counter

OTHER = "other"


class Bounded:
    """Maps label values to at most `limit` different ones that `is_known` accepts; all others become `other`."""

    def __init__(self, limit: int, is_known: Callable[[str], bool] = lambda _value: True) -> None:
        self._limit = limit
        self._is_known = is_known
        self._seen: set[str] = set()

    def __call__(self, value: str) -> str:
        if value in self._seen:
            return value
        if len(self._seen) >= self._limit or not self._is_known(value):
            return OTHER
        self._seen.add(value)
        return value

    def keep_only(self, values: Collection[str]) -> None:
        """Forget all other values, which makes room for new ones."""
        self._seen.intersection_update(values)

    def forget(self, value: str) -> None:
        """Forget a value, which makes room for a new one."""
        self._seen.discard(value)


def keep_series(counter: Counter, label: str, values: Collection[str]) -> None:
    """Remove the series of `counter` whose `label` has none of `values`."""
    series = [sample.labels for metric in counter.collect() for sample in metric.samples]
    for labels in series:
        if labels[label] not in values:
            counter.remove(*labels.values())
