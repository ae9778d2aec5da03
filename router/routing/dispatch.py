"""The dispatcher, one request's way: choose → (wait) → enter the resident → rewrite → send → answer → leave.

`attempt` (`attempt.py`) makes these steps without awaiting anything. If something must be awaited it returns `Blocked`,
and continues from there when called again. Its two drivers:

`start`     attempts on behalf of the edge, without a task. This is the fast path of most requests: it waits for nothing
            but its turn in the queue.
`dispatch`  is the loop of a task: it awaits what blocks the request, and attempts again. It may be cancelled at any
            await, when the client has left; it releases there what the request holds.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import cast

from router.backend.backend import Backend
from router.backend.derived import Replaced
from router.backend.tickets import Ticket
from router.errors import RouterError
from router.http.client.response import Connection
from router.routing.answer import Answer
from router.routing.attempt import Attempts
from router.routing.awaited import head_of
from router.routing.call import Call
from router.routing.chains import Chains
from router.routing.decisions import Decisions
from router.routing.ends import NOWHERE_ELSE, Elsewhere, Ends
from router.routing.outcomes import Blocked
from router.routing.queued import Queued
from router.routing.underway import Reply, Underway
from router.telemetry import Telemetry


class Dispatcher:
    """Drives the attempts of requests until each has its answer."""

    def __init__(
        self,
        backend: Backend,
        chains: Chains,
        decisions: Decisions,
        wait_s: float,
        telemetry: Telemetry,
        elsewhere: Elsewhere = NOWHERE_ELSE,
    ) -> None:
        self._backend = backend
        self._line = backend.line
        self._ends = Ends(backend.name, telemetry, backend.now, elsewhere)
        self.attempt = Attempts(backend, chains, decisions, wait_s, telemetry, self._ends).attempt

    def start(self, call: Call, reply: Reply) -> Underway | Queued | Blocked | RouterError:
        """Fast path: send the request now, or when its turn has come.

        Returns Underway or Queued (`reply` is called once, later), Blocked if something else must be awaited (for
        `dispatch`), or the error that refuses it.
        """
        try:
            found = self.attempt(call, reply)
            if isinstance(found, Blocked) and found.join is not None:
                queued = Queued(self, call, reply)
                queued.wait(found.join(queued.go_on))
                call.begin_wait(is_queued=True)
                return queued
            return found
        except Exception as error:
            return self.fail(call, error)

    def again(self, call: Call, ticket: Ticket, reply: Reply) -> Underway | Queued | Blocked | RouterError:
        """Go on with a request that has waited without a task."""
        if ticket.error is not None:
            return self._ends.fault(call, ticket.error)
        call.let_in(ticket.let_in_to or "")
        return self.start(call, reply)

    def give_up(self, call: Call, ticket: Ticket) -> None:
        """Take a request that waits without a task out of the queue, and release what it holds."""
        self._line.give_up(ticket)
        self.abandon(call)

    async def dispatch(self, call: Call, blocked: Blocked | None = None) -> Answer:
        """Return the answer to one inference request; `blocked` is the result of its first attempt, if there was one.

        Raises a RouterError if the upstream has no answer.
        """
        try:
            # Not endless: each wait has its own deadline, and an attempt refuses after MAX_ATTEMPTS sends.
            while True:
                connection = await self.unblock(call, blocked) if blocked is not None else None
                found = await self.attempt_and_wait(call, connection)
                if isinstance(found, Answer):
                    return found
                blocked = found
        except BaseException as error:  # cancellation too: the one place where a waiting request releases what it holds
            self.end(call, error)
            raise

    def abandon(self, call: Call) -> None:
        """Release what a request holds if its task was cancelled before it began; a no-op for one that has ended."""
        if not call.is_ended:
            self.end(call, asyncio.CancelledError())

    def fail(self, call: Call, error: Exception) -> RouterError:
        """Release what a request holds and report that it fails; return the error for its client."""
        self.leave(call)
        return self._ends.fault(call, error)

    def end(self, call: Call, error: BaseException) -> None:
        """Release what a request holds, and report that `error` ended it."""
        self.leave(call)
        self._ends.report_failure(call, error)

    def leave(self, call: Call) -> None:
        """Leave the resident that a request has entered, if it has."""
        self._backend.leave(call.leave(self._backend.now()))

    async def unblock(self, call: Call, blocked: Blocked) -> Connection | None:
        """Await what blocks the request; return the connection for the next attempt, if that is what was awaited."""
        call.begin_wait(is_queued=blocked.why in ("turn", "room"))
        try:
            got = await blocked.until()
        except Replaced:  # the model that its tag is to be made from: decide again
            self.leave(call)
            got = None
        if blocked.why == "turn":
            call.let_in(cast("str", got))
        else:
            call.end_wait()
        return got if blocked.why == "connection" else None

    async def attempt_and_wait(self, call: Call, connection: Connection | None) -> Answer | Blocked:
        """Attempt once and await the head of the answer. Raises the error that came in place of an answer."""
        found = await head_of(call, lambda reply: self.attempt(call, reply, connection))
        return self.gone() if found is None else found

    def gone(self) -> Blocked:
        """Return what blocks a request whose variant Ollama did not find: a reading of the catalog."""
        return Blocked("variant", self._read_catalog)

    async def _read_catalog(self) -> None:
        with suppress(RouterError):  # then the request is sent again by what is known
            await self._backend.installed.refresh()
