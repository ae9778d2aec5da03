"""docs/reliability.md agrees with the tests: what it marks as tested has a test, and every cited id is a statement."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/reliability.md").read_text()
STATEMENTS = dict(re.findall(r"^\* \*\*([A-KNST]\d+)\*\* (.*?)(?=^\* |^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
MARKS = ("Tested", "Partly", "Measured", "Not tested", "Not built")
SOURCES = {
    path: path.read_text()
    for top in ("router", "ollama_simulator", "tests", "bench")
    for path in (ROOT / top).rglob("*.py")
}
TESTS = {name for text in SOURCES.values() for name in re.findall(r"def (test_\w+)", text)}
CODED = {code.upper() for name in TESTS for code in re.findall(r"_([a-knst]\d{1,2})(?=_|$)", name)}


def mark_of(statement: str) -> str:
    (mark,) = re.findall(rf"\*\*({'|'.join(MARKS)})[.:]?\*\*", STATEMENTS[statement])
    return str(mark)


def test_ids_in_names_and_comments_are_statements() -> None:
    """`_h5_`, `(E6)` and `docs/reliability.md, C10` each cite one."""
    text = "\n".join(SOURCES.values())
    cited = set(re.findall(r"\(([A-KNST]\d{1,2})\)", text)) | CODED
    for listed in re.findall(r"reliability\.md, ([A-KNST]\d+(?:(?:, | and )[A-KNST]\d+)*)", text):
        cited |= set(re.findall(r"[A-KNST]\d+", listed))
    assert cited <= STATEMENTS.keys()


def test_ids_are_in_order_and_none_is_missing() -> None:
    """A statement that no longer holds is marked, not deleted."""
    letters = sorted({statement[0] for statement in STATEMENTS})
    counts = [sum(statement[0] == letter for statement in STATEMENTS) for letter in letters]
    assert list(STATEMENTS) == [
        f"{at}{n}" for at, count in zip(letters, counts, strict=True) for n in range(1, count + 1)
    ]


@pytest.mark.parametrize("statement", STATEMENTS)
def test_mark_agrees_with_the_tests(statement: str) -> None:
    """Tested: by a test with the id in its name or one that is named; measured: by a bench; otherwise by no test."""
    mark, named = mark_of(statement), re.findall(r"`(test_\w+)`", STATEMENTS[statement])
    assert set(named) <= TESTS
    if mark == "Tested":
        assert statement in CODED or named
    elif mark == "Measured":
        assert all((ROOT / bench).exists() for bench in re.findall(r"`(bench/\w+\.py)`", STATEMENTS[statement]))
        assert statement not in CODED
    elif mark != "Partly":
        assert statement not in CODED


def test_scenarios_that_are_named_were_recorded() -> None:
    """In docs/ollama.md an id without an asterisk is in tests/data, one with an asterisk is not."""
    recorded = json.loads(gzip.decompress((ROOT / "tests/data/scheduler/scenarios.json.gz").read_bytes()))
    known = {scenario["id"][:3] for scenario in recorded["scenarios"]}
    cited = re.findall(r"`([a-i]\d\d)(\*?)`", (ROOT / "docs/ollama.md").read_text())
    assert {name for name, star in cited if not star} <= known
    assert not {name for name, star in cited if star} & known
