"""The counts behind the limits of teams in the memory of one router. Pure; clocks are supplied."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field

import msgspec

from router.core.teams.minute import MINUTE_S, Minute
from router.core.teams.quotas import DAY_S, LEASE_S, Granted, Left, Reason, Refused, Standing
from router.core.teams.team import NO_LIMITS, Team, TeamLimits

MOST_TEAMS = 4096
"""Teams that are known by name: more than are configured, because reloads bring new names."""

FIRST_S, NEW = 5.0, 0.2
"""What a request is expected to take before one has ended, and the part of the newest one in the running mean."""


class _Reservation(msgspec.Struct, frozen=True, gc=False):
    tokens: int
    since_s: float


@dataclass(slots=True, eq=False)
class _Use:
    """What one team uses. `running` are its requests under way, the oldest first; `limits` are those it had last."""

    limits: TeamLimits = NO_LIMITS
    running: dict[Hashable, _Reservation] = field(default_factory=dict)
    minute: Minute | None = None
    day: int = 0
    used: int = 0  # tokens of that day
    before: tuple[int, int] = (0, 0)  # the day before it, and the tokens of that
    reserved: int = 0
    mean_s: float = FIRST_S
    lapses_s: float = -math.inf  # before this time no lease ends

    def turn_to(self, day: int) -> None:
        """Begin the day, or go on with the one before: a clock that is wrong for a while gives nobody a new day.

        An earlier day that is not known goes on with what was counted last.
        """
        if day != self.day:
            last, (day_before, used_before) = (self.day, self.used), self.before
            unknown = self.used if day < self.day else 0
            self.day, self.used = day, used_before if day == day_before else unknown
            self.before = last

    def limit_to(self, limits: TeamLimits) -> None:
        """Take over limits, which a reload has changed."""
        self.limits, per_minute = limits, limits.requests_per_minute
        if per_minute is None:
            self.minute = None
        else:
            self.minute = self.minute.with_limit(per_minute) if self.minute is not None else Minute(per_minute)

    def spares(self, tokens: int, most: int) -> bool:
        """Return whether a request that is expected to take `tokens` is within `most` a day.

        What is left of a day is given to a request that is expected to take more, if nothing else is under way.
        """
        return self.used < most and (not self.reserved or self.used + self.reserved + tokens <= most)

    def begin(self, request: Hashable, tokens: int, now_s: float) -> None:
        """Reserve what a request is expected to take."""
        if self.minute is not None:
            self.minute.take(now_s)
        self.reserved += tokens
        self.running[request] = _Reservation(tokens, now_s)

    def end(self, request: Hashable, tokens: int, now_s: float, day: int) -> None:
        """Replace the reservation by the `tokens` that the request took, which count after its lease, too."""
        self.turn_to(day)
        self.used += tokens
        if (held := self.running.pop(request, None)) is not None:
            self.reserved -= held.tokens
            self.mean_s += (now_s - held.since_s - self.mean_s) * NEW

    def release_lapsed(self, now_s: float, lease_s: float) -> None:
        """Release those whose lease is over."""
        while self.running:
            request, oldest = next(iter(self.running.items()))
            if oldest.since_s + lease_s > now_s:
                break
            self.reserved -= oldest.tokens
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
        self._requests: dict[Hashable, _Use] = {}  # to be settled

    def admit(self, team: Team, request: Hashable, tokens: int) -> Granted | Refused:
        """Reserve what a request is expected to take, or return the limit that it is above."""
        now_s, limits = self._now(), team.limits
        use = self._uses.get(team.name)
        if use is None or use.limits is not limits or now_s >= use.lapses_s:
            use = self._limited(team, now_s)
        minute, most, allowed, tokens_left = use.minute, limits.tokens_per_day, 0, None
        if limits.concurrent is not None and len(use.running) >= limits.concurrent:
            return self._refused(use, "concurrent", use.expected_s(now_s), now_s)
        if minute is not None and not (allowed := minute.left(now_s)):
            return self._refused(use, "requests_per_minute", minute.wait_s(now_s), now_s)
        if most is not None:
            tokens_left = self._tokens(use, most, tokens)
            if not use.spares(tokens, most):
                retry_s = use.expected_s(now_s) if use.used < most else tokens_left.reset_s
                return self._refused(use, "tokens_per_day", retry_s, now_s)
        use.begin(request, tokens, now_s)
        self._requests[request] = use
        return Granted(None if minute is None else Left(minute.limit, allowed - 1, MINUTE_S), tokens_left)

    def count(self, team: Team, request: Hashable, tokens: int) -> None:
        """Reserve what a request is expected to take, which was admitted elsewhere; it may be above a limit here."""
        now_s = self._now()
        use = self._requests[request] = self._limited(team, now_s)
        use.begin(request, tokens, now_s)

    def settle(self, request: Hashable, tokens: int) -> None:
        """Count the tokens that a request took, also after its lease. A second time it does nothing."""
        use = self._requests.pop(request, None)
        if use is not None:
            use.end(request, tokens, self._now(), self._day())

    def left(self, team: Team) -> Standing:
        """Return what is left of the team's limits."""
        now_s = self._now()
        return self._standing(self._limited(team, now_s), now_s)

    def under_way(self, team: Team) -> int:
        """Return how many admitted requests of the team are not settled yet."""
        return len(self._current(team.name, self._now()).running)

    def used(self, team: Team) -> int:
        """Return the tokens that requests of the team have taken today."""
        return self._today(self._use(team.name)).used

    def keep_teams(self, names: Collection[str]) -> None:
        """Forget the counts of all other teams, which are no more; what they have under way is settled nevertheless.

        What still counts is kept: the file of a team may only be missing while it is replaced.
        """
        now_s, day = self._now(), self._day()
        self._uses = {name: use for name, use in self._uses.items() if name in names or use.still_counts(now_s, day)}

    def restore(self, team: str, tokens: int) -> None:
        """Count the tokens that a team has taken today before this router was started."""
        self._today(self._use(team)).used += tokens

    # --- the counts --------------------------------------------------------------------------------------------

    def _day(self) -> int:
        """Return the number of this day."""
        return int(self._unix_now() // DAY_S)

    def _limited(self, team: Team, now_s: float) -> _Use:
        """Return what a team uses now, under its limits."""
        use = self._current(team.name, now_s)
        if use.limits is not team.limits:
            use.limit_to(team.limits)
        return use

    def _current(self, name: str, now_s: float) -> _Use:
        """Return what a team uses now, without what has lapsed."""
        use = self._uses.get(name) or self._use(name)
        if now_s >= use.lapses_s:
            use.release_lapsed(now_s, self._lease_s)
        return use

    def _today(self, use: _Use) -> _Use:
        """Return the same, with the tokens of this day."""
        use.turn_to(self._day())
        return use

    def _refused(self, use: _Use, why: Reason, retry_s: float, now_s: float) -> Refused:
        return Refused(why, retry_s, self._standing(use, now_s))

    def _standing(self, use: _Use, now_s: float) -> Standing:
        """Return what is left of the limits of a team."""
        minute, most = use.minute, use.limits.tokens_per_day
        requests = None if minute is None else Left(minute.limit, minute.left(now_s), minute.reset_s(now_s))
        return Standing(requests, None if most is None else self._tokens(use, most))

    def _tokens(self, use: _Use, most: int, further: int = 0) -> Left:
        """Return what is left of the tokens of this day when `further` ones are reserved."""
        day, since_s = divmod(self._unix_now(), DAY_S)
        use.turn_to(int(day))
        left = most - use.used - use.reserved - further
        return Left(most, max(0, left), DAY_S - since_s)

    def _use(self, name: str) -> _Use:
        use = self._uses.get(name)
        if use is None:
            if len(self._uses) >= MOST_TEAMS:
                self._forget()
            use = self._uses[name] = _Use()
        return use

    def _forget(self) -> None:
        """Drop the teams of which nothing is under way, those that came first; and what was never settled."""
        for name in [name for name, use in self._uses.items() if not use.running][: MOST_TEAMS // 2]:
            del self._uses[name]
