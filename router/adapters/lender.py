"""Asks the store for what teams may use: tells it what is due, and answers the requests that wait for it.

One call is under way at a time, and holds all that has come together meanwhile.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from router.adapters.limit_scripts import Script, beat_script, lent_of, report_script
from router.adapters.valkey import StoreLost
from router.core.teams.loan import Loan
from router.core.teams.part import Place
from router.core.teams.quotas import Granted, Refused

FAILURES = 3
"""After so many failures in a row the store is tried again only after a pause."""

WELL_S, BRIEF_PAUSE_S = 5.0, 0.05
"""A failure after so long a time without one begins a new row; the pause before the third one."""

OTHERS_S = 0.5
"""A store that has lost what it knew is only told for this long, and the pause, in which other routers notice it."""

LOOK_S, MOST_AT_ONCE = 0.1, 64
"""How often is looked for reports that are due, and most teams of one call."""


class Store(Protocol):
    """Runs scripts; see ValkeyStore."""

    async def connect(self, timeout_s: float) -> None: ...

    async def run(self, scripts: Sequence[Script], timeout_s: float) -> list[list[int] | StoreLost]: ...

    async def drop(self) -> None: ...


class Times(NamedTuple):
    """How long a connection and a call may take, how long the store lends, and the pause after failures."""

    connect_s: float
    call_s: float
    hold_s: float
    pause_s: float


class Waiting(NamedTuple):
    """A request that waits for the store. Its `answer` is None if it is to be admitted without; `admit` begins it."""

    tokens: int
    admit: Callable[[], Granted]
    answer: asyncio.Future[Granted | Refused | None]

    def settle(self, answer: Granted | Refused | None) -> None:
        """Answer it, unless its client has left."""
        if not self.answer.done():
            self.answer.set_result(answer)


class _Breaker:
    """Says when a store that has failed is tried again."""

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self._failures, self._well_s = 0, math.inf

    def rise(self, now_s: float) -> None:
        """Note that it can be used."""
        self._well_s = now_s + WELL_S

    def fall(self, now_s: float) -> None:
        """Note a failure."""
        self._failures = 1 if now_s >= self._well_s else self._failures + 1
        self._well_s = math.inf

    @property
    def wait_s(self) -> float:
        """How long it is left alone."""
        return BRIEF_PAUSE_S if self._failures < FAILURES else self._pause_s


class Lender:
    """Borrows from `store` for the `loans`, by the names of their teams.

    `place` is how many routers there are, as far as is known. `error` is why the store cannot be used, "" if it can.
    `report` takes sentences for the operator; `at_look` is called ten times a second while anything is lent.
    """

    def __init__(
        self,
        store: Store,
        times: Times,
        routers: int,
        loans: dict[str, Loan],
        *,
        report: Callable[[str], None],
        at_look: Callable[[], None],
    ) -> None:
        self.error = "it has not been reached yet"
        self.place, self.is_up = Place(routers, 0), False
        self._store, self._times, self._loans, self._report, self._at_look = store, times, loans, report, at_look
        self._loop = asyncio.get_running_loop()
        self._router = secrets.token_hex(6)
        self._waiting: dict[Loan, list[Waiting]] = {}
        self._wake, self._tried = asyncio.Event(), asyncio.Event()
        self._is_reported = self._has_said_bad = self._has_said_fault = self._is_forgetful = False
        self._has_lent = True
        self._since = 0  # when the store has begun to know anything, by its own clock
        self._breaker, self._beat_s, self._look_s = _Breaker(times.pause_s), 0.0, 0.0

    async def ask(self, loan: Loan, tokens: int, admit: Callable[[], Granted]) -> Granted | Refused | None:
        """Return what the store says to a request; None if it cannot be used, or takes longer than a call may."""
        waiting = Waiting(tokens, admit, self._loop.create_future())
        self._waiting.setdefault(loan, []).append(waiting)
        self._has_lent = True
        self._wake.set()
        late = self._loop.call_later(self._times.call_s, waiting.settle, None)
        try:
            return await waiting.answer
        finally:
            late.cancel()

    async def tried(self) -> None:
        """Wait until the store was tried once, which takes as long as to connect and to call it at most."""
        await self._tried.wait()

    async def watch(self) -> None:
        """Connect to the store, and tell it what is due, again and again until cancelled."""
        try:
            while True:
                try:
                    await self._store.connect(self._times.connect_s)
                    await self._tell([], beat=True)  # what is too slow for a call is not asked by requests
                    await self._tell_all()
                    self._rise()
                    await self._serve()
                except StoreLost as lost:
                    self._fall(str(lost))
                await asyncio.sleep(self._breaker.wait_s)
        finally:
            self._fall("it is not asked any more", is_fault=False)

    async def aclose(self) -> None:
        """Give back what is lent, if the store answers soon, and close the connection; `watch` has ended."""
        gone = [loan.last_report(self._loop.time()) for loan in self._loans.values() if not loan.is_idle]
        scripts = [report_script(one, self._router, self.place.routers, self._times.hold_s) for one in gone]
        try:
            await self._store.run([*scripts[:MOST_AT_ONCE], beat_script(self._router, 0)], self._times.call_s)
        except StoreLost:
            pass  # it forgets this router by itself
        await self._store.drop()

    async def _serve(self) -> None:
        """Tell the store what requests wait for, and what is due. Raises StoreLost."""
        while True:
            if not self._waiting:
                await self._woken()
            now_s = self._loop.time()
            loans = list(self._waiting)
            if now_s >= self._look_s:
                self._look_s = now_s + LOOK_S
                self._at_look()
                self._has_lent = any(not loan.is_idle for loan in self._loans.values())
                loans += [loan for loan in self._loans.values() if loan.due_s <= now_s and loan not in self._waiting]
            is_beat = now_s >= self._beat_s
            if loans or is_beat:
                await self._tell(loans[:MOST_AT_ONCE], beat=is_beat)

    async def _woken(self) -> None:
        """Wait for a request, but not longer than until something is due."""
        self._wake.clear()
        until_s = min(self._beat_s, self._look_s) if self._has_lent else self._beat_s
        timer = self._loop.call_at(until_s, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()

    async def _tell(self, loans: Sequence[Loan], *, beat: bool) -> None:
        sent_s, asked = self._loop.time(), [(loan, self._waiting.pop(loan, [])) for loan in loans]
        reports = [loan.report(sent_s, [one.tokens for one in waiting]) for loan, waiting in asked]
        router, times = self._router, self._times
        scripts = [report_script(one, router, self.place.routers, times.hold_s) for one in reports]
        if beat:
            scripts.append(beat_script(router, times.hold_s))
        answers: Sequence[list[int] | StoreLost] = ()
        try:
            answers = await self._store.run(scripts, times.call_s)
        finally:  # on every path: a request that waits is answered
            for place, (loan, waiting) in enumerate(asked):
                answer = answers[place] if answers else StoreLost()
                self._answered(loan, waiting, answer, sent_s)
        if beat:
            self._beaten(answers[-1])

    async def _tell_all(self) -> None:
        """Tell the store what it does not know before it is asked; if it has lost all, others must do so, too."""
        for _ in range(2):  # first what was told before and not answered, then what has come since
            due = [loan for loan in self._loans.values() if loan.due_s <= self._loop.time()]
            for start in range(0, len(due), MOST_AT_ONCE):
                await self._tell(due[start : start + MOST_AT_ONCE], beat=False)
        if self._is_forgetful:
            await asyncio.sleep(self._times.pause_s + OTHERS_S)
            await self._tell([], beat=True)

    def _beaten(self, answer: list[int] | StoreLost) -> None:
        if isinstance(answer, StoreLost):
            raise StoreLost(*answer.args)  # not itself: its traceback would refer to those who hold it
        routers, before, since, bad = answer[:4]
        self._is_forgetful = self._since not in (0, since)
        if not self._is_forgetful:  # else the others have not said yet that they are there
            self.place = Place(max(1, routers), before)
        self._since = since
        if self._is_forgetful:
            for loan in self._loans.values():
                loan.tell_all(self._loop.time())
        self._beat_s = self._loop.time() + self._times.hold_s / 10
        self._say_bad(bad)

    def _answered(self, loan: Loan, waiting: Sequence[Waiting], answer: list[int] | StoreLost, sent_s: float) -> None:
        """Admit the requests that have waited for an answer, in their order, as far as there is room."""
        now_s = self._loop.time()
        if isinstance(answer, StoreLost):
            loan.fail(now_s)
            self._say_fault(loan.team.name, answer)
        else:
            lent, bad = lent_of(answer)
            loan.receive(lent, sent_s, now_s)
            self._say_bad(bad)
        for one in waiting:
            if one.answer.done():  # its client has left, or it has waited for too long
                continue
            if isinstance(answer, StoreLost):
                one.settle(None)
            elif loan.has_room(now_s, one.tokens):
                one.settle(one.admit())
            else:
                one.settle(Refused(*loan.refuse(now_s), loan.standing(now_s)))

    def _rise(self) -> None:
        self.is_up, self.error = True, ""
        self._breaker.rise(self._loop.time())
        self._tried.set()
        if self._is_reported:
            self._is_reported = False
            self._report("the store of shared limits can be used again")

    def _fall(self, why: str, *, is_fault: bool = True) -> None:
        """Let every request that waits be admitted without the store."""
        self._breaker.fall(self._loop.time())
        self.is_up, self.error = False, why
        self._tried.set()
        for waiting in self._waiting.values():
            for one in waiting:
                one.settle(None)
        self._waiting.clear()
        for loan in self._loans.values():
            loan.fail(self._loop.time())
        if is_fault and not self._is_reported:
            self._is_reported = True
            part = f"each router admits its part, one of {self.place.routers}"
            self._report(f"the store of shared limits cannot be used, {part}: {why}")

    def _say_fault(self, team: str, lost: StoreLost) -> None:
        """Report that the counts of one team are refused, once; not that the whole store cannot be used."""
        if (why := str(lost)) and not self._has_said_fault:
            self._has_said_fault = True
            self._report(
                f"the store of shared limits does not count the team {team}, each router admits its part: {why}"
            )

    def _say_bad(self, bad: int) -> None:
        if bad and not self._has_said_bad:
            self._has_said_bad = True
            self._report(f"the store of shared limits had {bad} values that no router writes; they were removed")
