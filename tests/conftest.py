"""What holds for every test: options of the contract tests, hypothesis profiles, clocks, and nobody's environment."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from ollama_simulator.clock import VirtualTimeLoop

TESTS = Path(__file__).parent
UNMEASURED = {
    "browser", "chart", "test_architecture.py", "test_docs.py", "test_growth.py", "test_packaging.py",
    "test_repository.py", "test_sizes.py",
}  # fmt: skip
"""Tests that add nothing to the shares of `scripts/coverage_gate.py`: measuring doubles the time of a test."""

# `fast` on each run; `HYPOTHESIS_PROFILE=deep scripts/test tests/core` when a rule has changed.
settings.register_profile(
    "fast", max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("deep", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("contract")
    group.addoption("--ollama", metavar="URL", default=None, help="run the contract tests against this Ollama as well")
    group.addoption("--data", metavar="DIR", default=None, help="replay the recordings in this folder")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow tests first, so that no worker has one left at the end; leave out of the coverage what adds nothing."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for item in items:
        if item.path.relative_to(TESTS).parts[0] in UNMEASURED:
            item.add_marker(pytest.mark.no_cover)


def pytest_collection_finish() -> None:
    """Keep what has been collected out of each further garbage collection: there are a million objects of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_environment_of_mine(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No variable of the person who runs the tests changes their outcome, and nothing is written to their home."""
    for name in list(os.environ):
        if name.upper().startswith(("OLLAMA_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")):
            monkeypatch.delenv(name)
    state: Path = tmp_path_factory.getbasetemp() / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(state))


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run tests on the virtual clock, so that a busy machine makes no deadline pass early."""
    if item.get_closest_marker("real_time"):
        return {"real": asyncio.new_event_loop}
    return {"virtual": VirtualTimeLoop}
