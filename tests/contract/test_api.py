"""The simulated Ollama, and the router before it, answer as the real Ollama of the recordings did.

    pytest tests/contract/test_api.py [--data DIR] [--ollama URL]

`README.md` beside this file says what is compared, what is masked, and why the rest differs.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from router.simulator.clock import run_virtual
from tests.contract.api_live import against_server
from tests.contract.api_replay import DATA, Outcome, against_simulator, transcripts

BOUND = 0.95
KNOWN = {
    "failures-011-broken-cut": "the recorder cut a weights file on the server's disk",
    "failures-013-broken-manifest": "the recorder broke a manifest on the server's disk",
    "scheduler-001-ps-during-load": "a load of 5.9 s from a cold disk; the simulated disk has one speed",
}


def _report(outcomes: list[Outcome], title: str) -> None:
    """The table of what differs, printed (pytest -s, or on failure), and the bound."""
    differing = [outcome for outcome in outcomes if outcome.difference]
    agree = len(outcomes) - len(differing)
    print(f"\n{title}: {agree} of {len(outcomes)} transcripts reproduced")
    own = [outcome for outcome in outcomes if outcome.group != "cli-errors"]
    if len(own) != len(outcomes):
        good = sum(not outcome.difference for outcome in own)
        print(f"without cli-errors (a stub answered there): {good} of {len(own)}")
    for outcome in differing:
        reason = KNOWN.get(outcome.id) or outcome.difference.split("\n")[0]
        print(f"  {outcome.id:45} {reason}")
    assert outcomes and agree / len(outcomes) >= BOUND


def test_simulator_reproduces_the_recordings(request: pytest.FixtureRequest) -> None:
    """Each recorded conversation, replayed in virtual time against a fresh simulator, gives the recorded answers."""
    folder = request.config.getoption("--data")
    outcomes = [run_virtual(against_simulator(item)) for item in transcripts(Path(folder) if folder else None)]
    _report(outcomes, "simulator")
    if not folder:
        assert {outcome.id for outcome in outcomes if outcome.difference} <= set(KNOWN)


async def test_real_server_gives_the_recorded_answers(request: pytest.FixtureRequest) -> None:
    """A real Ollama (`--ollama URL`) answers the requests that need none of the recording's models as recorded."""
    url = request.config.getoption("--ollama")
    if not url:
        pytest.skip("no --ollama URL")
    folder = request.config.getoption("--data")
    outcomes = await against_server(url, transcripts(Path(folder) if folder else None))
    _report(outcomes, url)


def test_recordings_are_all_there() -> None:
    """The project's own copy has every group of the recordings."""
    assert len(list(DATA.glob("*.jsonl.gz"))) == 15
