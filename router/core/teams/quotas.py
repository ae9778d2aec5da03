"""What teams may use at most: requests at a time and per minute, tokens per day. Pure; clocks are supplied.

A request is admitted before it is served, which reserves a place and as many tokens as it is expected to take, and
settled when it has ended, which replaces the reservation by what it took. A reservation ends by itself after its lease,
so that nothing is lost for good if whoever holds it dies in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec

from router.core.teams.minute import Minute
from router.core.teams.team import Team
from router.errors import LimitReached

Reason = Literal["concurrent", "requests_per_minute", "tokens_per_day", "waiting", "evictions_per_minute"]
"""The limit that refuses a request, by its key in the team's file."""

DAY_S = 86400.0
LEASE_S = 3600.0
"""A reservation ends after an hour: hardly a request takes longer, and one that does is only not counted any more."""

MOST_TEAMS = 4096
"""Teams that are known by name: more than are configured, because reloads bring new names."""

FIRST_S, NEW = 5.0, 0.2
"""What a request is expected to take before one has ended, and the part of the newest one in the running mean."""


class Left(msgspec.Struct, frozen=True):
    """One limit as answers show it: `reset_s` is how long until all of it is available again."""

    limit: int
    remaining: int
    reset_s: float


class Standing(msgspec.Struct, frozen=True):
    """What is left of a team's limits; None where it has none."""

    requests: Left | None = None
    tokens: Left | None = None


class Granted(msgspec.Struct, frozen=True):
    """The request is admitted, and must be settled."""

    left: Standing


class Refused(msgspec.Struct, frozen=True):
    """The request is above a limit. After `retry_s` it may be admitted."""

    why: Reason
    retry_s: float
    left: Standing


def _counted(limit: int | None, one: str, when: str) -> str:
    return f"{limit} {one}{'' if limit == 1 else 's'} {when}"


def refusal(
    team: Team,
    why: Reason,
    retry_s: float,
    left: tuple[tuple[bytes, bytes], ...] = (),
    *,
    position: int | None = None,
) -> LimitReached:
    """Return the error for a request above a limit of its team.

    `left` are headers that say what is left, `position` is the place in the queue that it would have had.
    """
    limits = team.limits
    what = {
        "concurrent": _counted(limits.concurrent, "request", "at a time"),
        "requests_per_minute": _counted(limits.requests_per_minute, "request", "per minute"),
        "tokens_per_day": _counted(limits.tokens_per_day, "token", "per day"),
        "waiting": _counted(limits.waiting, "request", "in the queue"),
        "evictions_per_minute": _counted(limits.evictions_per_minute, "eviction", "of models of others per minute"),
    }
    text = f"the team {team.name} may use at most {what[why]}; try again in {math.ceil(retry_s)} s"
    return LimitReached(text, why=why, retry_after_s=retry_s, left=left, position=position)


class Quotas(Protocol):
    """The counts behind the limits: in the memory of one router, or in a store that several share."""

    def admit(self, team: Team, request: str, tokens: int) -> Granted | Refused:
        """Reserve what a request is expected to take. `request` identifies it and is used once."""
        ...

    def settle(self, request: str, tokens: int) -> None:
        """Replace the reservation by the `tokens` that the request took. A second time it does nothing."""
        ...

    def left(self, team: Team) -> Standing:
        """Return what is left of the team's limits."""
        ...

    def under_way(self, team: Team) -> int:
        """Return how many admitted requests of the team are not settled yet."""
        ...

    def keep_teams(self, names: Collection[str]) -> None:
        """Forget the counts of all other teams: the configuration was reloaded."""
        ...


class _Reservation(msgspec.Struct):
    use: _Use
    tokens: int
    since_s: float
    is_held: bool = True


@dataclass(slots=True, eq=False)
class _Use:
    """What one team uses. `running` are its requests under way, the oldest first."""

    running: dict[str, _Reservation] = field(default_factory=dict)
    minute: Minute | None = None
    day: int = 0
    used: int = 0  # tokens of that day
    reserved: int = 0
    mean_s: float = FIRST_S
    lapses_s: float = -math.inf  # before this time no lease ends

    def turn_to(self, day: int) -> None:
        """Begin another day."""
        if day != self.day:
            self.day, self.used = day, 0

    def limited_to(self, per_minute: int | None) -> Minute | None:
        """Return the requests of the last minute under a limit, which a reload may have changed."""
        if per_minute is None:
            self.minute = None
        else:
            self.minute = self.minute.with_limit(per_minute) if self.minute is not None else Minute(per_minute)
        return self.minute

    def release(self, held: _Reservation) -> None:
        """Give back what a request had reserved."""
        if held.is_held:
            held.is_held = False
            self.reserved -= held.tokens

    def release_lapsed(self, now_s: float, lease_s: float) -> None:
        """Release those whose lease is over."""
        while self.running:
            request, oldest = next(iter(self.running.items()))
            if oldest.since_s + lease_s > now_s:
                break
            self.release(oldest)
            del self.running[request]
        first = next(iter(self.running.values()), None)
        self.lapses_s = lease_s + (now_s if first is None else first.since_s)

    def expected_s(self, now_s: float) -> float:
        """Return when one of those under way is expected to end."""
        oldest = next(iter(self.running.values()), None)
        return max(1.0, self.mean_s - (now_s - oldest.since_s)) if oldest is not None else 1.0


