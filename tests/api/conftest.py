"""Every test of the edge runs twice: requests taken at once, where a connection is free, and all by the long way."""

from __future__ import annotations

import pytest

from tests.fakes import FakeDispatcher


@pytest.fixture(autouse=True, params=[True, False], ids=["at-once", "by-task"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDispatcher, "takes_at_once", request.param)
