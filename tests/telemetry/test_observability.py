"""The shipped dashboard and alerts use metrics and labels that the router emits, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.telemetry.test_metrics_page import families

FOLDER = Path(__file__).parents[2] / "config/observability"
BOARD: dict[str, Any] = json.loads((FOLDER / "grafana.json").read_text())
ALERTS: list[dict[str, Any]] = YAML(typ="safe", pure=True).load((FOLDER / "alerts.yml").read_text())["groups"][0][
    "rules"
]
METRIC = re.compile(r"\b(?:ollama_router|gen_ai)_(?:server|client|router)?\w+")
LABELS = re.compile(r"by \(([^)]*)\)|\{([^}]*)\}")


def emitted() -> dict[str, set[str]]:
    """Return the labels of every series, by its name."""
    found: dict[str, set[str]] = {}
    for family in families():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


EMITTED = emitted()


def expressions() -> Iterator[tuple[str, str]]:
    """Yield (name, expression) of every panel and alert."""
    for panel in BOARD["panels"]:
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])
    yield from ((rule["alert"], rule["expr"]) for rule in ALERTS)


def metrics_of(expression: str) -> set[str]:
    """Return the names of metrics; what stands in braces and in `by (…)` are labels."""
    return set(METRIC.findall(LABELS.sub("", expression)))


@pytest.mark.parametrize(("name", "expression"), list(expressions()))
def test_every_metric_and_label_of_an_expression_is_emitted(name: str, expression: str) -> None:
    """With the suffixes of histograms."""
    used = metrics_of(expression)
    assert used, name
    assert used <= EMITTED.keys()
    named = {label.strip() for by, _ in LABELS.findall(expression) for label in by.split(",") if label.strip()}
    named |= {
        re.split("[=!]", label)[0] for _, inside in LABELS.findall(expression) for label in inside.split(",") if label
    }
    assert named <= set.union(*(EMITTED[metric] for metric in used))


@pytest.mark.parametrize("panel", BOARD["panels"], ids=lambda panel: panel["title"])
def test_every_legend_names_labels_of_its_series(panel: dict[str, Any]) -> None:
    """Those by which it is summed, or all of the metric; a histogram is not shown by its buckets."""
    for target in panel["targets"]:
        sums = re.findall(r"by \(([^)]*)\)", target["expr"])
        labels = {label.strip() for by in sums for label in by.split(",")} or set.union(
            *(EMITTED[metric] for metric in metrics_of(target["expr"]))
        )
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels - {"le"}


def test_every_metric_is_on_the_dashboard() -> None:
    """What nobody looks at should not be counted; the version alone is for tables."""
    bases = {re.sub("_(bucket|sum|count)$", "", metric) for _, expr in expressions() for metric in metrics_of(expr)}
    known = {f"{family.name}_total" if family.type == "counter" else family.name for family in families()}
    assert known == bases


def test_panels_do_not_overlap_and_name_their_source_by_a_variable() -> None:
    """So that the file can be imported anywhere."""
    taken = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
        assert panel["description"]
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    assert [variable["name"] for variable in BOARD["templating"]["list"]] == ["datasource"]


def test_every_alert_says_what_it_means_and_what_to_do() -> None:
    """By labels that its expression leaves."""
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        sums = re.findall(r"by \(([^)]*)\)", rule["expr"])
        left = {label.strip() for by in sums for label in by.split(",")} - {"le"}
        assert used <= (left or set.union(*(EMITTED[metric] for metric in metrics_of(rule["expr"]))))
