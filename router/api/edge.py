"""The edge: speaks Ollama's API to clients and passes every inference request to the dispatcher.

A request is processed in this order: Host → Origin → route → identity → right → body → dispatch → relay. If its client
leaves, the connection cancels its task (`Cycle.leave`), so no separate watcher is needed.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable

import msgspec

from router.api.at_once import AtOnce
from router.api.budget import BodyBudget
from router.api.calls import call_of
from router.api.door import NO_TEAMS, Door, Rules
from router.api.endings import StreamEnd
from router.api.exchange import Exchange, echoed
from router.api.limits import Limits, headers_of
from router.api.local import LocalRoutes
from router.api.node import Node
from router.api.origins import OriginRule
from router.api.passing import Passing
from router.api.paths import Found, NotFound, Redirect, WrongMethod, find
from router.api.refusals import Refusals
from router.api.reports import Reports, client_of
from router.api.responses import PLAIN
from router.api.screen import Screen
from router.api.sending import Sender
from router.api.settings import EdgeSettings
from router.api.traces import trace_id_of
from router.core.ollama.routes import TARGETS, Match, Route
from router.core.teams.rights import check_route, permit_of
from router.errors import Busy, RouterError, UpstreamError
from router.http.headers import Header
from router.http.server.cycle import ClientGone, Cycle
from router.http.server.hosts import HostRule
from router.routing.answer import Answer
from router.routing.call import Call
from router.routing.directing import Directing
from router.routing.dispatching import Dispatching
from router.routing.nodes.front_call import FrontCall
from router.routing.outcomes import Blocked
from router.telemetry import Answered

logger = logging.getLogger("router.api")

NO_ENDING = StreamEnd(is_terminated=False)
_encode = msgspec.json.encode


class Edge:
    """The application of the client listener.

    `drain()` turns `/readyz` to 503; the listener does the rest of a shutdown. `report` takes warnings for
    the operator. `rules` say which teams there are, and `clock` returns Unix time, by which their keys expire. With
    `node`, fronts may send requests to this router.
    """

    def __init__(
        self,
        dispatcher: Dispatching,
        directory: Directing,
        settings: EdgeSettings | None = None,
        *,
        report: Callable[[str], None] = logger.warning,
        emit: Callable[[Answered], None] = lambda _event: None,
        rules: Rules = NO_TEAMS,
        clock: Callable[[], float] = float,
        team_limits: Limits | None = None,
        node: Node | None = None,
    ) -> None:
        self._dispatcher, self._directory = dispatcher, directory
        self._settings = settings or EdgeSettings()
        self._bodies = BodyBudget(self._settings.buffered_bytes)
        self._hosts = HostRule(self._settings.hosts, is_loopback=self._settings.is_loopback)
        self._local, self._passing = LocalRoutes(directory, self._settings), Passing(directory, self._settings)
        self.reports = Reports(emit, self._settings.proxies)
        form = f"{secrets.token_hex(4)}-%x"
        self._next_id: Callable[[], str] = map(form.__mod__, itertools.count(1)).__next__
        self._node = node
        self._door = Door(rules, self._settings, clock, node.fronts if node is not None else None)
        self._screen = Screen(self._hosts, OriginRule(self._settings.origins), Refusals(report), self._door.is_front)
        self._at_once = AtOnce(
            dispatcher, self._settings, self._hosts, self._door, next_id=self._next_id, tasks=self, limits=team_limits
        )
        self._notes: Callable[[], dict[str, object]] = team_limits.notes if team_limits is not None else dict
        self.take = self._at_once.take
        self.is_draining = False

    def drain(self, *, is_draining: bool = True) -> None:
        """Make `/readyz` answer 503, because the router is about to stop; or 200 again."""
        self.is_draining = is_draining
        if self._node is not None:
            self._node.state.drain(is_draining=is_draining)

    def stop(self, *, has_successor: bool = False) -> None:
        """Make `/readyz` answer 503, and end the streams of fronts, which would hold up the end.

        With a successor at the same address the calls that still come here are served.
        """
        self.is_draining = True
        if self._node is not None:
            self._node.state.stop(has_successor=has_successor)

    async def serve(self, cycle: Cycle) -> None:
        """Answer one request; runs in its task."""
        exchange = Exchange(cycle, self._settings, self._bodies)
        since_s = cycle.carrier.loop.time()
        try:
            await self._guarded(exchange, self._serve(exchange))
        finally:
            exchange.release_body()
        self.reports.ended(exchange, since_s)

    async def _guarded(self, exchange: Exchange, work: Awaitable[None]) -> None:
        """Run `work`, and answer with the error that it raises."""
        try:
            await work
        except RouterError as exc:
            exchange.requested = exchange.requested or exc.model
            await exchange.refuse(exc)
        except ClientGone:  # no one to answer
            return
        except asyncio.CancelledError:
            # Cancelled either by the client's leaving or by the listener's stop; only the second one has a reader.
            if not exchange.is_gone():
                await exchange.refuse(Busy("the router is shutting down"))
        except Exception:
            logger.exception("request %s failed", exchange.request_id)
            await exchange.refuse(RouterError("internal error"))

    async def _serve(self, exchange: Exchange) -> None:
        client_id = exchange.headers.get(b"x-request-id")
        self._set_request_id(
            exchange, exchange.cycle.request_id or self._next_id() if client_id is None else echoed(client_id)
        )
        if await self._screen.answers(exchange):
            return
        found: Found = TARGETS.get((exchange.method, exchange.target)) or find(exchange.method, exchange.target)
        if exchange.cycle.head.key and not self._door.takes_keys:
            found = NotFound()
        if isinstance(found, Route):
            await self._route(exchange, found, "")
        elif isinstance(found, Match):
            await self._route(exchange, found.route, found.argument)
        else:
            await self._without_route(exchange, found)

    def _set_request_id(self, exchange: Exchange, request_id: str) -> None:
        exchange.request_id = request_id
        if self._settings.has_router_headers:
            exchange.extra.append((b"x-request-id", request_id.encode("ascii")))

    async def _route(self, exchange: Exchange, route: Route, argument: str) -> None:
        exchange.dialect, exchange.route = route.dialect, route
        exchange.is_managing = route.right in ("manage", "account")
        front = None
        if route.kind != "root":  # which only says that something listens
            exchange.identity, front = self._door.identify(exchange.cycle)
            is_admin = permit_of(exchange.identity.team).is_admin
            if route.kind == "me" and not is_admin:  # the CLI reads it as "signed out"
                await exchange.answer(401, [(b"content-type", b"application/json")], b'{"error":"unauthorized"}')
                return
            check_route(exchange.identity, route)
        if route.is_inference:
            await self._infer(exchange, route, front)
        elif route.right == "read":
            await self._local.serve(exchange, route, argument)
        else:
            await self._passing.serve(exchange, route, argument)

    async def _infer(self, exchange: Exchange, route: Route, front: FrontCall | None) -> None:
        now_s, client = asyncio.get_running_loop().time(), client_of(exchange.cycle, self._settings.proxies)
        call = await call_of(exchange, self._settings, route, now_s, client, front)
        exchange.requested = call.request.model
        asking = self._at_once.limits.admit(call) if self._at_once.limits is not None else None
        await self._admitted(exchange, call, asking)

    async def _admitted(self, exchange: Exchange, call: Call, asking: Callable[[], Awaitable[None]] | None) -> None:
        """Dispatch a call when its team's limits are known to allow it."""
        if asking is not None:
            await asking()
        if self._settings.tracing is not None:
            self._settings.tracing.begin(call, exchange.client_headers, exchange.headers)
        else:
            call.trace(trace_id_of(exchange.client_headers, exchange.headers))
        exchange.is_dispatched = True
        await self._dispatch(exchange, call)

    async def send(self, cycle: Cycle, route: Route, answer: Answer) -> None:
        """Send the answer to a request that began without a task."""
        exchange = self._resumed(cycle)
        await self._guarded(exchange, self._send(exchange, route, answer))

    async def ask(self, cycle: Cycle, call: Call, limits: Callable[[], Awaitable[None]]) -> None:
        """Continue a request that began without a task, and whose limits are asked elsewhere."""
        exchange = self._resumed(cycle)
        exchange.route, exchange.identity = call.route, call.identity
        await self._guarded(exchange, self._admitted(exchange, call, limits))
        self.reports.ended(exchange, call.since_s)

    async def go_on(self, cycle: Cycle, call: Call, blocked: Blocked) -> None:
        """Continue a request that began without a task and must wait."""
        exchange = self._resumed(cycle)
        await self._guarded(exchange, self._dispatch(exchange, call, blocked))

    async def _dispatch(self, exchange: Exchange, call: Call, blocked: Blocked | None = None) -> None:
        client, few = exchange.cycle.carrier.peer, self._settings.few_requests
        call.note_client(lambda: client.requests() <= few)
        exchange.call = call
        await self._send(exchange, call.route, await self._dispatcher.dispatch(call, blocked))

    def _resumed(self, cycle: Cycle) -> Exchange:
        exchange = Exchange(cycle, self._settings, self._bodies)
        self._set_request_id(exchange, cycle.request_id)
        return exchange

    async def _send(self, exchange: Exchange, route: Route, answer: Answer) -> None:
        """Send `answer` to its end and release what it holds, on every exit path."""
        extra: list[Header] = exchange.extra
        if self._settings.has_router_headers or answer.is_for_front:
            extra = answer.headers + extra
        if answer.limits_left:
            extra = [*extra, *headers_of(answer.limits_left)]
        sender = Sender(exchange, route, extra, answer.rename, answer.errors, answer.announce)
        try:
            await sender.relay(answer.upstream)
        except UpstreamError as exc:
            sender.sent.outcome, sender.sent.error = "upstream_error", exc.message
            raise
        except asyncio.CancelledError:
            sender.sent.outcome = "client_gone" if exchange.is_gone() else "shutdown"
            raise
        finally:
            # Copied on every path, so that `_guarded` does not send a second answer after a part of the first.
            exchange.is_started = sender.is_started
            sent, ending = sender.sent, sender.sent.ending or NO_ENDING
            answer.release(
                sent.outcome,
                sent_bytes=sent.sent_bytes,
                tokens_in=ending.tokens_in,
                tokens_out=ending.tokens_out,
                error=sent.error,
            )

    async def _without_route(self, exchange: Exchange, found: NotFound | WrongMethod | Redirect) -> None:
        """Answer a path that is not in the table as gin and net/http do; `/readyz` is the router's own."""
        if exchange.target == b"/readyz" and exchange.method == "GET":
            is_ready, details = self._directory.is_ready()
            is_ready = is_ready and not self.is_draining
            value = {"ready": is_ready, "draining": self.is_draining, **details, **self._notes()}
            await exchange.answer(200 if is_ready else 503, [(b"content-type", b"application/json")], _encode(value))
        elif self._node is not None and await self._node.answer(exchange):
            return
        elif isinstance(found, WrongMethod):
            await exchange.answer(405, [(b"allow", found.allow), PLAIN], b"405 method not allowed")
        elif isinstance(found, Redirect):
            await exchange.redirect(found)
        else:
            await exchange.answer(404, [PLAIN], b"404 page not found")
