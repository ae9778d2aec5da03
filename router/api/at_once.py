"""Fast path: a common request is sent upstream without a task, and its answer is relayed when it arrives.

These take the edge's general path from the beginning: requests of browsers, requests with a header of the router, with
a large or compressed body, or with a body that has not arrived yet. A request that must wait for anything but its turn
continues in a task; so does an answer that is a stream or has not arrived completely.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal, Protocol

import msgspec

from router.api.beside import BYTES_PER_COMMA, is_large
from router.api.calls import read_call
from router.api.door import Door
from router.api.limits import Limits, lines_of
from router.api.reports import Reports
from router.api.responses import own_headers, render_error, request_headers
from router.api.sending import common_head_lines, complete_answer, ending_of
from router.api.settings import EdgeSettings
from router.api.traces import TRACEPARENT, trace_id_of
from router.core.ollama.routes import TARGETS, Route
from router.core.teams.rights import check_route
from router.core.teams.team import ANYONE, Identity
from router.errors import Busy, RouterError, UpstreamError
from router.http.headers import header_lines
from router.http.server.cycle import Cycle, Phase
from router.http.server.heads import Head
from router.http.server.hosts import HostRule
from router.routing.answer import Answer
from router.routing.call import Call
from router.routing.dispatching import Begun, Dispatching
from router.routing.outcomes import Blocked

logger = logging.getLogger("router.api")

MAX_BYTES = 64 << 10
"""Larger bodies take the general path, where they are read under their limits."""

FEW_BYTES = 8 << 10
"""Smaller bodies cannot hold so many values that reading them takes long."""

_ROUTES = {target: route for target, route in TARGETS.items() if route.is_inference and route.kind != "v1_audio"}
_UNCOMMON = frozenset(b"origin content-encoding x-request-id x-router-strict x-router-nothing-fits".split())


class Tasks(Protocol):
    """What continues in a task: sending an answer, a request that is blocked, or one whose limits are asked elsewhere.

    `reports` hears of refusals.
    """

    async def send(self, cycle: Cycle, route: Route, answer: Answer) -> None: ...

    async def go_on(self, cycle: Cycle, call: Call, blocked: Blocked) -> None: ...

    async def ask(self, cycle: Cycle, call: Call, limits: Callable[[], Awaitable[None]]) -> None: ...

    @property
    def reports(self) -> Reports: ...


class _Common(msgspec.Struct, eq=False):
    """The meaning of a common head: its route, and the lines of the headers that go upstream."""

    route: Route
    lines: bytes


class AtOnce:
    """The fast path. `next_id` returns the id of the next request, `tasks` runs what needs a task."""

    def __init__(
        self,
        dispatcher: Dispatching,
        settings: EdgeSettings,
        hosts: HostRule,
        door: Door,
        *,
        next_id: Callable[[], str],
        tasks: Tasks,
        limits: Limits | None = None,
    ) -> None:
        self.dispatcher = dispatcher
        self._settings = settings
        self._has_headers = settings.has_router_headers
        self._tracing = settings.tracing
        # A value takes two bytes with its separator: what could hold more than allowed takes the general path, too.
        self._max_bytes = min(MAX_BYTES, settings.body_bytes, settings.inline_bytes, 2 * settings.body_values)
        self._inline_bytes = settings.inline_bytes
        self._few_bytes = min(FEW_BYTES, settings.inline_bytes // BYTES_PER_COMMA)
        self._hosts = hosts
        self._door = door
        self._next_id = next_id
        self._tasks = tasks
        self.limits = limits

    def take(self, cycle: Cycle) -> bool:
        """Return True if the request is taken: then it is answered from here, and needs no task."""
        head = cycle.head
        common = head.cached
        if common is None:  # a head that repeats an earlier one is the same object, and was read before
            common = head.cached = self._read(head)
        if not common or (head.key and not self._door.takes_keys):
            return False
        size = cycle.buffered_bytes
        if size > self._max_bytes or (body := cycle.take_body()) is None:
            return False
        if size > self._few_bytes and is_large(body, self._inline_bytes):
            cycle.feed(body)
            return False
        cycle.request_id, identity, requested = self._next_id(), ANYONE, ""
        client, proxies = cycle.carrier.client, self._settings.proxies
        try:
            identity, front = self._door.identify(cycle)
            check_route(identity, common.route)
            call = read_call(
                body,
                self._settings,
                identity,
                common.route,
                common.lines,
                cycle.request_id,
                cycle.has_client_gone,
                head.by_name,
                cycle.carrier.loop.time(),
                client if not proxies.networks else proxies.client_of(client, head.headers),
                front=front,
            )
            requested = call.request.model
            asking = self.limits.admit(call) if self.limits is not None else None
        except Exception as exc:  # a bug too must be answered and reported
            self._failed(cycle, common.route, exc, identity, requested)
            return True
        if asking is not None:
            cycle.process_in_task(partial(self._tasks.ask, cycle, call, asking))
            return True
        if self._tracing is not None:
            self._tracing.begin(call, head.headers, head.by_name)
        elif TRACEPARENT in head.by_name:
            call.trace(trace_id_of(head.headers, head.by_name))
        taken = _Taken(self, cycle, call)
        taken.go(self.dispatcher.start(call, taken.reply))
        return True

    def _failed(self, cycle: Cycle, route: Route, exc: Exception, identity: Identity, requested: str) -> None:
        error = exc if isinstance(exc, RouterError) else failed(cycle)
        self.refuse(cycle, route, error)
        self._tasks.reports.refused(cycle, route, error, identity, requested or error.model)

    def _read(self, head: Head) -> _Common | Literal[False]:
        """Return the meaning of a head, False if it is not a common one."""
        route, by_name = _ROUTES.get((head.method, head.target)), head.by_name
        if route is None or not _UNCOMMON.isdisjoint(by_name):
            return False
        if not (self._hosts.allows(by_name.get(b"host", b"")) or self._door.is_front(head)):
            return False
        return _Common(route, header_lines(request_headers(head.headers, by_name)))

    def answer(self, cycle: Cycle, route: Route, answer: Answer) -> None:
        """Send `answer` now if it is complete and not a stream, else by a task. Errors are handled by `reply`.

        A front gets no id: it has its own, and reads a head that repeats at once.
        """
        upstream = answer.upstream
        if answer.announce or not upstream.is_complete:
            self._send_by_task(cycle, route, answer)
            return
        shown = answer.lines or header_lines(answer.headers)
        own: tuple[bytes, ...] = ()
        if answer.is_for_front:
            own = (shown,)
        elif self._has_headers:
            own = (shown, b"x-request-id: ", cycle.request_id.encode("ascii"), b"\r\n")
        if answer.limits_left:
            own = (*own, lines_of(answer.limits_left))
        lines = common_head_lines(upstream.head) if answer.rename is None else b""
        if lines:
            body = upstream.read_nowait() or b""
            cycle.respond_ok(body, b"".join((lines, *own)))
        elif (whole := complete_answer(upstream, route, answer.rename, answer.errors)) is not None:
            headers, body = whole
            cycle.respond(answer.status, headers, body, b"".join(own))
        else:
            self._send_by_task(cycle, route, answer)
            return
        ending = ending_of(body, route)
        answer.release("completed", sent_bytes=len(body), tokens_in=ending.tokens_in, tokens_out=ending.tokens_out)

    def _send_by_task(self, cycle: Cycle, route: Route, answer: Answer) -> None:
        outcome = answer.release
        cycle.process_in_task(
            lambda: self._tasks.send(cycle, route, answer),
            # A task that is cancelled before it begins runs no `finally`: release the answer here.
            lambda: outcome("client_gone" if cycle.is_gone else "shutdown"),
        )

    def go_on(self, cycle: Cycle, call: Call, blocked: Blocked) -> None:
        """Continue a blocked request in a task."""
        cycle.process_in_task(lambda: self._tasks.go_on(cycle, call, blocked), lambda: self.dispatcher.abandon(call))

    def refuse(self, cycle: Cycle, route: Route, error: RouterError, attempts: int = 0) -> None:
        """Answer with an error of the router, after so many attempts."""
        status, headers, body = render_error(error, route.dialect)
        if self._has_headers:
            headers += [(b"x-request-id", cycle.request_id.encode("ascii")), *own_headers(error, attempts)]
        cycle.respond(status, headers, body, adds_length=True)


def failed(cycle: Cycle) -> RouterError:
    """Log the exception that is being handled, which is a bug, and return the error for the client."""
    logger.exception("request %s failed", cycle.request_id)
    return RouterError("internal error")


class _Taken:
    """A request without a task: the link between its connection and the dispatcher."""

    __slots__ = ("_at_once", "_call", "_cycle", "_underway")

    def __init__(self, at_once: AtOnce, cycle: Cycle, call: Call) -> None:
        self._at_once = at_once
        self._cycle = cycle
        self._call = call
        self._underway: Begun | None = None

    def go(self, started: Begun | Blocked | RouterError) -> None:
        """Continue according to the result of the first attempt."""
        if isinstance(started, Blocked):
            self._at_once.go_on(self._cycle, self._call, started)
        elif isinstance(started, RouterError):
            self._at_once.refuse(self._cycle, self._call.route, started, self._call.tries)
        else:
            self._underway = started
            self._cycle.process_with(self)

    def reply(self, answer: Answer | RouterError | Blocked | None) -> None:
        """Receive the result from the dispatcher. Never raises, because the upstream's connection calls it."""
        cycle, call, at_once = self._cycle, self._call, self._at_once
        self._underway = None  # break the reference cycle, so that nothing is left for the garbage collector
        try:
            if isinstance(answer, Answer):
                at_once.answer(cycle, call.route, answer)
            elif answer is None or isinstance(answer, Blocked):
                at_once.go_on(cycle, call, answer or at_once.dispatcher.gone())
            else:
                at_once.refuse(cycle, call.route, answer, call.tries)
        except Exception as exc:
            self._failed(exc, answer)

    def _failed(self, exc: Exception, answer: Answer | RouterError | Blocked | None) -> None:
        cycle, call = self._cycle, self._call
        error = exc if isinstance(exc, UpstreamError) else failed(cycle)
        if isinstance(answer, Answer):
            answer.release("upstream_error" if error is exc else "failed", error=error.message)
        if cycle.phase is Phase.OPEN:
            self._at_once.refuse(cycle, call.route, error, call.tries)
        elif not cycle.is_complete:
            cycle.abandon()

    def give_up(self) -> None:
        """Cancel the request upstream: its client has left, or the router stops."""
        underway, self._underway = self._underway, None
        if underway is not None:
            underway.give_up(is_gone=self._cycle.is_gone)

    def interrupt(self) -> None:
        """Give up and answer 503: the router stops, and the grace period is over."""
        self.give_up()
        self._at_once.refuse(self._cycle, self._call.route, Busy("the router is shutting down"))
