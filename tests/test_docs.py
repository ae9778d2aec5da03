"""README and documents agree with the code: keys, commands, files, sections, chain and picture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest

from docs.picture import picture
from docs.picture import rows as rows_of
from docs.tables import TABLES, with_table
from router.app import LAST_SPANS_S
from router.cli.demo import SAID
from router.cli.main import COMMANDS
from router.config import Usage, load_config
from router.core.decision.fleet import breaker, rank, retries
from router.core.decision.verdict import VerdictKind
from router.routing.fleet import away, choosing, fleet
from router.telemetry import audit, log
from tests.test_architecture import ROUTER, SIMULATOR

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SERVICE = (ROOT / "config/systemd/ollama-router.service").read_text()
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
TOPS = ("router", "ollama_simulator", "tests", "bench", "scripts", "charts", "config", "docs", ".ci", ".github")
SOURCES = {".py", ".yaml", ".yml", ".md", ".toml", ".c", ""}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def citing() -> Iterator[Path]:
    """Yield the files whose comments and texts may name documents."""
    for path in (*ROOT.iterdir(), *(path for top in TOPS for path in sorted((ROOT / top).rglob("*")))):
        is_text = path.is_file() and path.suffix in SOURCES and path not in PAGES and path.name != "mkdocs.yml"
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


@pytest.mark.parametrize("page", TABLES)
def test_table_of_keys_is_that_of_the_code(page: str) -> None:
    """It has every key with default and meaning, in the order of the file; `python docs/tables.py` writes it."""
    text = (ROOT / "docs" / page).read_text()
    assert text == with_table(page, text)


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
    for script in re.findall(r"(?:scripts/[\w-]+|bench/\w+\.py)", README):
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
    """docs/architecture.md counts and names what pyproject.toml lists."""
    page = (ROOT / "docs/architecture.md").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    names = re.findall(
        r'^    "([a-z.-]+)>=', project.partition("dependencies = [")[2].partition("]\n")[0], re.MULTILINE
    )
    assert len(names) == 13
    assert "The thirteen libraries" in page
    assert all(name in page for name in names)


@pytest.mark.parametrize(
    "said",
    [
        "too big (needs ", "server busy: queued for ", "cannot listen on ", "the host name ", " is not allowed",
        "free memory is unknown: every load is verified", "no GPU: requests pass unchanged",
    ],
)  # fmt: skip
def test_symptom_of_the_readme_is_what_the_router_says(said: str) -> None:
    """Ten rows and more; each message that they quote is in the code."""
    table = README.partition("## Troubleshooting")[2].partition("\n## ")[0]
    assert said.strip() in table
    assert any(said in path.read_text() for path in (ROOT / "router").rglob("*.py"))
    assert len(re.findall(r"^\| ", table, re.MULTILINE)) >= 12


def whole(seconds: float) -> int:
    assert seconds == int(seconds)
    return int(seconds)


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("operations", f"at most {log.REFUSALS} refusals in {whole(log.REFUSALS_S)} seconds"),
        ("operations", f"each refusal (at most {audit.REFUSALS} in {whole(audit.REFUSALS_S)} seconds)"),
        ("operations", f"written every {whole(Usage().every_s)} s"),
        ("operations", f"hangs for {re.findall('^WatchdogSec=(.+)$', SERVICE, re.MULTILINE)[0]} s"),
        ("fleet", f"| {whole(away.START_S)} s | after the start requests and lists wait"),
        ("fleet", f"| {whole(choosing.FACTS_S)} s | a request waits for facts"),
        ("fleet", f"| {whole(fleet.LOOK_S)} s | a waiting request is ranked again"),
        ("fleet", f"| {whole(rank.COPY_MARGIN_S)} s | a copy must save this much"),
        ("fleet", f"| {whole(breaker.WINDOW_S)} s, {breaker.LEAST} results, half | a breaker opens"),
        ("fleet", f"| {whole(breaker.MOST_OPEN_S)} s | a breaker stays open at most"),
        ("fleet", f"| {whole(retries.WINDOW_S)} s, {retries.FREE} retries | what `fleet.retry_share`"),
        ("fleet", f"| {whole(away.RETRY_S)} s | Retry-After while the only backend"),
        ("traces", f"the router waits {['no', 'one', 'two'][whole(LAST_SPANS_S)]} seconds for the last ones"),
        ("admin-api", "`POST /router/drain?on=true` | `/readyz` says 503"),
        ("faq", "`X-Router-Strict: true`"),
    ],
)
def test_figures_of_the_documents_are_those_of_the_code(page: str, said: str) -> None:
    """The ones that are no keys: those stand in tables that the code makes."""
    text = re.sub(r"\s+", " ", (ROOT / f"docs/{page}.md").read_text())
    assert said in text


FOREIGN = {"docs/clients.md": "of a client", "docs/kubernetes.md": "values of the chart, which tests/chart checks"}
WITH_YAML = [page for page in PAGES if "```yaml\n" in page.read_text() and name_of(page) not in FOREIGN]


@pytest.mark.parametrize("page", WITH_YAML, ids=name_of)
def test_configurations_of_the_documents_are_valid(page: Path, tmp_path: Path) -> None:
    """Each block of YAML, with what a reader puts into it; those that name their file belong together."""
    (tmp_path / "teams").mkdir()
    (tmp_path / "secret").write_text("1" * 64)
    files = []
    for number, text in enumerate(re.findall(r"^```yaml\n(.*?)```", page.read_text(), re.MULTILINE | re.DOTALL)):
        named = re.match(r"# (\S+\.yaml)\n", text)
        file = tmp_path / (named[1] if named else f"{number}.yaml")
        filled = text.replace("<64 hex digits>", "0" * 64)
        file.write_text(re.sub(r"(?:/run/secrets|/etc/ollama-router)/[\w.-]+", str(tmp_path / "secret"), filled))
        files.append(file)
    for file in files:
        if file.parent.name != "teams":  # which are read by the one that names them
            load_config(file, env={})


def test_fields_of_the_audit_are_documented() -> None:
    """All of them, in their order."""
    text = (ROOT / "docs/operations.md").read_text().partition("With `audit.path`")[2].partition("Never a prompt")[0]
    named = [name for name in re.findall(r"`(\w+)`", text) if name != "traceparent"]
    assert tuple(named) == audit.AuditLine.__struct_fields__


def test_readme_stays_short() -> None:
    """Reference material is in docs."""
    assert len(README.splitlines()) <= 350


def test_picture_of_the_demo_is_what_it_says() -> None:
    """If its sentences change, `python docs/terminal.py` draws it again; it loads nothing from elsewhere."""
    drawn = (ROOT / "docs/terminal.svg").read_text()
    text = unescape(re.sub(r"<[^>]+>", "", drawn)).replace("\xa0", " ")
    assert all(sentence in text for sentence in SAID.values())
    assert "@font-face" not in drawn


def test_every_verdict_is_explained() -> None:
    """In docs/concepts.md, in the order of the code."""
    rows = re.findall(r"^\| ([^|`*]+) \| [^|]+ \|$", (ROOT / "docs/concepts.md").read_text(), re.MULTILINE)
    assert [row for row in rows if row in {kind.value for kind in VerdictKind}] == [kind.value for kind in VerdictKind]


def test_every_route_of_the_admin_address_is_documented() -> None:
    """docs/admin-api.md has a row for each, with its method."""
    page = (ROOT / "docs/admin-api.md").read_text()
    source = (ROOT / "router/admin/pages.py").read_text()
    routes = re.findall(r'Route\("([^"]+)", pages\.\w+(?:, methods=\["(\w+)"\])?\)', source)
    assert len(routes) > 10
    for path, method in routes:
        assert re.search(rf"^\| `{method or 'GET'} {re.escape(path)}[?`]", page, re.MULTILINE), path


def test_site_has_every_page_and_no_other() -> None:
    """The nav of mkdocs.yml names each file of docs once."""
    pages = re.findall(r"^ +- (?:[^:\n]+: )?([\w/.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(pages) == sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))
