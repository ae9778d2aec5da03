"""Every value of the chart has a comment, a type and a row in the documents; this needs no Helm."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
from ruamel.yaml import YAML

import router
from router.config import Config
from router.config.backends import ServerSection

CHART = Path(__file__).parent.parent.parent / "charts/ollama-router"
TEXT = (CHART / "values.yaml").read_text()
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
META: dict[str, Any] = YAML(typ="safe", pure=True).load((CHART / "Chart.yaml").read_text())


def commented() -> dict[str, str]:
    """Return the comment above each key."""
    found: dict[str, str] = {}
    path: list[str] = []
    lines = TEXT.splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        if match := re.match(r"( *)(\w+):", line):
            path = [*path[: len(match[1]) // 2], match[2]]
            found[".".join(path)] = above.strip().removeprefix("# ") if above.strip().startswith("#") else ""
    return found


def described(schema: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the description of each value that has a comment of its own."""
    found: dict[str, str] = {}
    for key, value in schema.get("properties", {}).items():
        if isinstance(value, dict) and "description" in value:
            found[f"{prefix}{key}"] = value["description"]
            found |= described(value, f"{prefix}{key}.")
    return found


def test_comments_are_the_descriptions_of_the_schema() -> None:
    """Every value has one."""
    assert commented() == described(SCHEMA)
    assert all(commented().values())


def test_defaults_agree_with_the_schema() -> None:
    """Nothing may stand there that the schema does not know."""
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.Draft7Validator(SCHEMA).validate(YAML(typ="safe", pure=True).load(TEXT))


def test_version_is_that_of_the_router() -> None:
    """The image's tag follows from it."""
    assert META["appVersion"] == META["version"] == router.__version__


def test_settings_of_ollama_are_those_of_the_configuration() -> None:
    """A key that is added there is passed on to Ollama here."""
    properties = SCHEMA["properties"]["node"]["properties"]["server"]["properties"]
    assert properties.keys() == ServerSection.model_fields.keys()
    kinds = ServerSection.model_json_schema()["properties"]
    assert properties["kv_type"]["enum"] == kinds["kv_type"]["enum"]
    assert properties["flash_attention"]["enum"] == kinds["flash_attention"]["enum"]


def test_what_the_chart_decides_are_keys_of_the_configuration() -> None:
    """The values may not set them a second time."""
    for component in ("front", "node"):
        refused = SCHEMA["properties"][component]["properties"]["config"]["properties"]
        assert refused.keys() - {"node"} <= Config.model_fields.keys()
        assert not any(refused.values())
