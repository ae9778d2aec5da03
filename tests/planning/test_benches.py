"""The benches run, and say the same things in small as in large."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.slow


def run(script: str, *options: str) -> str:
    """Run a bench; its own verdict must be good."""
    command = [sys.executable, str(ROOT / "bench" / script), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=1000)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_workloads_compares_every_rule_on_the_same_requests(tmp_path: Path) -> None:
    """The start of the nightly batch: nobody beats the bound, and the router neither fails nor spills."""
    file = tmp_path / "found.json"
    text = run("workloads.py", "--kind", "batch", "--requests", "25", "--json", str(file))
    found: dict[str, dict[str, Any]] = {one["rule"]: one for one in json.loads(file.read_text())}
    assert list(found) == ["Ollama alone", "router", "first come", "batch by model", "best found", "bound"]
    assert {one["requests"] for one in found.values() if "requests" in one} == {25}
    assert all(found["bound"]["mean_s"] <= one["mean_s"] for one in found.values())
    assert found["router"]["failed"] == found["router"]["spilled_loads"] == 0
    assert found["batch by model"]["below_best"] == 0
    assert "on the cost model" in text


def test_trace_counts_loads_and_answers_while_foreign_memory_moves(tmp_path: Path) -> None:
    """With memory that moves during loads: nothing spilled is served; what is below best is a part of the smaller."""
    file = tmp_path / "found.json"
    run("trace.py", "--requests", "25", "--foreign", "during", "--json", str(file))
    found = json.loads(file.read_text())
    assert found["alone"]["spilled loads"] > 0
    assert found["router"]["spilled"] == 0
    assert found["router"]["below best"] <= found["router"]["by a smaller variant"]


def test_spills_counts_loads_as_well_as_answers() -> None:
    """Two machines; an answer from a spilled model had a spilled load."""
    lines = [line.split() for line in run("spills.py", "--sequences", "2").splitlines()]
    alone = {" ".join(line[:-2]): int(line[-2]) for line in lines[1:]}
    assert alone["requests"] == 16
    assert alone["loads"] >= alone["spilled loads"]
    assert (alone["spilled loads"] > 0) == (alone["spilled"] > 0)


def test_fleet_needs_few_of_the_loads_and_waits_of_round_robin() -> None:
    """Its own verdict."""
    assert "round robin" in run("fleet.py", "--requests", "4000", "--seeds", "1")


def test_thrash_shows_that_alternating_models_do_not_evict_each_other() -> None:
    """Its own verdict: a fifth of Ollama's loads at most."""
    assert "two in turn" in run("thrash.py", "--requests", "20")


def test_teams_keeps_a_flood_from_costing_others_and_gives_each_team_its_share() -> None:
    """Its own verdict: both floods, two teams that wait throughout, shares of 3 and 1, three teams on two cards."""
    text = run("teams.py", "--seconds", "600")
    assert "FAILS" not in text
    assert text.count("router") == 12
