"""Writes the tables of keys and of the chart's values in the documents: `python docs/tables.py`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parent.parent))  # run as a program, it finds the package of this checkout

from pydantic import BaseModel
from ruamel.yaml import YAML

from router.config import Address, ChainSection, Config, StaticGpu, TeamSection, VariantSection

DOCS = Path(__file__).parent
CHART = DOCS.parent / "charts/ollama-router"
Row = tuple[str, str, str]
"""A key, its default as YAML has it ("" if it has none), and its meaning."""


def written(value: object) -> str:
    """Return a default as YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return str(value) if isinstance(value, (str, int, Address)) else ""


def rows(section: BaseModel | type[BaseModel], prefix: str = "") -> Iterator[Row]:
    """Yield every key at and below a section of the router's configuration, in the order of the file."""
    for name, field in (section if isinstance(section, type) else type(section)).model_fields.items():
        default = None if field.is_required() else field.default
        value = default if isinstance(section, type) else getattr(section, name)
        key = f"{prefix}{name}"
        if isinstance(value, BaseModel):
            yield from rows(value, f"{key}.")
        elif key == "backends":
            yield from rows(value["local"], "backends.NAME.")
        elif key == "chains":
            yield from rows(ChainSection, "chains.NAME.")
            yield from rows(VariantSection, "chains.NAME.variants[].")
        else:
            yield key, "" if field.is_required() else written(value), field.description or ""
            if key.endswith("probe.gpus"):
                yield from rows(StaticGpu, f"{key}[].")


def team_rows(section: type[BaseModel], prefix: str = "") -> Iterator[Row]:
    """Yield every key of a team's file, in the order of its schema."""
    for name, field in section.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        if key == "keys":
            yield from team_rows(get_args(field.annotation)[0], "keys[].")
        elif key == "chains":
            yield key, "{}", field.description or ""
        elif isinstance(field.default, BaseModel):
            yield from team_rows(type(field.default), f"{key}.")
        else:
            yield key, "" if field.is_required() else written(field.default), field.description or ""


def value_rows(values: Mapping[str, Any], schema: Mapping[str, Any], prefix: str = "") -> Iterator[Row]:
    """Yield every value of the Helm chart, with its default and the description in its schema."""
    for name, value in values.items():
        known = schema["properties"][name]
        if isinstance(value, dict) and value and value.keys() <= known.get("properties", {}).keys():
            yield from value_rows(value, known, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(value, ensure_ascii=False), known["description"]


def chart_rows() -> Iterator[Row]:
    """Yield every value of the Helm chart, in the order of its file."""
    values = YAML(typ="safe", pure=True).load((CHART / "values.yaml").read_text())
    return value_rows(values, json.loads((CHART / "values.schema.json").read_text()))


def table(found: Iterable[Row]) -> str:
    """Return the rows as Markdown."""
    lines = ["| key | default | meaning |", "| --- | --- | --- |"]
    for key, default, meaning in found:
        lines.append(f"| `{key}` | {f'`{default}`' if default else ''} | {meaning} |")
    return "".join(f"{line}\n" for line in lines)


TABLES = {
    "configuration.md": ("config", lambda: table(rows(Config()))),
    "teams.md": ("team", lambda: table(team_rows(TeamSection))),
    "kubernetes.md": ("values", lambda: table(chart_rows())),
}
"""Page → the word in the comments around its table, and what makes the table."""


def with_table(page: str, text: str) -> str:
    """Return the text of a page with its table as the models have it now."""
    word, make = TABLES[page]
    before, start, rest = text.partition(f"<!-- {word} table -->\n")
    _, end, after = rest.partition(f"<!-- end of {word} table -->")
    if not start or not end:
        raise ValueError(f"{page} has no comments around a {word} table")
    return before + start + make() + end + after


def main() -> None:
    """Write the tables anew."""
    for page in TABLES:
        path = DOCS / page
        path.write_text(with_table(page, path.read_text()))


if __name__ == "__main__":
    main()
