"""What is shipped: few locked dependencies of safe versions, a complete wheel, an image with few rights."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import router

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNTIME = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = ["ssh", "postgres", "valkey", "otel"]
LOCKS = ["requirements.lock", *(f"requirements-{name}.lock" for name in ("dev", "build", *EXTRAS))]

# The first versions without a known vulnerability, or with a behaviour of the parser that the router relies on.
FLOORS = {
    "starlette": "1.10",  # CVE-2026-48710, -54282: request.url from Host and path; CVE-2025-62727
    "httptools": "0.9",
    "h11": "0.16",  # CVE-2025-43859: smuggling by chunk terminators
    "httpx": "0.28.1",
    "httpcore": "1.0.9",
    "pydantic": "2.12",
    "msgspec": "0.20",
    "zstandard": "0.25",
    "ruamel.yaml": "0.18.16",
    "prometheus-client": "0.23",
    "nvidia-ml-py": "13.580",
}


UNSTABLE = {"prometheus_client.utils", "ruamel.yaml.events", "ruamel.yaml.scalarstring", "typer.completion"}
"""Modules that their libraries do not document, though their names have no underscore."""


def locked(name: str) -> dict[str, tuple[str, int]]:
    """Return package → (version, number of hashes) of a lock file."""
    blocks = re.split(r"\n(?=\S)", (ROOT / name).read_text().strip())
    found = (re.match(r"([A-Za-z0-9._-]+)==([^ ;\\\n]+)", block) for block in blocks)
    return {canonicalize_name(match[1]): (match[2], match.string.count("--hash=sha256:")) for match in found if match}


def test_runtime_dependencies_are_few() -> None:
    """The package depends directly on at most fifteen libraries."""
    assert len(RUNTIME) <= 15


@pytest.mark.parametrize("name", LOCKS)
def test_lock_pins_every_package_with_hashes(name: str) -> None:
    """Each line pins one version with at least one hash, and names no index, host or path."""
    text = (ROOT / name).read_text()
    packages = locked(name)
    assert packages
    assert len(packages) == len(re.findall(r"^\S", text, re.MULTILINE))
    assert all(hashes for _, hashes in packages.values())
    assert "://" not in text and "--index" not in text and "@" not in text


def test_locks_cover_what_the_project_asks_for() -> None:
    """The locked versions satisfy pyproject.toml, and the locks agree with each other."""
    runtime, development, build, *extras = (locked(name) for name in LOCKS)
    for requirement in RUNTIME:
        pinned, _ = runtime[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pinned), requirement
    for name, pins in zip(EXTRAS, extras, strict=True):
        for requirement in map(Requirement, PROJECT["optional-dependencies"][name]):
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)][0])
        assert pins.items() <= development.items()
    for text in PROJECT["optional-dependencies"]["test"]:
        assert canonicalize_name(Requirement(text).name) in development
    assert runtime.items() <= development.items()
    assert build.items() <= development.items()


@pytest.mark.parametrize(("package", "floor"), FLOORS.items())
def test_installed_version_is_safe(package: str, floor: str) -> None:
    """Installed, locked and allowed versions are at least those without known vulnerabilities."""
    assert Version(version(package)) >= Version(floor)
    asked = [
        requirement for requirement in RUNTIME if canonicalize_name(requirement.name) == canonicalize_name(package)
    ]
    below = str(Version(f"{floor}.dev0"))
    assert not any(requirement.specifier.contains(below, prereleases=True) for requirement in asked)


def test_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    """The dashboard, the simulator's models and the type marker are in it; tests and bytecode are not."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"ollama_router-{router.__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"router/py.typed", "router/admin/dashboard/index.html", "router/core/decision/policy.py"} <= names
    assert any(name.startswith("ollama_simulator/models/") and name.endswith(".gz") for name in names)
    assert all(name.startswith(("router/", "ollama_simulator/", "ollama_router-")) for name in names)
    tops = ("router", "ollama_simulator")
    source = {path.relative_to(ROOT).as_posix() for top in tops for path in (ROOT / top).rglob("*.py")}
    assert source <= names
    entry = next(name for name in names if name.endswith("entry_points.txt"))
    assert "ollama-router = router.cli.main:run" in zipfile.ZipFile(wheel).read(entry).decode()
    assert not [name for name in names if name.endswith((".pth", ".pyc"))]


