"""The Date header, which follows the wall clock."""

from __future__ import annotations

from email.utils import formatdate, parsedate_to_datetime

import pytest

from router.http.server.rendering import DateLine


class Clock:
    """A wall clock that a test sets."""

    now_s = 1_800_000_000.25

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0, 3e8, -3e8, 0.0])
def test_a_date_follows_a_clock_that_is_set_within_a_second_j10(jump_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ahead, back, or standing still; it is rendered once in a second of the loop nevertheless."""
    clock, line = Clock(), DateLine()
    monkeypatch.setattr("router.http.server.rendering.time.time", clock)
    first = line.at(50.0)
    assert first == f"date: {formatdate(clock.now_s, usegmt=True)}\r\n".encode()
    clock.now_s += jump_s
    assert line.at(50.5) is first
    later = line.at(51.0)
    assert parsedate_to_datetime(later.decode()[6:].strip()).timestamp() == int(clock.now_s)
