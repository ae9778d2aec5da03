"""The dispatcher of a front: a node is chosen for each request, and told by whose right and by which chain.

While no byte of an answer has gone to its client a request goes on to the next node: if its own declines it before it
has changed anything (421), cannot be reached, or fails it. After three nodes one is asked to do what it can.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, NamedTuple, cast

from router.errors import Busy, RouterError, UpstreamError
from router.http.client.response import Connection, UpstreamRequest
from router.routing.answer import Answer
from router.routing.awaited import head_of
from router.routing.call import Call
from router.routing.chains import Chains
from router.routing.ends import Ends
from router.routing.fleet.failures import Failures
from router.routing.fleet.fleet import NEXT
from router.routing.front.choosing import Choosing
from router.routing.front.forward import Forward
from router.routing.front.going import Going
from router.routing.front.members import Members
from router.routing.front.node import Node
from router.routing.front.own import UnderWay
from router.routing.outcomes import Blocked
from router.routing.underway import Reply
from router.routing.visit import Visit
from router.telemetry import Telemetry

MOST_ENDS = 8192
"""Nodes by whose names ends are reported."""


class Connected(NamedTuple):
    """A connection to the node that was chosen for a request."""

    going: Going
    connection: Connection


class Front:
    """Dispatches to nodes. It has the methods of `Dispatcher` that the edge uses."""

    def __init__(
        self,
        members: Members,
        chains: Chains,
        choosing: Choosing,
        failures: Failures,
        own: UnderWay,
        telemetry: Telemetry,
        name: str,
    ) -> None:
        self._members = members
        self._chains = chains
        self._choosing = choosing
        self._failures = failures
        self._own = own
        self._telemetry = telemetry
        self._now = asyncio.get_running_loop().time
        self._name = name
        self._ends: dict[str, Ends] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        failures.ask(choosing.has_others)

    def start(self, call: Call, reply: Reply) -> Forward | Blocked | RouterError:
        """Send the request now if nothing must be awaited; see `Dispatcher.start`."""
        try:
            return self._attempt(call, reply)
        except Exception as error:
            self._own.leave(call)
            return self._ends_at(call).fault(call, error)

    async def dispatch(self, call: Call, blocked: Blocked | None = None) -> Answer:
        """Return the answer to one inference request; see `Dispatcher.dispatch`."""
        try:
            # Not endless: each wait has its own deadline, and a request is sent to a few nodes only.
            while True:
                found = await self._step(call, blocked)
                if isinstance(found, Answer):
                    return found
                blocked = found
        except BaseException as error:
            self._own.leave(call)
            self._ends_at(call).report_failure(call, error)
            raise

    def abandon(self, call: Call) -> None:
        """Report the end of a request whose task was cancelled before it began."""
        self._own.leave(call)
        if not call.is_ended:
            self._ends_at(call).report_failure(call, asyncio.CancelledError())

    def gone(self) -> Blocked:
        """Return what blocks a request that is to be attempted again."""
        return NEXT

    async def _step(self, call: Call, blocked: Blocked | None) -> Answer | Blocked:
        """Await what blocks the request, and attempt once. Raises the error that ends it."""
        connected = None
        if blocked is not None:
            call.begin_wait(is_queued=False)
            try:
                got = await blocked.until()
            except (UpstreamError, Busy) as error:
                if blocked.why == "connection" and self._is_elsewhere(call, error):
                    return NEXT
                raise
            finally:
                call.end_wait()
            connected = cast("Connected", got) if blocked.why == "connection" else None
        return await self._attempt_and_wait(call, connected)

    def _is_elsewhere(self, call: Call, error: UpstreamError | Busy) -> bool:
        """Return True if a request goes on to another node, since there is no connection to its own.

        Nothing was sent there, also if the time to connect was over. A node that was taken away has not failed it.
        """
        self._own.leave(call)
        visit = call.visit
        if visit is not None and visit.place and self._members.named(visit.place) is None:
            visit.leave()
            call.move()
            return True
        return self._failures.moves(call, error, is_free=True)

    async def _attempt_and_wait(self, call: Call, connected: Connected | None) -> Answer | Blocked:
        came = await head_of(call, lambda reply: self._attempt(call, reply, connected))
        return NEXT if came is None else came

    def _attempt(self, call: Call, reply: Reply, connected: Connected | None = None) -> Forward | Blocked:
        """Send the request to a node, or return what must be awaited first. Raises a RouterError if it is refused."""
        self._chains.begin(call)
        if call.visit is None:
            call.go_to(Visit())
            self._failures.budget.began(self._now())
        going = connected.going if connected is not None else self._choosing.choose(call, self._now())
        if isinstance(going, Blocked):
            return going
        visit = call.visit
        assert visit is not None
        visit.enter(going.node.name, self._now())
        self._own.enter(call, going.node.name, going.weights)
        self._failures.begin_at(going.node.name, going.model)
        return self._send(call, going, reply, connected.connection if connected is not None else None)

    def _send(self, call: Call, going: Going, reply: Reply, connection: Connection | None) -> Forward | Blocked:
        ends = self._ends_at(call)
        forward = Forward(call, going, reply, ends, self._failures, self._own, self._leave_out, self._now)
        request = call.upstream(call.body, going.lines)
        upstream = going.node.links.requests.open_now(request, forward.on_head, connection)
        if upstream is None:
            return Blocked("connection", lambda: self._connect(call, going))
        forward.sent(upstream)
        for other in going.others:
            self._own_task(self._tell(other, request))
        call.mark_sent(going.model or call.request.model, "", self._now())
        return forward

    def _own_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @staticmethod
    async def _tell(node: Node, request: UpstreamRequest) -> None:
        """Send a request to a node whose answer nobody reads."""
        with suppress(RouterError):
            (await node.links.lists.open(request)).close()

    async def stop(self) -> None:
        """Give up what nobody waits for."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connect(self, call: Call, going: Going) -> Connected:
        """Return a connection: one client's many requests must not take the last one from all others.

        A node to which there is none is left out.
        """
        relay = going.node.links.requests
        try:
            return Connected(going, await (relay.connect_reserved() if call.has_few() else relay.connect()))
        except UpstreamError as error:
            self._leave_out(going, error.message)
            raise

    def _leave_out(self, going: Going, why: str) -> None:
        self._members.leave_out(going.node, why)

    def _ends_at(self, call: Call) -> Ends:
        """Return what reports the end of a request at the node where it is."""
        name = (call.visit.place or (call.visit.failed or [""])[-1]) if call.visit is not None else ""
        if name not in self._ends:
            if len(self._ends) >= MOST_ENDS:
                self._ends.clear()
            self._ends[name] = Ends(name or self._name, self._telemetry, self._now)
        return self._ends[name]
