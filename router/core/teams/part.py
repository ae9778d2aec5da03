"""What one of several routers may use of a team's limits while the store that they share cannot be asked. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from router.core.teams.team import Team


class Place(NamedTuple):
    """How many routers there are, and how many of them come before this one."""

    routers: int
    before: int

    def part_of(self, limit: int) -> int:
        """Return this router's part of a limit: those of all routers add up to it, so that some may have nothing."""
        routers = max(1, self.routers)
        return limit // routers + (self.before < limit % routers)


def part_of(team: Team, place: Place, *, used: int, known: int, counted: int) -> Team:
    """Return the team with this router's part of its limits.

    Of the tokens of the day it has a part of what was left: `used` is what this router has counted today, of which
    `counted` are among the `known` ones that the store had counted for all routers.
    """
    limits = team.limits
    tokens = limits.tokens_per_day
    if tokens is not None:
        tokens = min(counted, used) + place.part_of(max(0, tokens - max(known, counted)))
    parts = replace(
        limits,
        concurrent=_part_of(limits.concurrent, place),
        requests_per_minute=_part_of(limits.requests_per_minute, place),
        tokens_per_day=tokens,
    )
    return replace(team, limits=parts)


def _part_of(limit: int | None, place: Place) -> int | None:
    return None if limit is None else place.part_of(limit)
