"""The import rules of both packages, as tests. docs/architecture.md shows the same picture."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A module imports its own room, or a room of a lower height. The first match, longest room first, counts.
ROUTER = {
    "router/errors": 0,
    "router/core/go": 1,
    "router/core/ollama": 2,
    "router/core/memory": 3,
    "router/core/learning": 4, "router/core/payload": 4, "router/core/teams": 4,
    "router/core/decision": 5,
    "router/core/advice": 6, "router/core/nodes": 6,
    "router/core/masking": 0, "router/core/units": 0,
    "router/core": 0,  # only a docstring
    "router/adapters": 7, "router/config": 7, "router/http": 7, "router/telemetry": 7,
    "router/backend": 8,
    "router/credentials": 9, "router/routing": 9,
    "router/admin": 10, "router/api": 10,
    "router/wiring": 11,
    "router/assembly": 12,
    "router/app": 13,
    "router/planning": 14,
    "router/cli": 15,
    "router/__main__": 16,
    "router": 0,  # only the version
}  # fmt: skip
SIMULATOR = {
    "ollama_simulator/clock": 0, "ollama_simulator/gojson": 0, "ollama_simulator/run_log": 0,
    "ollama_simulator/machine": 1,
    "ollama_simulator/scheduler": 2,
    "ollama_simulator/models": 3,
    "ollama_simulator/http": 3,
    "ollama_simulator/api": 4,
    "ollama_simulator/admin": 5, "ollama_simulator/recorded": 5,
    "ollama_simulator/server": 6,
    "ollama_simulator": 0,
}  # fmt: skip
LAYER = {**ROUTER, **SIMULATOR}

# Limits on what a room may import, if its height would allow more.
ONLY = {
    "router/http": {"router/errors"},
    "ollama_simulator": {
        "ollama_simulator", "router/errors", "router/core/units", "router/core/go", "router/core/ollama",
        "router/core/memory", "router/adapters/gpu/reading",
    },
}  # fmt: skip
MAY_IMPORT_THE_SIMULATOR = {"router/planning", "router/cli"}

PURE_STDLIB = {
    "__future__", "array", "base64", "binascii", "bisect", "collections", "dataclasses", "difflib", "enum", "functools",
    "hashlib", "heapq", "hmac", "ipaddress", "itertools", "json", "math", "operator", "re", "statistics", "types",
    "typing",
}  # fmt: skip
# A third-party library has one home; swapping it is a change to that one room.
HOME = {
    "cachetools": {"router/adapters"},
    "cryptography": {"router/adapters"},
    "httptools": {"router/http"},
    "httpx": {"router/adapters", "router/cli"},
    "msgspec": {
        "router/core", "router/http", "router/adapters", "router/telemetry", "router/backend", "router/routing",
        "router/api", "router/admin", "router/cli", "ollama_simulator",
    },
    "prometheus_client": {"router/telemetry"},
    "psycopg": {"router/adapters"},
    "pydantic": {"router/config"},
    "pydantic_core": {"router/config"},
    "pynvml": {"router/adapters/gpu"},
    "rich": {"router/cli"},
    "ruamel": {"router/config", "router/cli/check"},
    "starlette": {"router/admin"},
    "typer": {"router/cli"},
    "uvloop": {"router/cli"},
    "valkey": {"router/adapters"},
    "zstandard": {"router/api"},
}  # fmt: skip
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "manager", "service", "misc"}
# The running loop keeps the time, so that router and simulator can share a virtual clock. These may read the wall
# clock: for dates in logs and responses, and for the command line.
MAY_READ_THE_WALL_CLOCK = {
    "router/telemetry", "router/app", "router/wiring", "router/cli", "router/http/server",
    "ollama_simulator", "router/adapters/sqlite_file",  # the latter waits in a thread, where there is no loop
}  # fmt: skip
MODULES = sorted(path for top in ("router", "ollama_simulator") for path in (ROOT / top).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix()


def is_in(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}/")


def room_of(name: str) -> str:
    """``router/core/decision/policy`` → ``router/core/decision``."""
    return max((room for room in LAYER if is_in(name, room)), key=len)


def nodes(tree: ast.AST, *, has_types: bool = True) -> Iterator[ast.AST]:
    """Yield every node; without types, those under `if TYPE_CHECKING:` are left out."""
    for node in ast.iter_child_nodes(tree):
        if has_types or not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from nodes(node, has_types=has_types)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def known() -> frozenset[str]:
    return frozenset(name_of(path) for path in MODULES)


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the imported modules: ours as paths, others as their dotted names. Type-only imports count."""
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            yield from (own(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            module = own(node.module or "")
            below = [f"{module}/{alias.name}" for alias in node.names]
            yield from {name if name in known() else module for name in below}


def own(dotted: str) -> str:
    return dotted.replace(".", "/") if dotted.split(".")[0] in ("router", "ollama_simulator") else dotted


def is_at_home(name: str, homes: Iterable[str]) -> bool:
    return any(is_in(name, home) for home in homes)


def breaches(name: str, tree: ast.AST) -> list[str]:
    """Return the imports of the module `name` that point up or sideways, or that take a library away from its home."""
    here = room_of(name)
    found = []
    for imported in imports(tree):
        top = imported.split("/")[0].split(".")[0]
        if top in ("router", "ollama_simulator"):
            there = room_of(imported)
            is_other_package = name.split("/")[0] != top
            is_wrong = there != here and LAYER[there] >= LAYER[here] and not is_other_package
            if is_other_package and top == "ollama_simulator":
                is_wrong = not is_at_home(name, MAY_IMPORT_THE_SIMULATOR)
            limits = [allowed for room, allowed in ONLY.items() if is_in(name, room)]
            if is_wrong or any(not is_at_home(imported, {*allowed, here}) for allowed in limits):
                found.append(f"{name} imports {imported}")
        elif top in HOME and not is_at_home(name, HOME[top]):
            found.append(f"{name} imports {imported}")
    return found


def circles(graph: Mapping[str, frozenset[str]]) -> list[list[str]]:
    """Return the first circle that is found from each module, as a list of names."""
    found, done = [], set()

    def walk(name: str, way: list[str]) -> None:
        if name in way:
            found.append([*way[way.index(name) :], name])
            return
        if name in done:
            return
        for imported in sorted(graph.get(name, ())):
            walk(imported, [*way, name])
        done.add(name)

    for name in sorted(graph):
        walk(name, [])
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down_and_libraries_stay_at_home(path: Path) -> None:
    """A module imports its own room or one strictly below; each library is imported in one room."""
    assert breaches(name_of(path), tree_of(path)) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Type-only imports count as well."""
    graph = {name_of(path): frozenset(imports(tree_of(path))) & known() for path in MODULES}
    assert circles(graph) == []


@pytest.mark.parametrize("path", sorted((ROOT / "router/core").rglob("*.py")), ids=name_of)
def test_core_is_pure(path: Path) -> None:
    """The core imports itself, errors, msgspec and the harmless part of the standard library; nothing in it awaits."""
    for imported in imports(tree_of(path)):
        top = imported.split(".")[0]
        is_own = is_in(imported, "router/core") or imported == "router/errors"
        assert is_own or top in PURE_STDLIB or top == "msgspec", f"{path.name} imports {imported}"
    for node in ast.walk(tree_of(path)):
        assert not isinstance(node, (ast.AsyncFunctionDef, ast.Await)), f"{path.name} is async"
        is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        assert not (is_call and node.func.id in {"open", "print", "input"}), f"{path.name} does I/O"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_has_a_docstring(path: Path) -> None:
    """The first lines of each module describe it."""
    assert ast.get_docstring(tree_of(path)), f"{path} has no docstring"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_does_not_have_a_generic_name(path: Path) -> None:
    """A module named `utils` collects everything."""
    assert not FORBIDDEN_NAMES & set(name_of(path).split("/"))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_logic_uses_the_time_of_the_loop_only(path: Path) -> None:
    """`time.time`, `time.monotonic` and `time.sleep` have no place in the logic."""
    if not is_at_home(name_of(path), MAY_READ_THE_WALL_CLOCK):
        assert "time" not in set(imports(tree_of(path)))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_is_in_a_room_of_the_table(path: Path) -> None:
    """A new room is placed in the table before anything is put into it."""
    room = room_of(name_of(path))
    is_root = room in ("router", "ollama_simulator", "router/core")
    assert not is_root or path.name == "__init__.py"


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("router/core/decision/policy", "from router.adapters.gpu.reading import VramProbe"),
        ("router/core/memory/weights", "from router.core.decision import policy"),
        ("router/core/payload/read", "from router.core.learning import drift"),
        ("router/adapters/gpu/nvml", "import router.config"),
        ("router/telemetry/log", "from router.adapters import ollama"),
        ("router/backend/residency", "from router.routing import dispatch"),
        ("router/routing/dispatch", "import httpx"),
        ("router/api/edge", "import httpx._client"),
        ("router/http/client/pool", "from router.core.ollama import names"),
        ("router/backend/world", "from pynvml import nvmlInit"),
        ("router/backend/world", "from ollama_simulator.clock import run_virtual"),
        ("ollama_simulator/scheduler/engine", "from router.backend.world import World"),
        ("ollama_simulator/machine/cards", "from ollama_simulator.api import chat"),
    ],
)
def test_forbidden_import_is_detected(name: str, source: str) -> None:
    """Each of these breaks a rule."""
    assert breaches(name, ast.parse(source))


def test_import_circle_is_detected() -> None:
    """The circle is found even over three modules."""
    graph = {"a": frozenset({"b"}), "b": frozenset({"c"}), "c": frozenset({"a"}), "d": frozenset({"a"})}
    assert circles(graph) == [["a", "b", "c", "a"]]