def test_wheel_brings_examples_units_and_dashboards(tmp_path: Path) -> None:
    """All of `config`, below `router/shipped`, where `ollama-router init --examples` looks first."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name.removeprefix("router/shipped/") for name in zipfile.ZipFile(wheel).namelist()}
    files = {path.relative_to(ROOT / "config").as_posix() for path in (ROOT / "config").rglob("*") if path.is_file()}
    assert files <= packed
    unpacked = tmp_path / "unpacked"
    zipfile.ZipFile(wheel).extractall(unpacked)
    code = "from router.cli.shipped import shipped; print(shipped('examples/slow-70b.yaml').read_text())"
    env = {**os.environ, "PYTHONPATH": str(unpacked)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "llama3.3:70b:" in done.stdout, done.stderr


def undocumented() -> set[str]:
    """Return the libraries of which a module uses what they do not document: an underscore in a name, or `UNSTABLE`."""
    found = set()
    for top in ("router", "ollama_simulator"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module:
                    names = [*node.module.split("."), *(alias.name for alias in node.names)]
                    is_private = any(name.startswith("_") for name in names if name != "__future__")
                    if (is_private or node.module in UNSTABLE) and names[0] not in ("router", "ollama_simulator"):
                        found.add(names[0])
    return found


def test_a_library_of_which_an_internal_is_used_has_an_upper_bound() -> None:
    """An internal may change in any release; a documented name keeps its meaning."""
    used = undocumented() - set(sys.stdlib_module_names)
    assert {"typer", "prometheus_client", "ruamel"} <= used
    bounded = {
        canonicalize_name(requirement.name)
        for requirement in RUNTIME
        if any(one.operator == "<" for one in requirement.specifier)
    }
    assert {{"ruamel": "ruamel-yaml"}.get(name, canonicalize_name(name)) for name in used} <= bounded


def test_locks_of_tools_are_hashed_too() -> None:
    """What builds the site of the documents is not part of the package or its tests, and pinned all the same."""
    blocks = re.split(r"\n(?=\S)", (ROOT / "requirements-docs.lock").read_text().strip())
    assert all(re.match(r"[\w.-]+==\S+", block) and "--hash=sha256:" in block for block in blocks)
    assert "requirements-docs.lock" not in (ROOT / "scripts/test").read_text()


def test_the_router_does_not_import_the_simulator() -> None:
    """It comes with the package, for `simulate` and `demo`; what serves does not load it."""
    code = "import sys, router.cli.serve; print([name for name in sys.modules if name.startswith('ollama_simulator')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr


def test_image_runs_as_nobody_in_particular_and_installs_by_hash() -> None:
    """No root, no pip, no shell at run time; its health check is readiness."""
    lines = (ROOT / "Dockerfile").read_text()
    stages = lines.split("\nFROM ")
    assert all(f"--require-hashes -r {name}" in lines for name in ("requirements.lock", "requirements-build.lock"))
    final = stages[-1]
    assert re.search(r"^USER \d+:\d+$", final, re.MULTILINE)
    assert "pip" not in final
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert all(f"COPY {name} ./{name}\n" in lines and f"!{name}" in ignored for name in (*packages, "config"))
    assert "11436/readyz" in final
    assert 'ENTRYPOINT ["ollama-router"]' in final
    assert "NVIDIA_DRIVER_CAPABILITIES=utility" in final


def test_image_may_have_each_extra_by_its_lock() -> None:
    """`--build-arg EXTRAS="valkey postgres"`; without it the image is as small as the router."""
    lines, ignored = (ROOT / "Dockerfile").read_text(), (ROOT / ".dockerignore").read_text().splitlines()
    extras = PROJECT["optional-dependencies"].keys() - {"build", "test"}
    locks = {f"requirements-{extra}.lock" for extra in extras}
    (copied,) = [line.split()[1:-1] for line in lines.splitlines() if line.startswith("COPY requirements")]
    assert locks <= set(copied) == {line.removeprefix("!") for line in ignored if line.endswith(".lock")}
    assert all((ROOT / lock).exists() for lock in copied)
    assert 'ARG EXTRAS=""\n' in lines
    assert '--require-hashes -r "requirements-$extra.lock"' in lines


def test_changelog_and_license_are_for_this_version() -> None:
    """The changelog keeps its format, and the license is the one that the package names."""
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
    assert PROJECT["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
