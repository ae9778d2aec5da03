"""Usage is summed by key, in bounded memory, and taken in the order of its keys."""

from __future__ import annotations

import pytest

from router.core.teams.usage import Figures, Ledger, UsageKey, hour_of


def key(hour: int = 0, team: str = "coding", model: str = "big") -> UsageKey:
    return UsageKey(hour, team, "ci", model, "local", "chat")


def test_rows_of_one_key_are_summed() -> None:
    ledger = Ledger(10)
    ledger.add(key(), Figures(requests=1, tokens_in=5, card_ms=7))
    ledger.add(key(), Figures(requests=1, errors=1, tokens_in=6))
    assert ledger.take(10) == ((key(), Figures(requests=2, errors=1, tokens_in=11, card_ms=7)),)
    assert len(ledger) == 0


def test_rows_are_taken_in_the_order_of_their_keys() -> None:
    """So that two writers of one table lock its rows in the same order."""
    ledger = Ledger(10)
    for one in (key(3600), key(0, "b"), key(0, "a", "y"), key(0, "a", "x")):
        ledger.add(one, Figures(requests=1))
    assert [one for one, _ in ledger.take(3)] == [key(0, "a", "x"), key(0, "a", "y"), key(0, "b")]
    assert [one for one, _ in ledger.take(3)] == [key(3600)]


def test_memory_is_bounded_and_what_finds_no_room_is_counted() -> None:
    """A known key goes on; only requests count as lost, not the loads that they caused."""
    ledger = Ledger(1)
    ledger.add(key(model="a"), Figures(requests=1))
    ledger.add(key(model="b"), Figures(requests=2))
    ledger.add(key(model="b"), Figures(load_ms=2))
    ledger.add(key(model="a"), Figures(requests=1))
    assert (ledger.lost, ledger.take(9)) == (2, ((key(model="a"), Figures(requests=2)),))


@pytest.mark.parametrize(("unix_s", "hour"), [(0.0, 0), (3599.9, 0), (3600.0, 3600), (1_800_000_000.5, 1_800_000_000)])
def test_an_hour_begins_at_its_full_hour(unix_s: float, hour: int) -> None:
    assert hour_of(unix_s) == hour
