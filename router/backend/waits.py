"""The wait of a request: from joining the line to its turn, its refusal, or the leaving of its client.

A request in a task awaits it. One without is called when it has ended, together with all others whose turn came in
the same turn of the event loop: most requests of a crowd wait, and a future and its callbacks would cost as much as the
rest.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Protocol

from router.backend.admission import Admission
from router.backend.switches import Target
from router.backend.tickets import GoOn, Ticket
from router.config import Config
from router.core.decision.verdict import Decision
from router.core.teams.payer import NOBODY, Payer
from router.errors import Busy
from router.telemetry import QueueChanged, Telemetry

logger = logging.getLogger("router.backend")

LEAST_S = 0.01
"""A request that comes after its deadline may still be let in within this time."""

LOADS_S = 1.0
"""How often a request past its deadline is looked at whose own model is being loaded."""

TELL_S = 0.05
"""The depth of the line is reported this long after a change: every request that waits changes it twice."""


class Deciding(Protocol):
    """The line, which decides whose turn it is."""

    @property
    def loading(self) -> Target | None: ...

    def pump(self) -> None: ...

    def served(self) -> Mapping[int, int]:
        """Return what each resident has served by now, by its order, as far as it matters."""

    def expected_wait_s(self) -> float: ...


class Waits:
    """The waits of one line. One timer serves all deadlines, because nearly every request has its turn before."""

    def __init__(self, line: Deciding, admission: Admission, config: Config, telemetry: Telemetry) -> None:
        self._line = line
        self._admission, self._waitlist = admission, admission.waitlist
        self._settings = config.queue
        self._telemetry = telemetry
        self._loop = asyncio.get_running_loop()
        self._hurried: dict[Ticket, float] = {}  # those that wait for less than `queue.wait_s`: how long
        self._deadline: asyncio.TimerHandle | None = None
        self._looks_at_s = math.inf  # when `_deadline` is
        self._telling: asyncio.TimerHandle | None = None
        self._over: list[Ticket] = []  # whose waits have ended in this turn of the loop

    async def wait(
        self,
        key: Hashable,
        decide: Callable[[], Decision],
        since_s: float,
        payer: Payer = NOBODY,
        *,
        unused: str = "",
        wait_s: float = math.inf,
        joined: Callable[[], None] = lambda: None,
    ) -> str:
        """Let a request wait; return when it should be decided again.

        The result is the weights that it was let in to ("" = none), which it enters before it awaits anything. Raises
        Busy after `queue.wait_s`, or `wait_s` if that is less, in which the time does not count while the request's own
        model loads, and what `join` raises. `payer` is charged the switches that it causes; `unused` are weights that
        it was let in to, and did not enter. `joined` is called when it stands in the line.
        """
        turn: asyncio.Future[str] = self._loop.create_future()
        ticket = self.join(key, decide, since_s, payer, turn=turn, unused=unused, wait_s=wait_s)
        joined()
        turn.add_done_callback(partial(self._ended, ticket))
        try:
            if turn.done():  # then awaiting it would not pause, and the request would still be in the line
                await asyncio.sleep(0)
            return await turn
        except asyncio.CancelledError:
            if not (turn.cancel() or turn.cancelled()):
                self._loop.call_soon(self._line.pump)  # after the turn, which has come in this moment, was taken back
            raise

    def join(
        self,
        key: Hashable,
        decide: Callable[[], Decision],
        since_s: float,
        payer: Payer = NOBODY,
        *,
        go_on: GoOn | None = None,
        turn: asyncio.Future[str] | None = None,
        unused: str = "",
        wait_s: float = math.inf,
    ) -> Ticket:
        """Let a request wait that has no task: `go_on` is called once, later, with its ticket, unless it is given up.

        Then the ticket has the weights that it was let in to, which it enters at once, or the `error`: see `wait`, for
        which `turn` gets them. Raises LimitReached if too many of its team wait, Busy if the queue is full.
        """
        depth = self._waitlist.depth
        if depth >= self._settings.max_waiting:
            raise Busy(retry_after_s=self._line.expected_wait_s(), position=depth + 1)
        self._admission.bounds.check_waiting(payer, self._line.expected_wait_s)
        ticket = self._waitlist.join(key, decide, since_s, turn, self._come, self._line.served(), payer, go_on)
        if unused:
            ticket.pause()
        self._admission.count_in(payer)
        self._note_depth()
        try:
            if not self._admission.joined(ticket, is_again=bool(unused)):
                self._line.pump()
        except BaseException:
            self._end_without_turn(ticket)
            raise
        if wait_s < self._settings.wait_s:
            self._hurried[ticket] = wait_s
        else:
            wait_s = self._settings.wait_s
        if since_s + wait_s < self._looks_at_s and ticket.is_waiting:  # most often earlier ones are looked at before
            self._look_by(max(since_s + wait_s, self._loop.time() + LEAST_S))
        return ticket

    def give_up(self, ticket: Ticket) -> None:
        """Take a request without a task out of the line whose client has left; a turn that has come is not used."""
        if not ticket.has_left:
            self._end_without_turn(ticket)

    # --- its end -----------------------------------------------------------------------------------------------

    def _come(self, ticket: Ticket) -> None:
        self._over.append(ticket)
        if len(self._over) == 1:
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """Continue the requests without a task whose waits have ended."""
        over, self._over = self._over, []
        for ticket in over:
            go_on = ticket.go_on
            if go_on is None or ticket.has_left:
                continue
            try:
                if ticket.error is not None:
                    self._end_without_turn(ticket)
                    go_on(ticket)
                else:
                    self._leave(ticket)
                    if not go_on(ticket):
                        self._admission.settle(ticket)
            except Exception:  # a bug in one request must not hold up the others
                logger.exception("a request that has waited failed")

    def _ended(self, ticket: Ticket, turn: asyncio.Future[str]) -> None:
        """Take a request out of the line; runs before whoever waits for the turn goes on."""
        if turn.cancelled() or turn.exception() is not None:
            self._end_without_turn(ticket)
        else:
            self._leave(ticket)
            self._loop.call_soon(self._admission.settle, ticket)  # after the request has used its turn, or has not

    def _end_without_turn(self, ticket: Ticket) -> None:
        self._leave(ticket)
        self._admission.settle(ticket)
        self._line.pump()  # residents that were closed in favour of this request take requests again

    def _leave(self, ticket: Ticket) -> None:
        self._hurried.pop(ticket, None)
        self._admission.leave(ticket)
        self._note_depth()

    # --- deadlines ---------------------------------------------------------------------------------------------

    def _look_by(self, at_s: float) -> None:
        """See to it that requests are refused at `at_s` that have waited for too long by then."""
        if at_s < self._looks_at_s:
            self._look_at(at_s)

    def _overdue_at_s(self, ticket: Ticket) -> float:
        return ticket.since_s + self._hurried.get(ticket, self._settings.wait_s)

    def _look_at(self, at_s: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._looks_at_s = at_s
        self._deadline = self._loop.call_at(at_s, self._refuse_overdue) if at_s < math.inf else None

    def _refuse_overdue(self) -> None:
        """End the waits that have lasted too long; those for a model that is being loaded go on."""
        now_s, loading, next_s = self._loop.time(), self._line.loading, math.inf
        came_by_s = now_s - self._settings.wait_s
        self._look_at(now_s + LOADS_S)  # whatever happens below: nobody else would look again
        for ticket in (*self._waitlist.up_to(came_by_s), *self._hurried):
            at_s = self._overdue_at_s(ticket)
            # By the same comparison as in `up_to`, which has nobody after it: a sum may round to what is over.
            is_first_of_next = ticket.since_s > came_by_s and ticket not in self._hurried
            if at_s > now_s or is_first_of_next:
                next_s = min(next_s, at_s)
            elif loading is not None and loading.weights == ticket.weights:
                next_s = min(next_s, now_s + LOADS_S)
            else:
                ticket.fail(self._overdue(ticket))
        self._look_at(max(next_s, now_s + LEAST_S))

    def _overdue(self, ticket: Ticket) -> Busy:
        position = self._waitlist.position(ticket)
        wait_s = self._hurried.get(ticket, self._settings.wait_s)
        text = f"server busy: queued for {wait_s:.0f} s, position {position}"
        return Busy(text, retry_after_s=self._line.expected_wait_s(), position=position)

    # --- reports -----------------------------------------------------------------------------------------------

    def _note_depth(self) -> None:
        if self._telling is None:
            self._telling = self._loop.call_later(TELL_S, self._tell_depth)

    def _tell_depth(self) -> None:
        self._telling = None
        self._telemetry.emit(QueueChanged(depth=self._waitlist.depth))

    def close(self) -> None:
        """Stop the timers."""
        self._look_at(math.inf)
        if self._telling is not None:
            self._telling.cancel()
