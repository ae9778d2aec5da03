"""How often a team may make the models of others go: `evictions_per_minute`. Pure; the caller supplies the time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from router.core.teams.minute import Minute
from router.core.teams.team import Team


class Evictions:
    """The evictions of the last minute by team. Those of models that only the team itself uses are free."""

    def __init__(self) -> None:
        self._minutes: dict[str, Minute] = {}

    def wait_s(self, team: Team, count: int, now_s: float) -> float:
        """Return how long until the team may evict `count` models of others together; 0 if it may now.

        More than are allowed in a minute are allowed when none was evicted within the last one.
        """
        most = team.limits.evictions_per_minute
        if most is None or not count:
            return 0.0
        return self._minute(team.name, most).wait_s(now_s, count)

    def spend(self, team: Team, count: int, now_s: float) -> None:
        """Count the models of others that a switch for the team evicts."""
        most = team.limits.evictions_per_minute
        if most is not None:
            for _ in range(count):
                self._minute(team.name, most).take(now_s)

    def keep_only(self, teams: Iterable[str]) -> None:
        """Forget the teams that are no more, after a reload."""
        kept = set(teams)
        self._minutes = {name: minute for name, minute in self._minutes.items() if name in kept}

    def _minute(self, name: str, most: int) -> Minute:
        minute = self._minutes.get(name)
        minute = self._minutes[name] = Minute(most) if minute is None else minute.with_limit(most)
        return minute


def of_others(team: str, evicted: Iterable[str], users: Mapping[str, Iterable[str]]) -> int:
    """Count the models of `evicted` (weights) that another team uses; `users` are the teams by weights."""
    return sum(any(user != team for user in users.get(weights, ())) for weights in evicted)
