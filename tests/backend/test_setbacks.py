"""What follows from switches that did not end well."""

from __future__ import annotations

from router.backend.setbacks import AWAY_PAUSE_S, MAX_AWAY_PAUSE_S, Setbacks
from router.backend.switches import SwitchResult


def test_an_ollama_that_is_away_for_days_is_asked_again_after_the_longest_pause():
    """However often it was asked before."""
    setbacks = Setbacks()
    pauses_s = []
    for _ in range(2000):
        assert setbacks.count("weights", SwitchResult.AWAY, "", 0.0) is None
        pauses_s.append(setbacks.paused_until_s)
    assert all(MAX_AWAY_PAUSE_S / 2 <= pause_s <= MAX_AWAY_PAUSE_S for pause_s in pauses_s[3:])
    assert AWAY_PAUSE_S / 2 <= pauses_s[0] <= AWAY_PAUSE_S
    assert setbacks.has_given_up