class MemoryQuotas:
    """The counts of one router, in memory. `now` is the time of leases and minutes, `unix_now` that of days."""

    def __init__(self, now: Callable[[], float], unix_now: Callable[[], float], *, lease_s: float = LEASE_S) -> None:
        self._now = now
        self._unix_now = unix_now
        self._lease_s = lease_s
        self._uses: dict[str, _Use] = {}
        self._requests: dict[str, _Reservation] = {}  # to be settled; the oldest first

    def admit(self, team: Team, request: str, tokens: int) -> Granted | Refused:
        """Reserve what a request is expected to take, or return the limit that it is above.

        What is left of a day is given to a request that is expected to take more, if nothing else is under way.
        """
        now_s, unix_s, limits = self._now(), self._unix_now(), team.limits
        use = self._current(team, now_s, unix_s)
        minute, per_minute = use.minute, limits.requests_per_minute
        if per_minute != (None if minute is None else minute.limit):
            minute = use.limited_to(per_minute)
        refused: tuple[Reason, float] | None = None
        if limits.concurrent is not None and len(use.running) >= limits.concurrent:
            refused = "concurrent", use.expected_s(now_s)
        elif minute is not None and (wait_s := minute.wait_s(now_s)) > 0:
            refused = "requests_per_minute", wait_s
        elif limits.tokens_per_day is not None:
            left = limits.tokens_per_day - use.used - use.reserved
            if limits.tokens_per_day <= use.used:
                refused = "tokens_per_day", _to_midnight_s(unix_s)
            elif tokens > left and use.reserved:
                refused = "tokens_per_day", use.expected_s(now_s)
        if refused is not None:
            return Refused(*refused, _standing(team, use, now_s, unix_s))
        if minute is not None:
            minute.take(now_s)
        use.reserved += tokens
        use.running[request] = self._requests[request] = _Reservation(use, tokens, now_s)
        return Granted(_standing(team, use, now_s, unix_s))

    def settle(self, request: str, tokens: int) -> None:
        """Count the tokens that a request took, also after its lease. A second time it does nothing."""
        held = self._requests.pop(request, None)
        if held is None:
            return
        use = held.use
        use.turn_to(_day(self._unix_now()))
        use.release(held)
        use.used += tokens
        if use.running.pop(request, None) is not None:
            use.mean_s += (self._now() - held.since_s - use.mean_s) * NEW

    def left(self, team: Team) -> Standing:
        """Return what is left of the team's limits."""
        now_s, unix_s = self._now(), self._unix_now()
        use = self._current(team, now_s, unix_s)
        use.limited_to(team.limits.requests_per_minute)
        return _standing(team, use, now_s, unix_s)

    def under_way(self, team: Team) -> int:
        """Return how many admitted requests of the team are not settled yet."""
        return len(self._current(team, self._now(), self._unix_now()).running)

    def keep_teams(self, names: Collection[str]) -> None:
        """Forget the counts of all other teams, which are no more; what they have under way is settled nevertheless."""
        self._uses = {name: use for name, use in self._uses.items() if name in names or use.running}

    def restore(self, team: str, tokens: int) -> None:
        """Count the tokens that a team has taken today before this router was started."""
        day = _day(self._unix_now())
        use = self._use(team, day)
        use.turn_to(day)
        use.used += tokens

    # --- the counts --------------------------------------------------------------------------------------------

    def _current(self, team: Team, now_s: float, unix_s: float) -> _Use:
        """Return what a team uses now: without what has lapsed, and of this day."""
        day = _day(unix_s)
        use = self._uses.get(team.name) or self._use(team.name, day)
        if day != use.day:
            use.turn_to(day)
        if now_s >= use.lapses_s:
            use.release_lapsed(now_s, self._lease_s)
        return use

    def _use(self, name: str, day: int) -> _Use:
        use = self._uses.get(name)
        if use is None:
            if len(self._uses) >= MOST_TEAMS:
                self._forget()
            use = self._uses[name] = _Use(day=day)
        return use

    def _forget(self) -> None:
        """Drop the teams of which nothing is under way, those that came first; and what was never settled."""
        for name in [name for name, use in self._uses.items() if not use.running][: MOST_TEAMS // 2]:
            del self._uses[name]


def _standing(team: Team, use: _Use, now_s: float, unix_s: float) -> Standing:
    requests = tokens = None
    if (minute := use.minute) is not None:
        requests = Left(minute.limit, minute.left(now_s), minute.reset_s(now_s))
    if (most := team.limits.tokens_per_day) is not None:
        tokens = Left(most, max(0, most - use.used - use.reserved), _to_midnight_s(unix_s))
    return Standing(requests, tokens)


def _day(unix_s: float) -> int:
    return int(unix_s // DAY_S)


def _to_midnight_s(unix_s: float) -> float:
    return DAY_S - unix_s % DAY_S
