"""The import rules of the package, as tests. The README shows the same picture."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "router"

# Lower number = lower layer. A module imports its own room, or a room strictly below.
LAYER = {
    "errors": 0,
    "core": 1,
    "config": 2, "adapters": 2, "telemetry": 2,
    "world": 3, "chains": 3, "call": 3, "simulator": 3,
    "residency": 4,
    "queueing": 5, "keepalive": 5, "derived": 5,
    "decisions": 6,
    "dispatch": 7, "directory": 7,
    "server": 8, "inspector": 8, "warmup": 8,
    "app": 9,
    "cli": 10,
    "__main__": 11,
    "__init__": 0,  # the version, nothing else
}  # fmt: skip
PURE_STDLIB = {
    "__future__", "bisect", "collections", "dataclasses", "enum", "functools", "itertools", "json", "math", "re",
    "statistics", "types", "typing",
}  # fmt: skip
# A third-party library has one home; swapping it is a change to that one room.
HOME = {
    "cachetools": {"adapters"},
    "httptools": {"adapters/relay", "simulator", "server"},
    "httpx": {"adapters", "cli"},
    "msgspec": {"call", "core", "dispatch", "adapters", "telemetry", "server", "simulator", "cli"},
    "prometheus_client": {"telemetry"},
    "pydantic": {"config"},
    "pydantic_core": {"config"},
    "pynvml": {"adapters"},
    "rich": {"cli"},
    "ruamel": {"config", "cli/check"},
    "starlette": {"app", "server"},
    "typer": {"cli"},
    "uvicorn": {"cli", "app", "server"},
    "uvloop": {"cli"},
    "zstandard": {"server"},
}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "manager", "service", "misc"}
# Everything is timed by the running loop, so that router and simulator can share a virtual clock. These may ask the
# wall: dates in logs and answers, and the outermost command line.
MAY_READ_THE_WALL_CLOCK = {"telemetry", "app", "cli", "simulator", "server"}
MODULES = sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix()


def room_of(dotted: str) -> str:
    """``router.core.decision.policy`` → ``core``."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under `if TYPE_CHECKING:`, which are never imported."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from nodes(node)


def imports(tree: ast.AST) -> Iterator[str]:
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            if node.module == "router":
                yield from (f"router.{alias.name}" if alias.name in LAYER else "router" for alias in node.names)
            else:
                yield node.module or ""


def is_at_home(name: str, homes: set[str]) -> bool:
    return any(name == home or name.startswith((f"{home}/", f"{home}_")) for home in homes)


def breaches(name: str, tree: ast.AST) -> list[str]:
    """Imports of the module `name` that point up or sideways, or bring a library away from its home."""
    here = name.split("/")[0]
    found = []
    for imported in imports(tree):
        top = imported.split(".")[0]
        if top == "router":
            there = room_of(imported)
            if there != here and LAYER[there] >= LAYER[here]:
                found.append(f"{name} imports {imported}")
        elif top in HOME and not is_at_home(name, HOME[top]):
            found.append(f"{name} imports {imported}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down_and_libraries_stay_at_home(path: Path) -> None:
    """A module imports its own room or one strictly below; each library is imported in one room."""
    assert breaches(name_of(path), ast.parse(path.read_text())) == []


@pytest.mark.parametrize("path", sorted((ROOT / "core").rglob("*.py")), ids=name_of)
def test_core_is_pure(path: Path) -> None:
    """The core imports itself, errors, msgspec and the harmless part of the standard library; nothing in it awaits."""
    tree = ast.parse(path.read_text())
    for imported in imports(tree):
        top = imported.split(".")[0]
        is_own = imported.startswith("router.core") or imported == "router.errors"
        assert is_own or top in PURE_STDLIB or top == "msgspec", f"{path.name} imports {imported}"
    for node in ast.walk(tree):
        assert not isinstance(node, (ast.AsyncFunctionDef, ast.Await)), f"{path.name} is async"
        is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        assert not (is_call and node.func.id in {"open", "print", "input"}), f"{path.name} does I/O"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_opens_with_what_lives_there(path: Path) -> None:
    """Each module says in its first lines what it is."""
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_has_a_name_that_says_something(path: Path) -> None:
    """No drawer for everything."""
    assert not FORBIDDEN_NAMES & set(name_of(path).split("/"))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_time_is_the_loops(path: Path) -> None:
    """`time.time`, `time.monotonic` and `time.sleep` have no place in the logic."""
    if name_of(path).split("/")[0] not in MAY_READ_THE_WALL_CLOCK:
        assert "time" not in set(imports(ast.parse(path.read_text())))


def test_every_room_has_a_layer() -> None:
    """A new room is placed in the table before anything is put into it."""
    rooms = {name_of(path).split("/")[0] for path in MODULES}
    assert rooms <= LAYER.keys()


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("core/policy", "from router.adapters.gpu import VramProbe"),
        ("adapters/gpu", "import router.config"),
        ("telemetry/log", "from router.adapters import ollama"),
        ("residency", "from router import dispatch"),
        ("dispatch", "import httpx"),
        ("server/api", "import httpx._client"),
        ("world", "from pynvml import nvmlInit"),
        ("simulator/engine", "from router.world import World"),
    ],
)
def test_breach_is_seen(name: str, source: str) -> None:
    """The rules catch what they are for."""
    assert breaches(name, ast.parse(source))
