"""Histograms that count in plain integers and become Prometheus samples only at a scrape.

The histograms of prometheus_client take a lock and compare every bound for each value: the six values at the end of a
request would cost more than its decision.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString


class HistogramSeries:
    """One series of a histogram: the count of each bucket (not cumulative) and the sum of all values."""

    __slots__ = ("_bounds", "buckets", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.buckets[bisect_left(self._bounds, value)] += 1
        self.total += value

    def observe_all(self, values: list[float]) -> None:
        """Count all `values`, which are sorted in place: one search per bound instead of one per value."""
        values.sort()
        below = 0
        for at, bound in enumerate(self._bounds):
            end = bisect_right(values, bound, below)
            self.buckets[at] += end - below
            below = end
        self.buckets[-1] += len(values) - below
        self.total += sum(values)


class Histogram(Collector):
    """One metric with all its series. A metric without labels has its only series from the start."""

    def __init__(
        self, name: str, text: str, labels: tuple[str, ...], *, bounds: tuple[float, ...], registry: CollectorRegistry
    ) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._bounds = bounds
        self._edges = [*map(_edge, bounds), "+Inf"]
        self._series: dict[tuple[str, ...], HistogramSeries] = {} if labels else {(): HistogramSeries(bounds)}
        registry.register(self)

    def labels(self, *values: str) -> HistogramSeries:
        """Return the series with these label values; create it if there is none."""
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = HistogramSeries(self._bounds)
        return series

    def remove(self, *values: str) -> None:
        """Remove the series with these label values. Raises KeyError if there is none."""
        del self._series[values]

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """Yield the metric without samples, as the registry needs it."""
        yield HistogramMetricFamily(self._name, self._text, labels=self._labels)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yield the metric with its current samples."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for values, series in self._series.items():
            counts = zip(self._edges, accumulate(series.buckets), strict=True)
            family.add_metric(values, list(counts), series.total)
            if self._bounds[0] < 0:  # the family omits a sum that may decrease, and the count with it: add the count
                labels = dict(zip(self._labels, values, strict=True))
                family.add_sample(f"{self._name}_count", labels, sum(series.buckets))
        yield family


def _edge(bound: float) -> str:
    """Return a bound as prometheus_client writes it."""
    return str(floatToGoString(bound))  # type: ignore[no-untyped-call]
