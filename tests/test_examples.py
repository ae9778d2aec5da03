"""Every file in config/ loads, agrees with the schema, and config/router.yaml shows every key with its default."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from router.config import (
    ChainSection,
    Config,
    Places,
    StaticGpu,
    VariantSection,
    config_warnings,
    load_config,
    schema,
    team_schema,
)

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "config"
FILES = sorted(path for path in CONFIG.rglob("*.yaml") if path.parent.name != "teams")
TEAM_FILES = sorted(CONFIG.rglob("teams/*.yaml"))
SCHEMA = json.loads((CONFIG / "router.schema.json").read_text())
TEAM_SCHEMA = json.loads((CONFIG / "team.schema.json").read_text())


def plain(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path.read_text())


def leaves(data: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def short(path: Path) -> str:
    return str(path.relative_to(CONFIG))


@pytest.mark.parametrize("path", FILES, ids=short)
def test_file_loads(path: Path) -> None:
    """Every shipped configuration is valid, and the teams of each example are used in full."""
    config = load_config(path, env={})
    assert config.backends
    assert config_warnings(config, Places(path), unix_s=0.0) == []
    assert sorted(Path(file.path) for file in config.team_files) == sorted((path.parent / "teams").glob("*.yaml"))


@pytest.mark.parametrize("path", [*FILES, *TEAM_FILES], ids=short)
def test_file_agrees_with_the_schema(path: Path) -> None:
    """Editors that check by the schema, which the first line names, accept every shipped configuration."""
    first = path.read_text().partition("\n")[0]
    named = (path.parent / first.removeprefix("# yaml-language-server: $schema=")).resolve()
    assert named == CONFIG / ("team.schema.json" if path in TEAM_FILES else "router.schema.json")
    jsonschema.Draft202012Validator(json.loads(named.read_text())).validate(plain(path))


def test_schema_is_that_of_the_code() -> None:
    """If the configuration changes, `ollama-router check --schema` and `--team-schema` print the schemas to ship."""
    assert schema() == SCHEMA
    assert team_schema() == TEAM_SCHEMA


@pytest.mark.parametrize(
    "text",
    [
        "keys: []",
        "team: a b",
        "{team: a, rights: [admin]}",
        "{team: a, vram: {cap: 8}}",
        "{team: a, keys: [{id: x, sha256: me}]}",
    ],
)
def test_schema_of_teams_refuses_what_the_router_refuses(text: str) -> None:
    """Editors report typical mistakes there, too."""
    assert not jsonschema.Draft202012Validator(TEAM_SCHEMA).is_valid(YAML(typ="safe", pure=True).load(text))


@pytest.mark.parametrize(
    "text", ["queue: { wait_s: -1 }", "chains: { a: 5 }", "colour: red", "defaults: { num_ctx: x }"]
)
def test_schema_refuses_what_the_router_refuses(text: str) -> None:
    """Editors report typical mistakes."""
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(YAML(typ="safe", pure=True).load(text))


def test_router_yaml_shows_every_key_with_its_default() -> None:
    """The commented file has every key, each with the value that applies without it."""
    shown = dict(leaves(plain(CONFIG / "router.yaml")))
    defaults = dict(leaves(Config().model_dump(mode="json")))
    assert shown == defaults


def test_router_yaml_explains_every_key() -> None:
    """Each key has a comment, on its line or in the line above."""
    lines = (CONFIG / "router.yaml").read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\s*[a-z_]+:", line) and line.strip() != "local:":
            assert "  # " in line or lines[number - 1].lstrip().startswith("# "), line


def test_example_chains_in_router_yaml_load(tmp_path: Path) -> None:
    """The chains in its comments are valid, and show every key of a chain."""
    text = (CONFIG / "router.yaml").read_text()
    example = "".join(line[2:] + "\n" for line in re.findall(r"^#   .*$", text, re.MULTILINE))
    file = tmp_path / "router.yaml"
    file.write_text(f"chains:\n{example}")
    assert len(load_config(file, env={}).chains) == 3
    for key in {*ChainSection.model_fields, *VariantSection.model_fields}:
        assert f"{key}:" in example


def test_every_key_has_a_description() -> None:
    """The schema, router.yaml and the README can explain every key."""
    sections = [section for whole in (SCHEMA, TEAM_SCHEMA) for section in (*whole["$defs"].values(), whole)]
    for section in sections:
        for key, value in section["properties"].items():
            assert value.get("description"), key
    assert all(field.description for field in StaticGpu.model_fields.values())
