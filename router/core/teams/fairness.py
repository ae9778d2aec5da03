"""Fair shares of one backend: how much of its cards each team has had, and whose turn it is. Pure, without a clock.

Each team has a *level*: the seconds of the cards that it was charged, divided by its weight (`share` in its file). The
team with the lowest level is the next one. The queue applies these rules with it:

F1 LIFT      A team that comes back is lifted to the lowest level of those that wait, so that no credit is hoarded while
             it is away. If something of it is still under way it keeps its credit, but never more than the window.
F2 CHARGE    A request is charged when it starts, by an estimate, which is corrected when it ends: a charge at the end
             would let a team start any number of long requests before the first one counts.
F3 AFFINITY  A request may enter a loaded model while its team is at most the window ahead of each rival, which is a
             team that waits for this model to make room. So models are changed rarely, and nobody is locked out.
F4 SWITCH    Who cannot be served by what is loaded is served by a switch, the lowest level first. A bound of age counts
             from when its team was last served, not from when its oldest request came: in a long backlog every request
             is old, and models would be changed for each of them.
F5 CAUSE     The seconds of a switch are charged to the team that it was for.

The window D is three switches, 5 s at least, for the lighter of two teams: it has to cover the switches of that one.
Two teams of weight 1 that wait throughout differ by at most D and one charge, and of their time at most X / 2D is lost
to switches of X seconds. Weights count only in proportion: 1 and 3 are the same as 10 and 30.

Levels never decay. A counter that forgets with a half-life H cannot exceed H / ln 2 s: with a larger window no team
would ever be ahead by more than it, and the one that waits for a switch would never be served. What bounds a credit
instead is `floor_s`, and what bounds a debt is that all are even again when nobody wants anything.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

LEAST_WINDOW_S, SWITCHES_PER_WINDOW = 5.0, 3.0
LEAST_CHARGE_S = 0.001
"""A request counts as at least this much, so that even those that fail at once bring their team's turn to an end."""

LEAST_WEIGHT = 1e-3
NEW = 0.3
"""The part of the newest switch in the running mean."""

MOST_AWAY = 256
"""Teams that are kept though nothing of them waits or is under way: reloads may bring any number of new names."""


@dataclass(slots=True, eq=False)
class Account:
    """What is known of one team. `level_s` is what it was charged, in card-seconds per weight."""

    name: str
    weight: float = 0.0
    level_s: float = -math.inf
    served_s: float = 0.0
    waiting: int = 0
    under_way: int = 0

    @property
    def is_away(self) -> bool:
        """True if nothing of the team waits or is under way."""
        return not (self.waiting or self.under_way)

    def rise_to(self, level_s: float) -> None:
        """Take away the credit below `level_s`."""
        self.level_s = max(self.level_s, level_s)

    def charge(self, seconds: float, weight: float) -> None:
        """Add `seconds`; a negative number takes back a part of an earlier charge."""
        self.level_s += seconds / weight
        self.served_s += seconds


@dataclass(frozen=True, slots=True, eq=False)
class Charge:
    """A request under way: the seconds that it was charged when it started, and at which weight."""

    account: Account
    seconds: float
    weight: float


@dataclass(frozen=True, slots=True)
class Standing:
    """A team as reports show it. `lag_s` is how far its level is above the lowest of those that wait."""

    waiting: int
    under_way: int
    served_s: float
    lag_s: float


