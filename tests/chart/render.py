"""Renders the chart for a table of values, and checks each object; runs in the environment that `scripts/chart` makes.

Standard input: {"chart": FOLDER, "versions": [VERSION, …], "custom": {KIND: SCHEMA}, "cases": {NAME: CASE}}; a CASE is
{"release": …, "values": …}. Standard output: {NAME: {"error": …} or {"objects": […], "problems": […], "lint": […]}},
objects as YAML 1.1 reads them.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator
from typing import Any

import helm_python as helm
import jsonschema
import yaml
from kubernetes_validate import utils

utils.schema_contents = functools.cache(utils.schema_contents)  # some are megabytes, and read for each object
INFO = 1
"""The severity of what `helm lint` only recommends."""


def complaints(one: dict[str, Any], versions: list[str], custom: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with an object, by the strict schemas of Kubernetes or of its custom resource."""
    if (schema := custom.get(one["kind"])) is not None:
        yield from (error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(one))
        return
    for version in versions:
        try:
            utils.validate(one, version, strict=True)
        except utils.ValidationError as error:
            yield f"{version}: {'.'.join(map(str, error.path))}: {error.message}"
        except utils.SchemaNotFoundError as error:
            yield error.message


def render(chart: helm.Chart, task: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    """Return the objects of one case, with what is wrong with them; or the error."""
    try:
        texts = chart.render(case["values"], name=case["release"], namespace="llm")
    except helm.HelmError as error:
        return {"error": str(error)}
    texts = {name: text for name, text in texts.items() if not name.endswith("NOTES.txt")}
    objects = [one for text in texts.values() for one in yaml.safe_load_all(text) if one]
    found = helm.lint(task["chart"], case["values"], strict=True)["messages"]
    return {
        "objects": objects,
        "problems": [
            f"{one['kind']} {one['metadata']['name']}: {text}"
            for one in objects
            for text in complaints(one, task["versions"], task["custom"])
        ],
        "lint": [one["error"] for one in found if one["severity"] > INFO],
    }


def main() -> None:
    """Render all cases."""
    task = json.load(sys.stdin)
    with helm.Chart.load(task["chart"]) as chart:
        json.dump({name: render(chart, task, case) for name, case in task["cases"].items()}, sys.stdout)


if __name__ == "__main__":
    main()
