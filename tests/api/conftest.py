"""Every test of the edge runs twice: on the fast path if a connection is free, and with a task per request."""

from __future__ import annotations

import pytest

from tests.fakes import FakeDispatcher


@pytest.fixture(autouse=True, params=[True, False], ids=["at-once", "by-task"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDispatcher, "takes_at_once", request.param)
