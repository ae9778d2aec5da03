"""Reports of requests that do not reach the dispatcher: refusals, and what manages models or the account."""

from __future__ import annotations

from collections.abc import Callable

from router.api.exchange import Exchange
from router.core.ollama.routes import Route
from router.errors import RouterError
from router.http.server.cycle import Cycle
from router.telemetry import Answered

MOST_OF_A_PATH = 200


class Reports:
    """Emits `Answered`. `now` is the loop's time."""

    def __init__(self, emit: Callable[[Answered], None]) -> None:
        self._emit = emit

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
                _shown(exchange.target) if route is None else route.pattern,
                499 if is_gone else exchange.status,
                outcome,
                exchange.requested,
                cycle.carrier.client.address,
                cycle.carrier.loop.time() - since_s,
                exchange.sent_bytes,
                exchange.error,
            )
        )

    def refused(self, cycle: Cycle, route: Route, error: RouterError) -> None:
        """Report a request that was refused on the fast path, before the dispatcher."""
        names = cycle.request_id, cycle.head.method, route.pattern
        self._emit(Answered(*names, error.status, "refused", "", cycle.carrier.client.address, 0.0, 0, error.message))


def _shown(target: bytes) -> str:
    """Return the start of a path that is in no table, in printable characters."""
    text = target[:MOST_OF_A_PATH].decode("latin-1")
    return "".join(char if char.isprintable() else "?" for char in text)
