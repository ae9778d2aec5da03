"""What is answered before the path of a request counts: other hosts and origins, preflights, OPTIONS."""

from __future__ import annotations

from collections.abc import Callable

from router.api.exchange import Exchange
from router.api.origins import OriginRule
from router.api.paths import WrongMethod, find
from router.api.refusals import Refusals
from router.http.server.heads import Head
from router.http.server.hosts import HostRule


class Screen:
    """Applies the rules for hosts and origins; a head that `is_front`, of a front, may name any host."""

    def __init__(
        self, hosts: HostRule, origins: OriginRule, refusals: Refusals, is_front: Callable[[Head], bool]
    ) -> None:
        self._hosts, self._origins, self._refusals, self._is_front = hosts, origins, refusals, is_front

    async def answers(self, exchange: Exchange) -> bool:
        """Check Host and Origin, and answer preflights; return True if the request was answered here.

        First of all, so that a web page of another origin reaches nothing else.
        """
        host = exchange.headers.get(b"host", b"")
        if not (self._hosts.allows(host) or self._is_front(exchange.cycle.head)):
            await exchange.refuse(self._refusals.of_host(host))
            return True
        if origin := exchange.headers.get(b"origin"):  # an empty one is none, as for gin
            is_preflight = exchange.method == "OPTIONS"
            cors = self._origins.headers(origin, host, is_preflight=is_preflight)
            if cors is None:
                await exchange.refuse(self._refusals.of_origin(origin))
                return True
            exchange.extra += cors
            if is_preflight and cors:
                await exchange.answer(204, [])
                return True
        if exchange.method == "OPTIONS":
            return await self._answers_options(exchange, host)
        return False

    async def _answers_options(self, exchange: Exchange, host: bytes) -> bool:
        """Answer OPTIONS as net/http does for the server as a whole, and as Ollama does under the name of a host."""
        if exchange.target == b"*":
            await exchange.answer(200, [])
            return True
        if not self._hosts.is_name(host):
            return False
        found = find("OPTIONS", exchange.target)
        await exchange.answer(204, [(b"allow", found.allow)] if isinstance(found, WrongMethod) else [])
        return True
