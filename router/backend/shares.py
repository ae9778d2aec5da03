"""The shares of the teams in one backend: what each has had, charged as requests start and end (`core/teams/fairness`).

Nothing is counted until a second team asks, so that a router without teams pays nothing for it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from router.config import FairnessSection
from router.core.teams.costs import Costs
from router.core.teams.fairness import Charge, Fairness
from router.core.teams.payer import Payer

ABOUT_S = 1.0
"""Differences up to this many card-seconds per weight are those of estimates and what requests took."""

MOST_TEAMS = 4096
"""Teams of which it is known when they were served last."""


@dataclass(frozen=True, slots=True)
class TeamRow:
    """A team on one backend. `lag_s` is how much more than the one served least of those that wait it has had, in
    card-seconds per weight; `served_s` are its card-seconds."""

    team: str
    lag_s: float
    served_s: float
    waiting: int
    in_flight: int


class Stay:
    """The charge of a request that uses a resident; `end` corrects it."""

    __slots__ = ("_charge", "_shares", "_team", "_weights")

    def __init__(self, shares: Shares, charge: Charge, team: str, weights: str) -> None:
        self._shares, self._charge, self._team, self._weights = shares, charge, team, weights

    def end(self, seconds: float | None) -> None:
        """Correct it to the card-seconds that the request has taken; None = it was not sent."""
        self._shares.ended(self._charge, self._team, self._weights, seconds)


class Shares:
    """What each team has had of one backend. Teams are named by `Payer`; a payer without a team is nobody's."""

    def __init__(self, settings: FairnessSection) -> None:
        self._fairness = Fairness()
        self.configure(settings)
        self._costs = Costs()
        self._only = ""  # the team of all requests so far
        self._is_on = False
        self._waiting: set[Payer] = set()  # those that are counted as waiting
        self._served_s: dict[str, float] = {}  # team → when its latest request was let in
        self._now = asyncio.get_running_loop().time

    def configure(self, settings: FairnessSection) -> None:
        """Apply settings, at the start or after a reload; what each team has had stays."""
        window_s = settings.window_s
        self.age_bound_s = settings.age_bound_s
        self._fairness.use_window(None if window_s == "auto" else window_s)

    # --- requests ----------------------------------------------------------------------------------------------

    def is_first_of_another(self, team: str) -> bool:
        """Note who asks; return True if from now on there is more than one team."""
        if self._is_on or not team or team == self._only:
            return False
        if not self._only:
            self._only = team
            return False
        self._is_on = True
        return True

    def counts(self, team: str) -> bool:
        """Return True if requests of the team are counted, or may be the first of another one."""
        return self._is_on or team != self._only

    def wait(self, payer: Payer) -> None:
        """Count a request as waiting, if teams are counted."""
        if self._is_on and payer.team and payer not in self._waiting:
            self._waiting.add(payer)
            self._fairness.wait(payer.team, payer.weight)

    def leave(self, payer: Payer) -> None:
        """Count a request as gone from the line; a no-op for one that has started."""
        if payer in self._waiting:
            self._waiting.discard(payer)
            self._fairness.leave(payer.team)

    def start(self, payer: Payer, weights: str) -> Stay | None:
        """Charge a request that begins to use a resident; None if teams are not counted."""
        if not (self._is_on and payer.team):
            return None
        has_waited = payer in self._waiting
        self._waiting.discard(payer)
        estimate_s = self._costs.estimate_s(weights, payer.team)
        self._served_s.pop(payer.team, None)
        self._served_s[payer.team] = self._now()
        if len(self._served_s) > MOST_TEAMS:
            del self._served_s[next(iter(self._served_s))]
        charge = self._fairness.start(payer.team, payer.weight, estimate_s, has_waited=has_waited)
        return Stay(self, charge, payer.team, weights)

    def ended(self, charge: Charge, team: str, weights: str, seconds: float | None) -> None:
        """Correct a charge."""
        self._fairness.end(charge, seconds or 0.0)
        if seconds:
            self._costs.learn(weights, team, seconds)

    def switched(self, payer: Payer, seconds: float) -> None:
        """Charge a switch to whom it was for."""
        if payer.team:
            self._fairness.switched(payer.team, payer.weight, seconds)

    def keep_teams(self, names: frozenset[str]) -> None:
        """Forget all other teams, except what they still have under way or waiting."""
        self._fairness.keep_only(names)
        self._costs.keep_only(names)
        self._served_s = {team: served_s for team, served_s in self._served_s.items() if team in names}

    # --- turns -------------------------------------------------------------------------------------------------

    @property
    def is_contested(self) -> bool:
        """True while more than one team waits or is served."""
        return self._is_on and self._fairness.is_contested

    def level_s(self, team: str) -> float:
        """Return what the team has had, in card-seconds per weight; only differences mean anything."""
        return self._fairness.level_s(team) if team else math.inf

    def next_of(self, teams: Collection[str]) -> str:
        """Return the team that is next: who has had least; of those that have had about as much, who waits longest."""
        if len(teams) < 2:
            return next(iter(teams), "")
        levels_s = {team: self.level_s(team) for team in teams}
        most_s = min(levels_s.values()) + ABOUT_S
        return min((team for team in teams if levels_s[team] <= most_s), key=self.served_s)

    def served_s(self, team: str) -> float:
        """Return when the latest request of the team was let in, by the loop's time."""
        return self._served_s.get(team, -math.inf)

    def may_enter(self, team: str, rivals: Collection[str]) -> bool:
        """Return whether a team may use a resident that rivals wait to replace."""
        return not rivals or not self._is_on or not team or self._fairness.may_enter(team, rivals)

    def rows(self) -> tuple[TeamRow, ...]:
        """Return all teams, by name."""
        standings = sorted(self._fairness.standings().items()) if self._is_on else ()
        return tuple(TeamRow(team, one.lag_s, one.served_s, one.waiting, one.under_way) for team, one in standings)


def rivals_of(plans: Iterable[tuple[str, Collection[str]]]) -> Mapping[str, frozenset[str]]:
    """Return by resident the teams that wait to replace it, from the pairs of a team and what is in its way."""
    found: dict[str, set[str]] = {}
    for team, in_the_way in plans:
        for weights in in_the_way:
            found.setdefault(weights, set()).add(team)
    return {weights: frozenset(teams) for weights, teams in found.items()}
