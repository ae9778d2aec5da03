"""docs/metrics.md lists every metric with its type and labels, and every label with its bound."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import Metric

from router.telemetry import MetricsHook
from tests.telemetry.test_telemetry import EVERYTHING, FULL

PAGE = (Path(__file__).parents[2] / "docs/metrics.md").read_text()


def families() -> list[Metric]:
    """Return the metrics after one event of each kind."""
    hook = MetricsHook("0.1.0")
    hook.watch(lambda: FULL)
    for event in EVERYTHING:
        hook.on(event)
    hook.render()
    return sorted(hook.registry.collect(), key=lambda family: family.name)


def row_of(family: Metric) -> str:
    labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
    name = f"{family.name}_total" if family.type == "counter" else family.name
    shown = ", ".join(f"`{label}`" for label in labels)
    return f"| `{name}` | {family.type} | {shown} | {family.documentation} |"


def test_the_page_lists_every_metric_as_it_is() -> None:
    table = PAGE.rpartition("| --- | --- | --- | --- |\n")[2].strip().splitlines()
    assert table == [row_of(family) for family in families()]


def test_every_label_has_its_bound_on_the_page() -> None:
    labels = {label for family in families() for sample in family.samples for label in sample.labels} - {"le"}
    bounds = PAGE.partition("| --- | --- | --- |\n")[2].partition("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in bounds.splitlines())))
    assert labels == named
