"""For which team `/router/explain` explains: the one whose key is shown, or that an operator names; what it may see."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from router.core.ollama.routes import TARGETS
from router.core.teams.identity import Identities
from router.core.teams.rights import check_route, check_use, permit_of
from router.core.teams.team import Identity, Team
from router.errors import BadRequest, Forbidden, Unauthorized
from router.routing.ruled import RulesInForce

EXPLAINED = TARGETS["POST", b"/api/chat"]
"""The route of the requests that are explained."""


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


def check_question(model: str, asker: Asker) -> None:
    """Raise BadRequest if a request to explain names no model, or Forbidden if its team may not use that."""
    if not model:
        raise BadRequest("model is required")
    if asker.team is not None:
        identity = Identity(asker.team, "explain")
        check_route(identity, EXPLAINED)
        check_use(identity, model)


def sight_of(asker: Asker) -> Callable[[str], bool]:
    """Return which names who asks may see: an operator, all."""
    return permit_of(asker.team).may_see if asker.team is not None and asker.is_team else _sees_all


def names_for(asker: Asker, names: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the `names` of models by their weights, as far as who asks may see them."""
    may_see = sight_of(asker)
    return {weights: name if may_see(name) else "a model of others" for weights, name in names}


def _sees_all(_name: str) -> bool:
    return True
