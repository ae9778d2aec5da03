"""Reports of requests that do not reach the dispatcher: refusals, and what manages models or the account."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from router.api.exchange import Exchange
from router.api.paths import shown_path
from router.api.responses import status_of
from router.api.traces import trace_id_of
from router.core.ollama.routes import Route
from router.core.teams.team import Identity
from router.errors import RouterError
from router.http.server.cycle import Cycle
from router.http.server.proxies import Proxies
from router.telemetry import Answered


class Reports:
    """Emits `Answered`; `proxies` say who a client is."""

    def __init__(self, emit: Callable[[Answered], None], proxies: Proxies) -> None:
        self._emit = emit
        self._proxies = proxies

    def ended(self, exchange: Exchange, since_s: float) -> None:
        """Report a request that has ended, unless it was read from without an error, or the dispatcher reports it."""
        is_refused = exchange.status >= 400
        if exchange.is_dispatched or not (is_refused or exchange.is_managing):
            return
        cycle, route = exchange.cycle, exchange.route
        outcome = "refused" if is_refused else "upstream_error" if exchange.error else "completed"
        if is_gone := exchange.is_gone():
            outcome = "client_gone"
        self._emit(
            Answered(
                exchange.request_id,
                exchange.method,
                shown_path(exchange.target, has_key=bool(cycle.head.key)) if route is None else route.pattern,
                499 if is_gone else exchange.status,
                outcome,
                exchange.requested,
                client_of(cycle, self._proxies),
                cycle.carrier.loop.time() - since_s,
                exchange.sent_bytes,
                exchange.error,
                exchange.identity.team.name,
                exchange.identity.key_id,
                trace_id_of(exchange.client_headers, exchange.headers),
            )
        )

    def refused(self, cycle: Cycle, route: Route, error: RouterError, identity: Identity, requested: str) -> None:
        """Report a request of `identity` for the model `requested` that was refused before the dispatcher."""
        names = cycle.request_id, cycle.head.method, route.pattern
        client = client_of(cycle, self._proxies)
        status = status_of(error, route.dialect)
        who = identity.team.name, identity.key_id, trace_id_of(cycle.head.headers, cycle.head.by_name)
        self._emit(Answered(*names, status, "refused", requested, client, 0.0, 0, error.message, *who))

    def refused_early(self, status: int, text: bytes, client: str) -> None:
        """Report what is no valid request, or a connection that is one too many; nothing else is known of it."""
        shown = "".join(char if char.isprintable() else "?" for char in text.decode("latin-1"))
        self._emit(Answered("", "", "", status, "refused", "", client, 0.0, 0, shown or HTTPStatus(status).phrase))


def client_of(cycle: Cycle, proxies: Proxies) -> str:
    """Return the address of the client, as far as the trusted proxies say, "" if it has none."""
    return proxies.client_of(cycle.carrier.client, cycle.head.headers)
