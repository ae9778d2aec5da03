"""What a router has made lately, on times that the tests set."""

from __future__ import annotations

from router.core.teams.pace import Recent


def test_requests_that_were_never_told_are_told_for_a_minute() -> None:
    """After that the store counts them no more, so that they are none that it has to hear of."""
    recent = Recent()
    recent.add(0.5, is_known=False)
    recent.add(30.0, is_known=False)
    recent.add(30.2, is_known=True)
    assert recent.has_late
    assert recent.tell(61.0) == 1
    assert not recent.has_late
    assert recent.tell(61.0) == 0


def test_what_is_older_than_a_minute_is_forgotten() -> None:
    """A store that has lost everything is told of the last minute alone."""
    recent = Recent()
    recent.add(0.0, is_known=True)
    recent.add(1.0, is_known=True)
    recent.add(60.0, is_known=True)
    recent.forget()
    assert recent.tell(0.0) == 2
