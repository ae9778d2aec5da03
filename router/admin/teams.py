"""`GET /router/teams`: the teams in force, what each has used today, what waits, and what is left of its limits."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from router.admin.accounts import Accounts
from router.backend.backend import Backend
from router.backend.shares import TeamRow
from router.core.teams.quotas import Left, Quotas
from router.core.teams.team import Team
from router.core.teams.usage import FIGURES, HOUR_S
from router.errors import RouterError
from router.routing.ruled import RulesInForce

DAY_S = 24 * HOUR_S
USAGE_S = 3.0
"""For those who look all the time, the usage of today is read again after this long: it is in a file."""

LIMITS = ("concurrent", "requests_per_minute", "tokens_per_day", "waiting", "evictions_per_minute")
Row = dict[str, Any]


class TeamsPage:
    """Reports the teams as plain data. `unix_now` is the wall clock; a day is one of UTC, as for the limits."""

    def __init__(
        self,
        rules: RulesInForce,
        backends: Collection[Backend],
        quotas: Quotas,
        accounts: Accounts,
        unix_now: Callable[[], float],
    ) -> None:
        self._rules = rules
        self._backends = backends
        self._quotas = quotas
        self._accounts = accounts
        self._unix_now = unix_now
        self._now = asyncio.get_running_loop().time
        self._recent: tuple[float, dict[str, Row]] = (
            -math.inf,
            {},
        )  # when the usage was read (loop time), and what it was

    async def data(self) -> Row:
        """Return a row per team in the order of their names. Raises RouterError if the usage cannot be read."""
        return self._page(await self._used_today())

    async def refresh(self) -> None:
        """Read today's usage for `watched` if it is older than `USAGE_S`; if it cannot be read, the old one stays."""
        read_s, used = self._recent
        if self._now() - read_s >= USAGE_S:
            with suppress(RouterError):  # shares and limits are worth seeing without the file, too
                used = await self._used_today()
            self._recent = self._now(), used

    def watched(self) -> Row:
        """Return the same as `data` for those who look all the time, with the usage that was read last."""
        return self._page(self._recent[1])

    def _page(self, used: dict[str, Row]) -> Row:
        book = self._rules.book
        teams = {team.name: team for team in (*book.teams, book.default_team)}
        waiting = Counter(team for one in self._backends for _, _, team in one.line.waiting_for())
        shares = self._shares()
        rows = [
            self._row(team, waiting[name], used.get(name, {})) | _had(shares.get(name, ()))
            for name, team in sorted(teams.items())
        ]
        return {"default_team": book.default_team.name, "serial": book.serial, "teams": rows}

    def _shares(self) -> dict[str, list[TeamRow]]:
        """Return what each team has had, a row per backend."""
        found: dict[str, list[TeamRow]] = {}
        for backend in self._backends:
            for row in backend.line.shares.rows():
                found.setdefault(row.team, []).append(row)
        return found

    async def _used_today(self) -> dict[str, Row]:
        midnight = int(self._unix_now()) // DAY_S * DAY_S
        return {str(row["team"]): row for row in await self._accounts.rows(midnight, midnight + DAY_S, ("team",))}

    def _row(self, team: Team, waiting: int, used: Row) -> Row:
        left, limits = self._quotas.left(team), team.limits
        return {
            "team": team.name,
            "share": team.share,
            "rights": sorted(team.rights),
            "keys": [{"id": key.id, "expires_s": key.expires_s} for key in team.keys],
            "networks": [str(network) for network in team.networks],
            "limits": {name: limit for name in LIMITS if (limit := getattr(limits, name)) is not None},
            "used": {
                **({"concurrent": self._quotas.under_way(team)} if limits.concurrent is not None else {}),
                **({"requests_per_minute": _taken(left.requests)} if left.requests is not None else {}),
                **({"tokens_per_day": _taken(left.tokens)} if left.tokens is not None else {}),
                **({"waiting": waiting} if limits.waiting is not None else {}),
            },
            "left": {"requests": _left(left.requests), "tokens": _left(left.tokens)},
            "waiting": waiting,
            "today": {name: used.get(name, 0) for name in FIGURES},
        }


def _had(rows: Collection[TeamRow]) -> Row:
    """Return what a team has had of the cards since the start, and how far it is ahead; 0 while only one team asks.

    Each backend shares out its own time: of several the greatest lead counts.
    """
    return {
        "served_s": round(sum(row.served_s for row in rows), 3),
        "lag_s": round(max((row.lag_s for row in rows), default=0.0), 3),
        "in_flight": sum(row.in_flight for row in rows),
    }


def _taken(left: Left) -> int:
    """Return what is used of a limit, what is reserved for requests under way included."""
    return left.limit - left.remaining


def _left(left: Left | None) -> Row | None:
    return None if left is None else {"limit": left.limit, "remaining": left.remaining, "reset_s": left.reset_s}
