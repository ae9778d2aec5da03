"""What each of several routers may use of a limit without the others: in all as much as the limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.core.teams.part import Place, part_of
from router.core.teams.team import Team, TeamLimits

PLACES = st.integers(1, 40)


def limits(place: Place, *, used: int = 0, known: int = 0, counted: int = 0, **limits: int) -> TeamLimits:
    return part_of(Team("t", limits=TeamLimits(**limits)), place, used=used, known=known, counted=counted).limits


@given(limit=st.integers(0, 10_000), routers=PLACES)
def test_parts_add_up_to_the_limit_i2(limit: int, routers: int) -> None:
    """So whatever the others have of the store, at most one limit is added by those that cannot reach it."""
    assert sum(Place(routers, before).part_of(limit) for before in range(routers)) == limit


@given(routers=PLACES, limit=st.integers(0, 10_000), known=st.integers(0, 12_000))
def test_of_the_tokens_of_a_day_only_what_was_left_is_divided(routers: int, limit: int, known: int) -> None:
    """What a router has counted itself is on top, as far as the store knows it."""
    parts = [limits(Place(routers, before), used=7, known=known, counted=7, tokens_per_day=limit)
             for before in range(routers)]  # fmt: skip
    assert sum((part.tokens_per_day or 0) - 7 for part in parts) == max(0, limit - max(known, 7))


def test_without_the_store_a_router_has_its_part_of_each_limit() -> None:
    """Nothing else changes; what is not limited is not."""
    assert limits(Place(3, 0), concurrent=4, requests_per_minute=100) == TeamLimits(2, 34)
    assert limits(Place(3, 2), concurrent=4, waiting=9) == TeamLimits(1, waiting=9)
    assert limits(Place(0, 0), requests_per_minute=3) == TeamLimits(requests_per_minute=3)
