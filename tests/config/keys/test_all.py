"""No key is decoration: each has a test in this folder that changes it and observes another behaviour."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.config.keys.marks import keys, unproven

HERE = Path(__file__).parent


def marked_keys():
    """The keys that tests of this folder are marked with, each with the names of its tests."""
    found = {}
    for path in sorted(HERE.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
                for key in _marks(node):
                    found.setdefault(key, []).append(f"{path.name}::{node.name}")
    return found


def _marks(function):
    for call in function.decorator_list:
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.key":
            yield from (ast.literal_eval(argument) for argument in call.args)


def test_every_key_of_the_schema_has_a_test_here():
    """A new key needs a test that is marked with it; `conftest.py` holds the test to its mark."""
    assert keys() - marked_keys().keys() == set()


def test_no_test_is_marked_with_a_key_that_does_not_exist():
    """A key that was renamed or removed takes its mark along."""
    known = keys()
    assert {key: tests for key, tests in marked_keys().items() if key not in known} == {}


def test_a_mark_counts_only_where_two_values_were_in_force():
    """One configuration proves nothing, and neither do two with the same value."""
    first, second = {"queue": {"wait_s": 1}, "hosts": []}, {"queue": {"wait_s": 2}, "hosts": []}
    assert unproven(["queue.wait_s", "hosts"], [first, second]) == ["hosts"]
    assert unproven(["queue.wait_s"], [first, first]) == ["queue.wait_s"]


def test_a_mark_finds_keys_within_named_entries_and_lists():
    """`*` stands for the name of a chain and for a place in a list; an entry that is missing is a value too."""
    none = {"chains": {}}
    short = {"chains": {"a": {"variants": "auto"}}}
    long = {"chains": {"b": {"variants": [{"model": "x"}]}}}
    assert unproven(["chains.*.variants", "chains.*.variants.*.model"], [short, long]) == []
    assert unproven(["chains.*.variants.*.model"], [none, short]) == ["chains.*.variants.*.model"]
