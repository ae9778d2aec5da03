"""What a contributor and the build server use: scripts, workflow, hooks, issue forms, a release and its sdist."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from scripts.release_checks import problems

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPTS = [
    *(f"scripts/{name}" for name in ("demo", "test", "chart", "lint", "check", "release", "test-sdist")),
    ".ci/run",
]


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_is_short_and_executable(name: str) -> None:
    """A script is at most twelve lines long and can be run directly; the shell accepts it."""
    path = ROOT / name
    assert path.stat().st_mode & 0o111
    assert len(path.read_text().splitlines()) <= 12
    subprocess.run(["sh", "-n", path], check=True)


def test_ci_runs_the_same_tests_on_every_python() -> None:
    """The build server runs what developers run, on the versions that the package names, and no foreign action."""
    assert "scripts/test" in (ROOT / ".ci/run").read_text()
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    (job,) = YAML(typ="safe", pure=True).load(text)["jobs"].values()
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert job["strategy"]["matrix"]["python"] == named
    assert job["steps"][-1]["run"] == ".ci/run"
    assert not any("uses" in step for step in job["steps"])


def test_commit_hooks_are_the_tools_of_the_project() -> None:
    """Each hook is a command of scripts/lint, run in the locked environment."""
    hooks = YAML(typ="safe", pure=True).load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in hooks] == ["local"]
    lint = (ROOT / "scripts/lint").read_text()
    assert all(hook["entry"] in lint for hook in hooks[0]["hooks"])


def test_issue_forms_ask_for_explanation_and_state() -> None:
    """A report contains the input of the decision."""
    for name in ("bug", "decision"):
        form = YAML(typ="safe", pure=True).load((ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text())
        asked = " ".join(part["attributes"].get("description", "") for part in form["body"])
        assert "ollama-router explain --json" in asked
        assert "/router/state" in asked


CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n## [1.2.0] - 2026-11-26\n\n### Added\n\n- x\n"


@pytest.mark.parametrize(
    ("tag", "changes", "changelog", "complaint"),
    [
        ("v1.2.0", "", CHANGELOG, None),
        ("v1.2.1", "", CHANGELOG, "tag it v1.2.0"),
        ("", "", CHANGELOG, "tag it v1.2.0"),
        ("v1.2.0", " M README.md", CHANGELOG, "not committed"),
        ("v1.2.0", "", CHANGELOG.replace("2026-11-26", "soon"), "no heading"),
        ("v1.2.0", "", CHANGELOG.replace("1.2.0", "1.2.01"), "no heading"),
        ("v1.2.0", "", CHANGELOG.replace("[Unreleased]\n", "[Unreleased]\n\n- y\n"), "still has entries"),
    ],
)
def test_a_release_needs_tag_version_and_changelog_to_agree(
    tag: str, changes: str, changelog: str, complaint: str | None
) -> None:
    """Each disagreement is one line."""
    found = list(problems(tag, changes, "1.2.0", changelog))
    assert len(found) == (complaint is not None)
    assert all(complaint in line for line in found if complaint)


def test_sdist_holds_what_its_tests_need(tmp_path: Path) -> None:
    """It has every file of the repository except generated ones; `scripts/test-sdist` runs the tests in it."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    for top in (
        "router",
        "ollama_simulator",
        "tests",
        "bench",
        "charts",
        "config",
        "docs",
        "scripts",
        ".ci",
        ".github",
    ):
        files = {path for path in (ROOT / top).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        assert {path.relative_to(ROOT).as_posix() for path in files if "results" not in path.parts} <= packed
    assert {"README.md", "SECURITY.md", ".dockerignore", ".pre-commit-config.yaml", "docker-compose.yml"} <= packed
