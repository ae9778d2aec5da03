"""README and documents agree with the code: keys, commands, files, sections, chain and picture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from docs.picture import picture
from docs.picture import rows as rows_of
from router.cli.main import COMMANDS
from router.config import Address, ChainSection, Config, StaticGpu, TeamSection, VariantSection, load_config
from tests.test_architecture import ROUTER, SIMULATOR

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
TOPS = ("router", "ollama_simulator", "tests", "bench", "scripts", "config", "docs", ".ci", ".github")
SOURCES = {".py", ".yaml", ".yml", ".md", ".toml", ".c", ""}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def citing() -> Iterator[Path]:
    """Yield the files whose comments and texts may name documents."""
    for path in (*ROOT.iterdir(), *(path for top in TOPS for path in sorted((ROOT / top).rglob("*")))):
        is_text = path.is_file() and path.suffix in SOURCES and path not in PAGES
        if is_text and not name_of(path).startswith((".git/", ".coverage")):
            yield path


def broken_citations(path: Path) -> Iterator[str]:
    text = re.sub(r"\s*\n[ \t#]*", " ", path.read_text())
    for name, sections in re.findall(r"(?<![\w/.-])/?([\w./-]+\.md)((?:,? (?:and |to )?\"[A-Z][^\"]+\")*)", text):
        found = [place for place in (ROOT / name, path.parent / name) if place.exists()]
        quoted = set(re.findall(r'"([^"]+)"', sections))
        if not found or quoted - set(headings(found[0])):
            yield name + sections


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)


def slug(heading: str) -> str:
    """Return the anchor of a heading on GitHub."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def written(value: object) -> str:
    """Return a default as YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return str(value) if isinstance(value, (str, int, Address)) else ""


def rows(section: BaseModel | type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (key, default, meaning) of every key at and below a section."""
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
    """It has every key with default and meaning, in the order of the file, and nothing else."""
    table = README.partition("<!-- config table -->\n")[2].partition("<!-- end")[0]
    lines = ["| key | default | meaning |", "| --- | --- | --- |"]
    for key, default, meaning in rows(Config()):
        lines.append(f"| `{key}` | {f'`{default}`' if default else ''} | {meaning} |")
    assert table.splitlines() == lines


def test_table_of_a_teams_file_is_that_of_the_code() -> None:
    """docs/teams.md has every key of a team's file with default and meaning, in the order of the schema."""
    table = (ROOT / "docs/teams.md").read_text().partition("<!-- team table -->\n")[2].partition("<!-- end")[0]
    lines = ["| key | default | meaning |", "| --- | --- | --- |"]
    for key, default, meaning in team_rows(TeamSection):
        lines.append(f"| `{key}` | {f'`{default}`' if default else ''} | {meaning} |")
    assert table.splitlines() == lines


def team_rows(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (key, default, meaning) of every key of a team's file."""
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


def test_chain_of_the_readme_is_the_shipped_example(tmp_path: Path) -> None:
    """The README's YAML is valid, and equals the file in config/examples."""
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    file = tmp_path / "router.yaml"
    file.write_text(block)
    config = load_config(file, env={})
    assert config == load_config(ROOT / "config/examples/slow-70b.yaml", env={})


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_in_the_readme(command: str) -> None:
    """Every command has its row."""
    assert f"| `ollama-router {command}" in README


def test_commands_and_scripts_of_the_readme_exist() -> None:
    """Every `ollama-router X` in the text is a command, and every script is a file."""
    assert set(re.findall(r"ollama-router (?!`)([a-z]+)", README.partition("\n")[2])) <= {*COMMANDS, "speaks"}
    for script in re.findall(r"(?:scripts/\w+|bench/\w+\.py)", README):
        assert (ROOT / script).exists()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    """Relative links are not broken, their anchors included."""
    for target, _, anchor in re.findall(r"\]\(([^)#:\s]*)(#([\w-]+))?\)", page.read_text()):
        path = page.parent / target if target else page
        assert path.exists(), target
        assert not anchor or anchor in {slug(heading) for heading in headings(path)}, f"{target}#{anchor}"


@pytest.mark.parametrize("page", [path for path in PAGES if path.parent.name == "docs"], ids=name_of)
def test_documents_name_files_that_exist(page: Path) -> None:
    """Every path of a source file in a document leads to a file."""
    named = re.findall(r"`((?:router|ollama_simulator|tests|bench|docs|config|scripts)/[\w/.-]+)`", page.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_citations_lead_to_documents_of_the_repository() -> None:
    """A document that code or tests cite exists, from the root or beside the file, and so do the quoted sections."""
    missing = [f"{name_of(path)}: {text}" for path in citing() for text in broken_citations(path)]
    assert missing == []


@pytest.mark.parametrize(("package", "layers"), [("router", ROUTER), ("ollama_simulator", SIMULATOR)])
def test_picture_shows_every_room_at_its_height(package: str, layers: dict[str, int]) -> None:
    """The lines of the picture are the heights of tests/test_architecture.py, from top to bottom."""
    rooms = {room.partition("/")[2]: height for room, height in layers.items()}
    rooms = {room: height for room, height in rooms.items() if room not in ("", "core", "__main__")}
    heights = sorted(set(rooms.values()), reverse=True)
    drawn = [set(line) for line, _ in rows_of((ROOT / "docs/architecture.md").read_text(), package)]
    assert drawn == [{room for room, at in rooms.items() if at == height} for height in heights]


def test_drawing_is_that_of_the_text() -> None:
    """If the pictures in docs/architecture.md change, `python docs/picture.py` draws them again."""
    assert (ROOT / "docs/architecture.svg").read_text() == picture((ROOT / "docs/architecture.md").read_text())


def test_number_of_libraries_is_right() -> None:
    """The README counts and names what pyproject.toml lists."""
    project = (ROOT / "pyproject.toml").read_text()
    names = re.findall(
        r'^    "([a-z.-]+)>=', project.partition("dependencies = [")[2].partition("]\n")[0], re.MULTILINE
    )
    assert len(names) == 13
    assert "The thirteen libraries" in README
    assert all(name in README for name in names)
