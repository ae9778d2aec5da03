"""The simulated Ollama, alone and behind the router, gives the responses that a real Ollama gave when recorded.

    pytest tests/contract/test_api.py [--data DIR] [--ollama URL]

`README.md` in this folder lists what is compared, what is masked, and the reasons for differences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ollama_simulator.clock import run_virtual
from router.app import running
from router.config import load_config
from tests.contract.api_live import against_server
from tests.contract.api_replay import DATA, Front, Outcome, against_simulator, settings_of, transcripts

BOUND = 0.95
MORE = DATA.parent / "api_more"
PROBED = DATA.parent / "api_probed"
LEAST_AGREEING = {
    **dict.fromkeys(("blobx", "chatx", "cli", "corsx", "embedx", "evict", "gonex", "ngpu", "pullx", "rawx"), 1.0),
    **dict.fromkeys(("fresh", "remote", "show", "surrx", "toolsx"), 1.0),
    "createx": 0.98,
    "formatx": 0.96,
    "mix": 0.99,
    "opts": 0.98,
    "tmplx": 0.85,
}
"""The share of answers of each group of `PROBED` that agree, which may not fall."""
KNOWN = {
    "failures-013-broken-manifest": "the recorder damaged a manifest on the server's disk",
    "scheduler-001-ps-during-load": "a load of 5.9 s from a cold disk; the simulated disk has one speed",
}

KNOWN_OF_THE_ROUTER = {
    **KNOWN,
    "general-010-query": "a denied Origin gets a text that names the key which allows it; Ollama sends none",
    "general-011-cors-allowed": "a denied Origin gets a text that names the key which allows it; Ollama sends none",
    "general-013-cors-denied-post": "a denied Origin gets a text that names the key which allows it; Ollama sends none",
    "general-029-cors-configured": "a denied Origin gets a text that names the key which allows it; Ollama sends none",
    "http-002-content-encoding": "the router decodes zstd itself and sends errors in the dialect of the route",
    "http-008-short-body": "the router refuses an incomplete body without forwarding it",
    "scheduler-028-runner-killed-other-routes": "the router reports an interrupted stream; Ollama does not",
}


def _outcome(item: dict[str, Any], front: Front | None = None) -> Outcome:
    """One transcript's outcome; a replay that fails counts as different and does not hide the others."""
    try:
        return run_virtual(against_simulator(item, front))
    except Exception as error:
        return Outcome(item["id"], item["group"], f"replay failed: {error!r}")


def _report(outcomes: list[Outcome], title: str, known: dict[str, str]) -> None:
    """Print the table of differences (shown by pytest -s or on failure) and check the bound."""
    differing = [outcome for outcome in outcomes if outcome.difference]
    agree = len(outcomes) - len(differing)
    print(f"\n{title}: {agree} of {len(outcomes)} transcripts reproduced")
    own = [outcome for outcome in outcomes if outcome.group != "cli-errors"]
    if len(own) != len(outcomes):
        good = sum(not outcome.difference for outcome in own)
        print(f"without cli-errors (a stub answered there): {good} of {len(own)}")
    for outcome in differing:
        reason = known.get(outcome.id) or outcome.difference.split("\n")[0]
        print(f"  {outcome.id:45} {reason}")
    assert outcomes and agree / len(outcomes) >= BOUND


@pytest.mark.slow
def test_simulator_reproduces_the_recordings(request: pytest.FixtureRequest) -> None:
    """Each recorded conversation, replayed in virtual time against a fresh simulator, gets the recorded responses."""
    folder = request.config.getoption("--data")
    outcomes = [_outcome(item) for item in transcripts(Path(folder) if folder else None)]
    _report(outcomes, "simulator", KNOWN)
    if not folder:
        assert {outcome.id for outcome in outcomes if outcome.difference} <= set(KNOWN)


@pytest.mark.slow
def test_simulator_answers_probes_as_the_real_server_did() -> None:
    """Requests beyond the recordings (`data/api_more`), sent to a real server: the simulator answers alike."""
    outcomes = [_outcome(item) for item in transcripts(MORE)]
    assert outcomes and {outcome.id: outcome.difference for outcome in outcomes if outcome.difference} == {}


@pytest.mark.slow
def test_the_share_of_probes_answered_as_the_real_server_did_does_not_fall() -> None:
    """`data/api_probed`: probes of the rules, among them answers that the simulator does not give (README)."""
    asked, differing = Counter[str](), Counter[str]()
    for item in transcripts(PROBED):
        asked[item["group"]] += len(item["steps"])
        differing[item["group"]] += len(_outcome(item).difference.splitlines())
    shares = {group: 1 - differing[group] / count for group, count in asked.items()}
    print({group: f"{count - differing[group]} of {count}" for group, count in asked.items()})
    assert shares.keys() == LEAST_AGREEING.keys()
    assert {group: share for group, share in shares.items() if share < LEAST_AGREEING[group]} == {}


@asynccontextmanager
async def _router(url: str, transcript: dict[str, Any]) -> AsyncIterator[str]:
    """Run a router in front of a server without a GPU."""
    origins = settings_of(transcript)[1]
    options = {
        "listen": "127.0.0.1:0",
        "admin": "127.0.0.1:0",
        "backends.local.url": url,
        "backends.local.gpus": "none",
        "store.path": ":memory:",
        **({"origins": list(origins)} if origins else {}),
    }
    async with running(load_config(env={}, options=options), probe=None, is_probed=True) as router:
        yield router.url


@pytest.mark.slow
def test_router_in_front_of_the_simulator_reproduces_the_recordings(request: pytest.FixtureRequest) -> None:
    """Through the router, clients of a server without a GPU get the recorded responses, except for hop-by-hop parts."""
    folder = request.config.getoption("--data")
    items = [item for item in transcripts(Path(folder) if folder else None) if item["group"] != "cli-errors"]
    outcomes = [_outcome(item, _router) for item in items]
    _report(outcomes, "router in front of the simulator", KNOWN_OF_THE_ROUTER)
    if not folder:
        assert {outcome.id for outcome in outcomes if outcome.difference} <= set(KNOWN_OF_THE_ROUTER)


async def test_real_server_gives_the_recorded_answers(request: pytest.FixtureRequest) -> None:
    """A real Ollama (`--ollama URL`) gives the recorded responses to the requests that need no recorded models."""
    url = request.config.getoption("--ollama")
    if not url:
        pytest.skip("no --ollama URL")
    folder = request.config.getoption("--data")
    outcomes = await against_server(url, transcripts(Path(folder) if folder else None))
    _report(outcomes, url, {})


def test_all_groups_of_recordings_are_present() -> None:
    """`tests/data/api` has every group of the recordings."""
    assert len(list(DATA.glob("*.jsonl.gz"))) == 15
