"""The limits of teams that several routers share: what is lent by a store, and what each may use without it.

A request begins at once on what this router has borrowed. Else it waits for the store, at most as long as one call may
take; then it is admitted by this router's part of the limit. While the store cannot be used nothing waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Hashable
from functools import partial

from router.adapters.lender import Lender, Store, Times
from router.core.teams.loan import Loan
from router.core.teams.memory_quotas import MemoryQuotas
from router.core.teams.part import Place, part_of
from router.core.teams.quotas import DAY_S, LEASE_S, Asking, Granted, Refused, Standing
from router.core.teams.team import Team

RETRY_S = 5.0
"""When a request that cannot be counted may come again: within this time a store that is back is used."""


class SharedQuotas:
    """Counts in `store` for all routers, and in `local` what this one may use without it.

    `routers` is how many there are until the store has said so. `report` takes sentences for the operator. `error` is
    why the store cannot be used, "" if it can. Nothing is asked unless `watch` runs. `is_first`: no router before this
    one in the process tells the store what `local` has counted.
    """

    def __init__(
        self,
        local: MemoryQuotas,
        store: Store,
        times: Times,
        routers: int,
        *,
        unix_now: Callable[[], float],
        report: Callable[[str], None],
        is_first: bool = True,
    ) -> None:
        self._local, self._unix_now, self._hold_s, self._is_first = local, unix_now, times.hold_s, is_first
        self._loop = asyncio.get_running_loop()
        self._loans: dict[str, Loan] = {}
        self._held: dict[Hashable, tuple[Loan, int, float]] = {}  # requests under way, the oldest first
        self._lender = Lender(store, times, routers, self._loans, report=report, at_look=self._lapse)
        self.watch, self.tried, self.aclose = self._lender.watch, self._lender.tried, self._lender.aclose

    @property
    def error(self) -> str:
        """Why the store cannot be used, "" if it can."""
        return self._lender.error

    @property
    def place(self) -> Place:
        """How many routers there are, as far as is known."""
        return self._lender.place

    # --- requests ----------------------------------------------------------------------------------------------

    def admit(self, team: Team, request: Hashable, tokens: int) -> Granted | Refused | Asking:
        """Reserve what a request is expected to take, or say that the store must be asked."""
        if not self._lender.is_up:
            return self._admit_alone(team, request, tokens)
        loan, now_s = self._loan(team), self._loop.time()
        if loan.has_room(now_s, tokens):
            return self._lend(loan, request, tokens)
        if (refused := loan.refused(now_s)) is not None:
            return Refused(*refused, loan.standing(now_s))
        return Asking(partial(self._ask, team, request, tokens))

    def settle(self, request: Hashable, tokens: int) -> None:
        """Replace the reservation by the `tokens` that the request took. A second time it does nothing."""
        self._local.settle(request, tokens)
        if (held := self._held.pop(request, None)) is not None:
            loan, reserved, _ = held
            loan.release(self._loop.time(), reserved, tokens)

    def left(self, team: Team) -> Standing:
        """Return what is left of the team's limits; without the store, of this router's part of them."""
        loan = self._loans.get(team.name)
        if self._lender.is_up and loan is not None:
            return loan.standing(self._loop.time())
        return self._local.left(self._part(team))

    def under_way(self, team: Team) -> int:
        """Return how many requests of the team this router has admitted and not settled yet."""
        return self._local.under_way(team)

    def keep_teams(self, names: Collection[str]) -> None:
        """Forget the counts of all other teams here; in the store they expire."""
        self._local.keep_teams(names)
        for name in [name for name, loan in self._loans.items() if name not in names and loan.is_idle]:
            del self._loans[name]

    @property
    def note(self) -> str:
        """How limits are counted now, for `/readyz`."""
        return f"by this router alone, as one of {self.place.routers}: {self.error}" if self.error else "shared"

    def _loan(self, team: Team) -> Loan:
        loan = self._loans.get(team.name)
        if loan is None:
            used, today = self._local.used(team) if self._is_first else 0, int(self._unix_now() // DAY_S)
            loan = self._loans[team.name] = Loan(team, self._hold_s, used, today)
        elif loan.team is not team:
            loan.follow(team)
        return loan

    def _lend(self, loan: Loan, request: Hashable, tokens: int) -> Granted:
        self._local.count(loan.team, request, tokens)
        return self._hold(loan, request, tokens)

    def _hold(self, loan: Loan, request: Hashable, tokens: int, *, is_lent: bool = True) -> Granted:
        now_s = self._loop.time()
        loan.take(now_s, tokens, is_lent=is_lent)
        self._held[request] = loan, tokens, now_s
        left = loan.standing(now_s)
        return Granted(left.requests, left.tokens)

    async def _ask(self, team: Team, request: Hashable, tokens: int) -> Granted | Refused:
        loan, found = self._loan(team), None
        if self._lender.is_up:
            try:
                found = await self._lender.ask(loan, tokens, partial(self._lend, loan, request, tokens))
            except asyncio.CancelledError:
                self.settle(request, 0)  # it may have been admitted at this very moment
                raise
        return self._admit_alone(team, request, tokens) if found is None else found

    # --- without the store -------------------------------------------------------------------------------------

    def _admit_alone(self, team: Team, request: Hashable, tokens: int) -> Granted | Refused:
        if team.limits.on_loss == "closed":
            return Refused("on_loss", RETRY_S, Standing())
        part = self._part(team)
        if part.limits.requests_per_minute == 0:
            return Refused("requests_per_minute", RETRY_S, Standing())
        found = self._local.admit(part, request, tokens)
        if isinstance(found, Granted):
            self._hold(self._loan(team), request, tokens, is_lent=False)
        return found

    def _part(self, team: Team) -> Team:
        loan, used = self._loan(team), self._local.used(team)
        is_today = loan.known_day == int(self._unix_now() // DAY_S)
        known, counted = (loan.known_used, max(0, used - loan.unanswered)) if is_today else (0, 0)
        return part_of(team, self.place, used=used, known=known, counted=counted)

    def _lapse(self) -> None:
        """Release requests that were never settled."""
        now_s = self._loop.time()
        while self._held:
            request, (loan, reserved, since_s) = next(iter(self._held.items()))
            if since_s + LEASE_S > now_s:
                break
            del self._held[request]
            loan.release(now_s, reserved, 0)
