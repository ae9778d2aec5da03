"""What one router has borrowed of the limits of a team that several routers share. Pure; the caller supplies the time.

A store lends each router pieces of a team's limits, which it uses without asking again. A report says in absolute
numbers what a router uses, and the answer is all that it has then: one that was lost is corrected by the next one.
Only tokens that were taken, requests that were lent and not made, and those that were made without being lent are
differences. So these carry a number, by which the store counts them once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from router.core.teams.pace import Pace, Recent
from router.core.teams.quotas import Left, Reason, Standing
from router.core.teams.team import Team

SPEND_S = 1.0
"""How long requests that were lent may be made: the store counts them for that much longer than a minute."""

RETRY_S = 1.0
"""After this time a request that others are in the way of may be admitted."""

SETTLED_S, SCARCE_S = 1.0, 0.1
"""How long what is free again is kept: others may want it, and if nothing is left they do so now."""

REFUSED_S = 0.1
"""The store is not asked again for this long after it had nothing."""


class Report(msgspec.Struct, frozen=True):
    """What a router uses of a team's limits, and wants of them: for requests that wait, and beyond (`spare`).

    `seq` numbers what is to be counted once: `spent` tokens, `returned` requests of those lent at second `returned_at`,
    and `late` requests that the store does not know; 0 = nothing. At least `floor` tokens were taken on `floor_day`.
    """

    team: Team
    seq: int
    spent: int
    returned: int
    returned_at: int
    late: int
    floor: int
    floor_day: int
    running: int
    waiting: int
    spare: int
    reserved: int
    tokens: int
    spare_tokens: int


class Lent(msgspec.Struct, frozen=True):
    """What a router has after its report, and what is left for all. Times are the store's.

    `slots` and `tokens` are for requests under way, those of the report included; `requests` may be begun within
    `SPEND_S`. `is_rest`: these are the last tokens of the day, for a request that is expected to take more.
    """

    at: int
    day: int
    slots: int
    slots_left: int
    requests: int
    requests_left: int
    wait_s: float
    reset_s: float
    tokens: int
    tokens_left: int
    used: int
    midnight_s: float
    is_rest: bool


class Loan:
    """What this router has of one team's limits, and uses. `floor` tokens were taken on `floor_day` before it began.

    `hold_s` is how long the store lends places and tokens if it hears nothing.
    """

    def __init__(self, team: Team, hold_s: float, floor: int = 0, floor_day: int = 0) -> None:
        self.team = team
        self.running = self.reserved = self.unreported = 0
        self.known_used, self.known_day = floor, floor_day
        self.is_asking = False
        self.due_s = math.inf
        self._hold_s = hold_s
        self._slots = self._tokens = self._requests = 0
        self._lent_at = self._seq = 0
        self._until_s = self._spend_until_s = self._refused_until_s = -math.inf
        self._kept: tuple[int, int, int, int, int] | None = None  # what was reported, but not answered
        self._last: Lent | None = None
        self._answered_s = 0.0
        self._pace, self._token_pace, self._recent = Pace(), Pace(), Recent()

    def follow(self, team: Team) -> None:
        """Set the team, which a reload may have changed."""
        self.team = team

    @property
    def is_idle(self) -> bool:
        """Whether the store has to hear nothing of it."""
        return not (self.running or self.unreported or self._kept or self.is_asking) and self.due_s == math.inf

    @property
    def unanswered(self) -> int:
        """Return the tokens of which it is not known whether the store has counted them."""
        return self.unreported + (self._kept[1] if self._kept is not None else 0)

    # --- requests ----------------------------------------------------------------------------------------------

    def has_room(self, now_s: float, tokens: int) -> bool:
        """Return True if a request that is expected to take `tokens` can begin without asking."""
        limits = self.team.limits
        if self.is_asking:
            return False
        if limits.requests_per_minute is not None and not (self._requests and now_s < self._spend_until_s):
            return False
        if limits.concurrent is None and limits.tokens_per_day is None:
            return True
        if now_s >= self._until_s or (limits.concurrent is not None and self.running >= self._slots):
            return False
        if limits.tokens_per_day is None:
            return True
        free, is_rest = self._free_tokens, self._last is not None and self._last.is_rest
        return free >= max(1, tokens) or (is_rest and not self.reserved and free > 0)

    def take(self, now_s: float, tokens: int, *, is_lent: bool = True) -> None:
        """Begin a request for which there is room, or that was admitted although nothing could be asked."""
        self.running += 1
        self.reserved += tokens
        if self.team.limits.requests_per_minute is not None:
            self._recent.add(now_s, is_known=is_lent)
            self._requests -= is_lent
        self._pace.add(now_s, 1)
        self._token_pace.add(now_s, tokens)
        self._look_again(now_s + self._hold_s / 3)

    def release(self, now_s: float, reserved: int, took: int) -> None:
        """End a request that has taken `took` tokens."""
        self.running -= 1
        self.reserved -= reserved
        if self.team.limits.tokens_per_day is not None:
            self.unreported += took
        self._look_again(now_s + (SCARCE_S if self._is_scarce else SETTLED_S))

    def refused(self, now_s: float) -> tuple[Reason, float] | None:
        """Return why a request is refused without asking: the store had nothing a moment ago."""
        return self.why(now_s) if now_s < self._refused_until_s and not self.is_asking else None

    def why(self, now_s: float) -> tuple[Reason, float]:
        """Return the limit of which nothing is left, and how long until there may be something."""
        limits, last = self.team.limits, self._last
        if last is None:
            return "on_loss", RETRY_S
        since_s = now_s - self._answered_s
        if limits.concurrent is not None and self.running >= self._slots:
            return "concurrent", RETRY_S
        if limits.requests_per_minute is not None and not self._requests:
            return "requests_per_minute", max(RETRY_S, last.wait_s - since_s)
        if limits.tokens_per_day is not None and last.used >= limits.tokens_per_day:
            return "tokens_per_day", max(RETRY_S, last.midnight_s - since_s)
        return "tokens_per_day", RETRY_S

    def standing(self, now_s: float) -> Standing:
        """Return what is left of the team's limits."""
        limits, last = self.team.limits, self._last
        if last is None:
            return Standing()
        requests, tokens, since_s = None, None, now_s - self._answered_s
        if (most := limits.requests_per_minute) is not None:
            requests = Left(most, min(most, last.requests_left + self._requests), max(0.0, last.reset_s - since_s))
        if (most := limits.tokens_per_day) is not None:
            left = last.tokens_left + self._free_tokens
            tokens = Left(most, min(most, max(0, left)), max(0.0, last.midnight_s - since_s))
        return Standing(requests, tokens)

    # --- the store ---------------------------------------------------------------------------------------------

    def report(self, now_s: float, waiting: Sequence[int]) -> Report:
        """Return what to tell the store, for requests that wait and are expected to take so many tokens each.

        Nothing of what is free can be used until it has answered.
        """
        returned, self._requests = self._requests, 0
        if self._kept is None and (self.unreported or returned or self._recent.has_late):
            self._seq += 1
            self._kept = (self._seq, self.unreported, returned, self._lent_at, self._recent.tell(now_s))
            self.unreported = 0
        self.is_asking, self.due_s = True, math.inf
        spare = self._pace.of(now_s)
        return Report(
            self.team,
            *(self._kept or (0, 0, 0, 0, 0)),
            floor=self.known_used,
            floor_day=self.known_day,
            running=self.running,
            waiting=len(waiting),
            spare=spare,
            reserved=self.reserved,
            tokens=sum(max(1, tokens) for tokens in waiting),
            spare_tokens=self._token_pace.of(now_s),
        )

    def last_report(self, now_s: float) -> Report:
        """Return what to tell the store when this router ends: it needs nothing any more."""
        return msgspec.structs.replace(self.report(now_s, ()), running=0, spare=0, reserved=0, spare_tokens=0)

    def receive(self, lent: Lent, sent_s: float, now_s: float) -> None:
        """Take what the store has answered to a report that was sent at `sent_s`."""
        self.is_asking, self._kept, self._last = False, None, lent
        self._slots, self._tokens, self._requests = lent.slots, lent.tokens, lent.requests
        self._lent_at, self._answered_s = lent.at, now_s
        self.known_used, self.known_day = lent.used, lent.day
        # From the sending on, so that the store does not lend it to others while it is used here.
        self._until_s, self._spend_until_s = sent_s + self._hold_s, sent_s + SPEND_S
        if self._recent.has_late:
            self._look_again(now_s)
        elif self._requests or self._slots > self.running or self._tokens > self.reserved or self.unreported:
            self._look_again(now_s + (SCARCE_S if self._is_scarce else SETTLED_S))
        elif self.running:
            self._look_again(now_s + self._hold_s / 3)

    def refuse(self, now_s: float) -> tuple[Reason, float]:
        """Return why a request that has waited for the answer is refused; the next ones are for a moment, too."""
        why, retry_s = self.why(now_s)
        is_for_all = why != "tokens_per_day" or retry_s > RETRY_S  # else a smaller one may be admitted
        if is_for_all:
            self._refused_until_s = now_s + REFUSED_S
        return why, retry_s

    def fail(self, now_s: float) -> None:
        """Give up what was lent: the store did not answer. What it was told is told again."""
        self.is_asking = False
        self._slots = self._tokens = self._requests = 0
        self._until_s = self._spend_until_s = self._refused_until_s = -math.inf
        if self.running or self.unreported or self._kept or self._recent.has_late:
            self.due_s = now_s

    def tell_all(self, now_s: float) -> None:
        """Have the store told everything again: it has lost what it knew."""
        self._recent.forget()
        self.due_s = now_s

    @property
    def _free_tokens(self) -> int:
        return self._tokens - self.unreported - self.reserved

    @property
    def _is_scarce(self) -> bool:
        limits, last = self.team.limits, self._last
        if last is None:
            return True
        is_full = limits.concurrent is not None and not last.slots_left
        is_full = is_full or (limits.requests_per_minute is not None and not last.requests_left)
        return is_full or (limits.tokens_per_day is not None and not last.tokens_left)

    def _look_again(self, at_s: float) -> None:
        self.due_s = min(self.due_s, at_s)
