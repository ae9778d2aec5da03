"""Histograms that are counted in plain numbers and only become Prometheus samples at a scrape.

The library's own take a lock and look at every bound for each value: six values at the end of each request cost more
than a decision.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString


class Counted:
    """The values of one series: how many in each bucket, and their sum."""

    __slots__ = ("_bounds", "buckets", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count `value`."""
        self.buckets[bisect_left(self._bounds, value)] += 1
        self.total += value

    def observe_all(self, values: list[float]) -> None:
        """Count all of `values` (they get sorted): a look at each bound, not at each value."""
        values.sort()
        below = 0
        for at, bound in enumerate(self._bounds):
            end = bisect_right(values, bound, below)
            self.buckets[at] += end - below
            below = end
        self.buckets[-1] += len(values) - below
        self.total += sum(values)


class Histogram(Collector):
    """One metric with all its series. One without labels has its only series from the start."""

    def __init__(
        self, name: str, text: str, labels: tuple[str, ...], *, bounds: tuple[float, ...], registry: CollectorRegistry
    ) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._bounds = bounds
        self._edges = [*map(_edge, bounds), "+Inf"]
        self._series: dict[tuple[str, ...], Counted] = {} if labels else {(): Counted(bounds)}
        registry.register(self)

    def labels(self, *values: str) -> Counted:
        """The series with these label values."""
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = Counted(self._bounds)
        return series

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """The metric without samples: what registering it looks at."""
        yield HistogramMetricFamily(self._name, self._text, labels=self._labels)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The metric as it stands now."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for values, series in self._series.items():
            counts = zip(self._edges, accumulate(series.buckets), strict=True)
            family.add_metric(values, list(counts), series.total)
            if self._bounds[0] < 0:  # such a sum means nothing; the family leaves the count out with it
                labels = dict(zip(self._labels, values, strict=True))
                family.add_sample(f"{self._name}_count", labels, sum(series.buckets))
        yield family


def _edge(bound: float) -> str:
    """A bound as the library writes it."""
    return str(floatToGoString(bound))  # type: ignore[no-untyped-call]
