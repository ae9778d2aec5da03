"""The README tells the truth: its keys, commands, files, chain and picture are those of the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from router.cli.main import COMMANDS
from router.config import Address, ChainSection, Config, StaticGpu, VariantSection, load_config
from tests.test_architecture import LAYER

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def written(value: object) -> str:
    """A default as YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return str(value) if isinstance(value, (str, int, Address)) else ""


def rows(section: BaseModel | type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(key, default, meaning) of every key at and below a section."""
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


def test_table_of_the_configuration_is_that_of_the_code() -> None:
    """Every key with its default and its meaning, in the order of the file, and nothing else."""
    table = README.partition("<!-- config table -->\n")[2].partition("<!-- end")[0]
    lines = ["| key | default | meaning |", "| --- | --- | --- |"]
    for key, default, meaning in rows(Config()):
        lines.append(f"| `{key}` | {f'`{default}`' if default else ''} | {meaning} |")
    assert table.splitlines() == lines


def test_chain_of_the_readme_is_the_shipped_example(tmp_path: Path) -> None:
    """What is copied from the README works, and is the file in config/examples."""
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    file = tmp_path / "router.yaml"
    file.write_text(block)
    config = load_config(file, env={})
    assert config == load_config(ROOT / "config/examples/slow-70b.yaml", env={})


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_in_the_readme(command: str) -> None:
    """No command is a secret."""
    assert f"| `ollama-router {command}" in README


def test_readme_names_no_command_that_is_not_there() -> None:
    """Every `ollama-router X` of the text exists, and so does every script."""
    assert set(re.findall(r"ollama-router (?!`)([a-z]+)", README.partition("\n")[2])) <= {*COMMANDS, "speaks"}
    for script in re.findall(r"(?:scripts/\w+|bench/\w+\.py)", README):
        assert (ROOT / script).exists()


def test_links_lead_to_files() -> None:
    """Relative links are not broken."""
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_picture_shows_every_room_at_its_height() -> None:
    """The picture's lines are the layers of tests/test_architecture.py, from top to bottom."""
    (picture,) = [block[1:] for block in README.split("```")[1::2] if block.startswith("\n")]
    lines = [re.split(r"\s{3,}", line.strip())[0] for line in picture.splitlines()]
    drawn = [{room.strip() for room in line.split("·")} for line in lines]
    heights = sorted({height for room, height in LAYER.items() if not room.startswith("__")}, reverse=True)
    rooms = [{room for room, at in LAYER.items() if at == height and not room.startswith("__")} for height in heights]
    assert drawn == rooms


def test_number_of_libraries_is_right() -> None:
    """The text counts what pyproject.toml lists."""
    project = (ROOT / "pyproject.toml").read_text()
    names = re.findall(
        r'^    "([a-z.-]+)>=', project.partition("dependencies = [")[2].partition("]\n")[0], re.MULTILINE
    )
    assert len(names) == 14
    assert "The fourteen libraries" in README
    assert all(name in README for name in names)
