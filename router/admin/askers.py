"""For which team `/router/explain` explains: the one whose key is shown, or that an operator names."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from router.core.teams.identity import Identities
from router.core.teams.team import Team
from router.errors import BadRequest, Forbidden, Unauthorized
from router.routing.ruled import RulesInForce


class Asker(NamedTuple):
    """Whose requests are explained (None = those of the default team), and whether the team itself has asked."""

    team: Team | None = None
    is_team: bool = False


OPERATOR = Asker()
"""An operator, who asks for no team."""


class Askers:
    """Finds the team of an explanation by the rules in force. `unix_now` is the wall clock, by which keys expire."""

    def __init__(self, rules: RulesInForce, unix_now: Callable[[], float]) -> None:
        self._rules = rules
        self._unix_now = unix_now

    def is_of_team(self, key: bytes) -> bool:
        """Return whether this is the key of a team, valid now."""
        return self._team_of(key) is not None

    def asker(self, key: bytes, name: str) -> Asker:
        """Return for whom to explain: `key` is what the request shows, `name` the team that it names, "" if none.

        Raise Forbidden if a team asks for another one, BadRequest if there is no team of that name.
        """
        own = self._team_of(key)
        if own is not None:
            if name not in ("", own.name):
                raise Forbidden(
                    f"the key of team {own.name} explains its own requests only; an admin key, those of all"
                )
            return Asker(own, is_team=True)
        if not name:
            return Asker()
        found = self._rules.book.team(name)
        if found is None:
            names = sorted({team.name for team in (*self._rules.book.teams, self._rules.book.default_team)})
            raise BadRequest(f"there is no team {name[:40]!r}: there are {', '.join(names)}")
        return Asker(found)

    def _team_of(self, key: bytes) -> Team | None:
        identities: Identities | None = self._rules.identities
        if identities is None or not key:
            return None
        try:
            return identities.of_credential(key, self._unix_now()).identity.team
        except Unauthorized:
            return None