class Fairness:
    """The levels of all teams on one backend. `window_s` None: as measured switches demand."""

    def __init__(self, window_s: float | None = None) -> None:
        self._accounts: dict[str, Account] = {}
        self._queued: dict[str, Account] = {}  # those of which something waits
        self._under_way = 0
        self._lightest = self._heaviest = 1.0  # weights
        self._window_s = window_s
        self._switch_s = 0.0  # running mean of the measured switches
        self._start_s = 0.0  # highest level at which a request has started; it never falls
        self._end_s = 0.0  # highest level of a team at the end of a request

    # --- what has happened -------------------------------------------------------------------------------------

    def wait(self, team: str, weight: float) -> None:
        """Record that a request of the team begins to wait: until `start` with `has_waited`, or `leave`."""
        account = self._account(team, weight)
        if not account.waiting:
            self._lift(account)
            self._queued[team] = account
        account.waiting += 1

    def leave(self, team: str) -> None:
        """Record that a waiting request of the team has gone: refused, or its client left."""
        self._unqueue(team)
        self._rest()

    def start(self, team: str, weight: float, estimate_s: float, *, has_waited: bool) -> Charge:
        """Charge a request that starts now an estimate of its card-seconds; the result is for `end`."""
        account = self._account(team, weight)
        if has_waited:
            self._unqueue(team)
            account.rise_to(self.floor_s)
        else:
            self._lift(account)
        self._start_s = max(self._start_s, account.level_s)
        charge = Charge(account, max(LEAST_CHARGE_S, estimate_s), account.weight)
        account.charge(charge.seconds, charge.weight)
        account.under_way += 1
        self._under_way += 1
        return charge

    def end(self, charge: Charge, actual_s: float | None = None) -> None:
        """Correct a charge to the card-seconds that the request has taken; None leaves the estimate."""
        account = charge.account
        if actual_s is not None:
            account.charge(max(LEAST_CHARGE_S, actual_s) - charge.seconds, charge.weight)
        account.under_way -= 1
        self._under_way -= 1
        self._end_s = max(self._end_s, account.level_s)
        self._rest()

    def switched(self, team: str, weight: float, seconds: float) -> None:
        """Charge the seconds of a switch to the team that it was for (F5)."""
        self._switch_s += (seconds - self._switch_s) * NEW if self._switch_s else seconds
        account = self._account(team, weight)
        account.rise_to(self._return_s() if account.is_away else self.floor_s)
        account.charge(seconds, account.weight)
        self._end_s = max(self._end_s, account.level_s)
        self._rest()

    def use_window(self, window_s: float | None) -> None:
        """Apply another window from now on; None = as measured switches demand."""
        self._window_s = window_s

    @property
    def is_contested(self) -> bool:
        """True while more than one team waits or is under way."""
        return sum(not account.is_away for account in self._accounts.values()) > 1

    # --- whose turn it is --------------------------------------------------------------------------------------

    @property
    def window_s(self) -> float:
        """By how much a team may be ahead of one that waits for it to make room, in card-seconds."""
        if self._window_s is not None:
            return self._window_s
        return max(LEAST_WINDOW_S, SWITCHES_PER_WINDOW * self._switch_s)

    @property
    def floor_s(self) -> float:
        """The lowest level that counts. Of two rivals neither falls below it, because starts end at the window (F3)."""
        return self._start_s - self._ahead_s(self._lightest, self._heaviest)

    def level_s(self, team: str) -> float:
        """Return the team's level; that of one that is away is the one at which it would come back."""
        account = self._accounts.get(team)
        if account is None:
            return self._return_s()
        return max(account.level_s, self._return_s() if account.is_away else self.floor_s)

    def may_enter(self, team: str, rivals: Iterable[str]) -> bool:
        """Return whether a request of the team may enter a loaded model which `rivals` wait to replace (F3).

        The team is not its own rival.
        """
        mine_s, weight = self.level_s(team), self._weight(team)
        return all(
            rival == team or mine_s - self.level_s(rival) <= self._ahead_s(weight, self._weight(rival))
            for rival in rivals
        )

    def _ahead_s(self, weight: float, other: float) -> float:
        """Return by how much the level of one of two teams may be above the other's.

        The lighter of two has a window of its own time; a measured one is longer by as much as both together weigh
        more than twice the lighter, or the switches, of which both cause as many, would take too much of its turns.
        """
        lighter = min(weight, other)
        unequal = (weight + other) / (2 * lighter) if self._window_s is None else 1.0
        return self.window_s * unequal / lighter

    def in_turn(self, teams: Iterable[str]) -> list[str]:
        """Return the teams, each once, the lowest level first; those of one level in the order given (F4)."""
        return sorted(dict.fromkeys(teams), key=self.level_s)

    def standings(self) -> dict[str, Standing]:
        """Return all known teams by name, for reports."""
        least_s = self._return_s()
        return {
            name: Standing(one.waiting, one.under_way, one.served_s, max(0.0, self.level_s(name) - least_s))
            for name, one in self._accounts.items()
        }

    def keep_only(self, teams: Collection[str]) -> None:
        """Forget all other teams that are away: they are no more, and so their weights do not count."""
        gone = [name for name, one in self._accounts.items() if one.is_away and name not in teams]
        for name in gone:
            del self._accounts[name]
        if gone and self._accounts:
            weights = [one.weight for one in self._accounts.values()]
            self._lightest, self._heaviest = min(weights), max(weights)

    # --- accounts ----------------------------------------------------------------------------------------------

    def _unqueue(self, team: str) -> None:
        account = self._queued[team]
        account.waiting -= 1
        if not account.waiting:
            del self._queued[team]

    def _return_s(self) -> float:
        """Return the lowest level of those that wait; if none does, the level of the last start."""
        if not self._queued:
            return self._start_s
        return max(self.floor_s, min(one.level_s for one in self._queued.values()))

    def _lift(self, account: Account) -> None:
        """Apply F1 to a team that begins to wait, or starts at once."""
        account.rise_to(self.floor_s if account.under_way else self._return_s())

    def _rest(self) -> None:
        """If nothing waits or is under way, forgive all debts: time that nobody else wanted was taken from nobody."""
        if not (self._under_way or self._queued):
            self._start_s = max(self._start_s, self._end_s)

    def _account(self, team: str, weight: float) -> Account:
        account = self._accounts.get(team)
        if account is None:
            self._forget()
            account = self._accounts[team] = Account(team)
        if account.weight != weight:  # new, or of another configuration
            account.weight = max(LEAST_WEIGHT, weight)
            weights = [one.weight for one in self._accounts.values()]
            self._lightest, self._heaviest = min(weights), max(weights)
        return account

    def _weight(self, team: str) -> float:
        account = self._accounts.get(team)
        return account.weight if account is not None else 1.0

    def _forget(self) -> None:
        """Drop at least half of the teams that are away, if they are too many: those with the lowest levels."""
        away = sorted((one for one in self._accounts.values() if one.is_away), key=lambda one: one.level_s)
        if len(away) >= MOST_AWAY:
            for one in away[: len(away) // 2]:
                del self._accounts[one.name]
