"""What follows from switches that did not end well."""

from __future__ import annotations

import pytest

from router.backend.cards import NO_GPU_S
from router.backend.setbacks import (
    ABANDONED_PAUSE_S,
    AWAY_PAUSE_S,
    MAX_STRIKES,
    MAX_TAKEN_PAUSE_S,
    NO_GPU,
    PAUSE_S,
    TAKEN_PAUSE_S,
    Bar,
    Setbacks,
)
from router.backend.switches import SwitchResult
from router.config import Switch
from router.core.decision.snapshot import ALL_WEIGHTS

SETTINGS = Switch()


def test_an_ollama_that_is_away_for_days_is_asked_again_after_the_longest_pause():
    """However often it was asked before."""
    setbacks = Setbacks(SETTINGS)
    pauses_s = []
    for _ in range(2000):
        assert setbacks.count("weights", SwitchResult.AWAY, "", 0.0) is None
        pauses_s.append(setbacks.paused_until_s)
    assert all(SETTINGS.away_pause_s / 2 <= pause_s <= SETTINGS.away_pause_s for pause_s in pauses_s[3:])
    assert AWAY_PAUSE_S / 2 <= pauses_s[0] <= AWAY_PAUSE_S
    assert setbacks.has_given_up


def test_a_switch_that_nobody_waits_for_is_not_followed_by_the_next_one_at_once():
    """Whoever wants the same again a moment later must not make it spin."""
    setbacks = Setbacks(SETTINGS)
    setbacks.count("weights", SwitchResult.ABANDONED, "", 100.0)
    assert setbacks.paused_until_s == 100.0 + ABANDONED_PAUSE_S


def test_only_switches_in_a_row_count_as_strikes() -> None:
    """One that succeeded, or that no request waited for any more, starts anew."""
    for end in (SwitchResult.DONE, SwitchResult.ABANDONED):
        setbacks = Setbacks(SETTINGS)
        for _ in range(3):
            for _ in range(MAX_STRIKES - 1):
                assert setbacks.count("a", SwitchResult.SPILLED, "", 0.0) is None
            setbacks.count("a", end, "", 0.0)


def test_each_bar_names_its_weights_its_time_and_its_reason() -> None:
    """A failed load at once; what moved or spilled after some strikes; a lost GPU bars everything."""
    setbacks = Setbacks(SETTINGS)
    assert setbacks.count("a", SwitchResult.FAILED, "out of memory", 0.0) == Bar("a", SETTINGS.bar_s, "out of memory")
    assert setbacks.count("a", SwitchResult.ON_CPU, "", 0.0) == Bar(ALL_WEIGHTS, NO_GPU_S, NO_GPU)
    moved = [setbacks.count("a", SwitchResult.MOVED, "", 0.0) for _ in range(MAX_STRIKES)]
    assert moved == [None] * (MAX_STRIKES - 1) + [Bar("a", PAUSE_S, SwitchResult.MOVED.value)]


def test_a_model_that_nobody_waits_for_as_soon_as_its_switch_has_begun_is_not_tried_without_a_pause() -> None:
    """A short one at first; from the second time in a row on longer each time, up to a bound."""
    setbacks, pauses_s = Setbacks(SETTINGS), []
    for _ in range(20):
        assert setbacks.count("a", SwitchResult.ABANDONED, "", 100.0) is None
        pauses_s.append(setbacks.paused_until_s - 100.0)
    assert pauses_s[0] == pytest.approx(ABANDONED_PAUSE_S)
    assert all(TAKEN_PAUSE_S / 2 <= pause_s <= MAX_TAKEN_PAUSE_S for pause_s in pauses_s[1:])
    assert pauses_s[-1] >= MAX_TAKEN_PAUSE_S / 2
    setbacks.count("a", SwitchResult.DONE, "", 100.0)
    setbacks.count("a", SwitchResult.ABANDONED, "", 100.0)
    assert setbacks.paused_until_s == pytest.approx(100.0 + ABANDONED_PAUSE_S)


def test_what_was_forgotten_has_no_strikes() -> None:
    """Of one model, or of all."""
    for forgotten in ("a", None):
        setbacks = Setbacks(SETTINGS)
        for _ in range(MAX_STRIKES - 1):
            setbacks.count("a", SwitchResult.MOVED, "", 0.0)
        setbacks.forget(forgotten)
        assert setbacks.count("a", SwitchResult.MOVED, "", 0.0) is None
