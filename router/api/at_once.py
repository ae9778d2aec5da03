"""The usual request, answered on the spot: no task, no ASGI, nothing awaited.

What is not usual (a model that must be loaded, a browser, a header of ours, a large or compressed body, no free
connection) is left to the edge before anything was done about it. An answer that is a stream, or not all here, is sent
by a task from its head on.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Literal, NamedTuple

from router.api.origins import HostRule
from router.api.responses import Header, render_error, request_headers
from router.api.sending import ending_of, usual_lines, whole_answer
from router.api.settings import EdgeSettings
from router.core.ollama.routes import TARGETS, Route
from router.core.payload.read import read_request
from router.errors import BadRequest, Busy, RouterError, UpstreamError
from router.http.server.cycle import Cycle
from router.http.server.heads import Head
from router.routing.call import Answer, Call
from router.routing.dispatch import Dispatcher, Underway

logger = logging.getLogger("router.server")

MOST_BYTES = 64 << 10
"""Larger bodies go the long way, where they are read under their limits."""

_ROUTES = {target: route for target, route in TARGETS.items() if route.is_inference and route.kind != "v1_audio"}
_UNUSUAL = frozenset(b"origin content-encoding x-request-id x-router-strict x-router-nothing-fits".split())

Finish = Callable[[Cycle, Route, Answer], Awaitable[None]]


class _Usual(NamedTuple):
    """A usual head: its route, and those of its headers that go upstream."""

    route: Route
    headers: list[Header]


class AtOnce:
    """See the module. `finish` sends an answer that has begun, as a task; `next_id` names the next request."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        settings: EdgeSettings,
        hosts: HostRule,
        *,
        next_id: Callable[[], str],
        finish: Finish,
    ) -> None:
        self._dispatcher = dispatcher
        self._has_headers = settings.has_router_headers
        self._most_bytes = min(MOST_BYTES, settings.body_bytes)
        self._hosts = hosts
        self._next_id = next_id
        self._finish = finish

    def take(self, cycle: Cycle) -> bool:
        """True when the request is taken: it has been sent upstream, and its answer will be sent from here."""
        head = cycle.head
        usual = head.reading
        if usual is None:
            usual = head.reading = self._read(head)
        if not usual:
            return False
        body = cycle.peek_body()
        if body is None or len(body) > self._most_bytes:
            return False
        try:
            request = read_request(usual.route.kind, body)
        except BadRequest:
            return False
        cycle.request_id = self._next_id()  # it keeps it, whichever way it goes
        call = Call(usual.route, request, body, usual.headers, cycle.request_id)
        taken = _Taken(self, cycle, usual.route)
        underway = self._dispatcher.at_once(call, taken.reply)
        if underway is None:
            return False
        taken.underway, cycle.underway = underway, taken
        return True

    def _read(self, head: Head) -> _Usual | Literal[False]:
        """What a head means here: False for one that is not usual."""
        route, noted = _ROUTES.get((head.method, head.target)), head.noted
        if route is None or not _UNUSUAL.isdisjoint(noted) or not self._hosts.allows(noted.get(b"host", b"")):
            return False
        return _Usual(route, request_headers(head.headers, noted))

    def answer(self, cycle: Cycle, route: Route, answer: Answer) -> None:
        """Send `answer` now if it is all here and no stream, else by a task. What this raises, `reply` cleans up."""
        upstream = answer.upstream
        if upstream is None or not upstream.is_complete:
            self._go_on(cycle, route, answer)
            return
        own = b"%bx-request-id: %b\r\n" % (answer.lines, cycle.request_id.encode("ascii")) if self._has_headers else b""
        lines = usual_lines(upstream.head) if answer.rename is None else b""
        if lines:
            body = upstream.read_nowait() or b""
            cycle.respond(200, ((b"content-length", b"%d" % len(body)),), body, lines + own)
        elif (whole := whole_answer(upstream, route, answer.rename)) is not None:
            headers, body = whole
            cycle.respond(answer.status, headers, body, own)
        else:
            self._go_on(cycle, route, answer)
            return
        ending = ending_of(body, route)
        answer.release("completed", sent_bytes=len(body), tokens_in=ending.tokens_in, tokens_out=ending.tokens_out)

    def _go_on(self, cycle: Cycle, route: Route, answer: Answer) -> None:
        """Send `answer` by a task."""
        cycle.spawn(lambda: self._finish(cycle, route, answer))
        assert cycle.task is not None
        # Also of one that never began.
        cycle.task.add_done_callback(lambda _: answer.release("client_gone" if cycle.is_gone else "shutdown"))

    def refuse(self, cycle: Cycle, route: Route, error: RouterError) -> None:
        """Answer with an error of ours."""
        status, headers, body = render_error(error, route.dialect)
        own: list[Header] = [(b"x-request-id", cycle.request_id.encode("ascii"))] if self._has_headers else []
        cycle.respond(status, [*headers, (b"content-length", b"%d" % len(body)), *own], body)


class _Taken:
    """One request under way: what its connection and the dispatcher tell it."""

    __slots__ = ("_at_once", "_cycle", "_route", "underway")

    def __init__(self, at_once: AtOnce, cycle: Cycle, route: Route) -> None:
        self._at_once = at_once
        self._cycle = cycle
        self._route = route
        self.underway: Underway | None = None

    def reply(self, answer: Answer | RouterError | None) -> None:
        """What the dispatcher has to say. Never raises: it is called from the upstream's connection."""
        cycle = self._cycle
        cycle.underway = self.underway = None  # they know each other: nothing is left for the collector
        try:
            if isinstance(answer, Answer):
                self._at_once.answer(cycle, self._route, answer)
            elif answer is None:
                cycle.begin()
            else:
                self._at_once.refuse(cycle, self._route, answer)
        except Exception as exc:
            if isinstance(answer, Answer):
                answer.release("upstream_error")
            if not isinstance(exc, UpstreamError):
                logger.exception("request %s failed", cycle.request_id)
            if not cycle.response_complete:
                error = exc if isinstance(exc, UpstreamError) else RouterError("internal error")
                self._at_once.refuse(cycle, self._route, error)

    def give_up(self) -> None:
        """The client has left."""
        underway, self.underway = self.underway, None
        if underway is not None:
            underway.give_up(is_gone=self._cycle.is_gone)

    def interrupt(self) -> None:
        """There is no more time for it."""
        self.give_up()
        self._at_once.refuse(self._cycle, self._route, Busy("the router is shutting down"))
