"""Files, classes and constructors stay small, and no object's state is written from outside."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_architecture import MODULES, ROOT, name_of, tree_of

MOST_LINES_OF_A_MODULE = 300
MOST_LINES_OF_A_CLASS = 250
MOST_LINES_OF_A_CONSTRUCTOR = 30
KEEP_THEIR_STATE = ("router/backend/", "router/routing/")


def lines_of(node: ast.AST) -> int:
    assert isinstance(node, (ast.ClassDef, ast.FunctionDef))
    return (node.end_lineno or 0) - node.lineno + 1


def foreign_writes(tree: ast.AST) -> Iterator[str]:
    """Yield assignments to an attribute of anything but `self`: ``a.b = …``, ``self.a.b += …``, ``del a.b``."""
    for node in ast.walk(tree):
        targets = []
        if isinstance(node, (ast.Assign, ast.Delete)):
            targets = node.targets
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            targets = [node.target]
        for target in targets:
            for part in ast.walk(target):
                is_write = isinstance(part, ast.Attribute) and isinstance(part.ctx, (ast.Store, ast.Del))
                if is_write and ast.unparse(part.value) != "self":
                    yield f"line {part.lineno}: {ast.unparse(part)}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_classes_and_constructors_stay_small(path: Path) -> None:
    """A module has at most 300 lines, a class 250, a constructor 30."""
    assert len(path.read_text().splitlines()) <= MOST_LINES_OF_A_MODULE
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ClassDef):
            assert lines_of(node) <= MOST_LINES_OF_A_CLASS, node.name
        elif isinstance(node, ast.FunctionDef) and node.name == "__init__":
            assert lines_of(node) <= MOST_LINES_OF_A_CONSTRUCTOR, f"line {node.lineno}"


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path).startswith(KEEP_THEIR_STATE)], ids=name_of)
def test_state_is_changed_by_methods_only(path: Path) -> None:
    """No object writes another object's attributes."""
    assert list(foreign_writes(tree_of(path))) == []


@pytest.mark.parametrize("source", ["a.b = 1", "self.a.b += 1", "x, a.b = 1, 2", "del a.b", "a.b: int = 1"])
def test_a_foreign_write_is_detected(source: str) -> None:
    """Each of these is one."""
    assert list(foreign_writes(ast.parse(source)))


def test_a_write_to_own_state_is_allowed() -> None:
    """An object may write its own attributes and local variables."""
    assert list(foreign_writes(ast.parse("self.a = 1\nself.b += 1\na = 1\na[0] = 1"))) == []


def test_both_packages_are_measured() -> None:
    """The list of modules is not empty by accident."""
    assert len(MODULES) > 150
    assert (ROOT / "router/errors.py") in MODULES
