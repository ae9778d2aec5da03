"""The counts behind the limits of teams in the memory of one router. Pure; clocks are supplied."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import msgspec

from router.core.teams.minute import Minute
from router.core.teams.quotas import DAY_S, LEASE_S, Granted, Left, Reason, Refused, Standing
from router.core.teams.team import Team

MOST_TEAMS = 4096
"""Teams that are known by name: more than are configured, because reloads bring new names."""

FIRST_S, NEW = 5.0, 0.2
"""What a request is expected to take before one has ended, and the part of the newest one in the running mean."""


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

    def minute_of(self, per_minute: int | None) -> Minute | None:
        """Return the same; the common case is that nothing has changed."""
        minute = self.minute
        return minute if per_minute == (None if minute is None else minute.limit) else self.limited_to(per_minute)

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

    def still_counts(self, now_s: float, day: int) -> bool:
        """Return whether any limit is used: by requests under way, of the last minute, or of this day."""
        minute = self.minute
        is_recent = minute is not None and minute.left(now_s) < minute.limit
        return bool(self.running) or is_recent or (self.used > 0 and self.day == day)

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
        minute = use.minute_of(limits.requests_per_minute)
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
        self._reserve(use, request, tokens, now_s)
        return Granted(_standing(team, use, now_s, unix_s))

    def count(self, team: Team, request: str, tokens: int) -> None:
        """Reserve what a request is expected to take, which was admitted elsewhere; it may be above a limit here."""
        now_s = self._now()
        use = self._current(team, now_s, self._unix_now())
        use.minute_of(team.limits.requests_per_minute)
        self._reserve(use, request, tokens, now_s)

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

    def used(self, team: Team) -> int:
        """Return the tokens that requests of the team have taken today."""
        return self._current(team, self._now(), self._unix_now()).used

    def keep_teams(self, names: Collection[str]) -> None:
        """Forget the counts of all other teams, which are no more; what they have under way is settled nevertheless.

        What still counts is kept: the file of a team may only be missing while it is replaced.
        """
        now_s, day = self._now(), _day(self._unix_now())
        self._uses = {name: use for name, use in self._uses.items() if name in names or use.still_counts(now_s, day)}

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

    def _reserve(self, use: _Use, request: str, tokens: int, now_s: float) -> None:
        if use.minute is not None:
            use.minute.take(now_s)
        use.reserved += tokens
        use.running[request] = self._requests[request] = _Reservation(use, tokens, now_s)

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
