"""Routes that read: answered here, or by the upstream with the names in its answer adapted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from urllib.parse import quote

import msgspec

from router.api import listing
from router.api.beside import beside, is_large
from router.api.error_texts import shown_error
from router.api.exchange import Exchange
from router.api.passing import BACKEND
from router.api.reports import client_of
from router.api.responses import JSON_UTF8, request_headers, response_headers
from router.api.sending import HTTP_ERRORS, read_whole
from router.api.settings import EdgeSettings
from router.api.shares import Shares
from router.core.ollama.listings import NOT_FOUND, may_be_failed_listing
from router.core.ollama.names import may_be_name
from router.core.ollama.routes import Route
from router.core.payload.management import check_names, read_names
from router.core.payload.rewrite import rewrite
from router.core.teams.rights import Permit, check_use, permit_of
from router.errors import BadRequest, ModelNotFound, UpstreamTimeout
from router.http.client.outgoing import Body
from router.http.client.response import UpstreamRequest, UpstreamResponse
from router.http.headers import Header
from router.routing.directing import Directing, Readable

OK = 200
TEXT = (b"content-type", b"text/plain; charset=utf-8")
NO_CLOUD = b'{"cloud":{"disabled":true,"source":"config"}}'
_encode = msgspec.json.encode

View = Callable[[bytes, Directing, Permit], bytes]


class LocalRoutes:
    """Serves the routes with the right "read"."""

    def __init__(self, directory: Directing, settings: EdgeSettings) -> None:
        self._directory = directory
        self._settings = settings
        self._shares = Shares(settings.lists_per_address)
        self._views: dict[str, View] = {"tags": listing.tags, "v1_models": listing.models}
        self._handlers: dict[str, Callable[[Exchange, Route, str], Awaitable[None]]] = {
            "root": self._root,
            "version": self._version,
            "status": self._status,
            "show": self._show,
            "v1_model": self._model,
            "recommendations": self._plain,
            **dict.fromkeys((*self._views, "ps"), self._list),
        }

    async def serve(self, exchange: Exchange, route: Route, argument: str) -> None:
        await self._handlers[route.kind](exchange, route, argument)

    async def _root(self, exchange: Exchange, _: Route, __: str) -> None:
        await exchange.answer(200, [TEXT], b"Ollama is running")

    async def _version(self, exchange: Exchange, _: Route, __: str) -> None:
        await exchange.answer(200, [JSON_UTF8], _encode({"version": await self._directory.version()}))

    async def _status(self, exchange: Exchange, route: Route, _: str) -> None:
        if permit_of(exchange.identity.team).may_use_cloud:
            await self._plain(exchange, route, _)
        else:
            await exchange.answer(200, [JSON_UTF8], NO_CLOUD)

    async def _plain(self, exchange: Exchange, route: Route, _: str) -> None:
        status, headers, body = await self._fetch(exchange, b"GET", route.pattern.encode())
        await exchange.answer(status, headers, body)

    async def _list(self, exchange: Exchange, route: Route, _: str) -> None:
        await self._directory.settled()
        if self._directory.has_several:
            await self._merged(exchange, route)
            return
        (source,) = self._directory.sources(route.kind)
        status, headers, body = await self._fetch(exchange, b"GET", route.pattern.encode(), where=source)
        if status == 200:
            permit, view = permit_of(exchange.identity.team), self._views.get(route.kind)
            shown = partial(view, body, self._directory) if view else partial(listing.running, body, source)
            look = partial(shown, permit)
            body = await self._viewed(exchange, look, [body])
        await exchange.answer(status, headers, body)

    async def _merged(self, exchange: Exchange, route: Route) -> None:
        """Answer with the lists of all backends as one; what a backend does not answer in time is missing."""
        sources, target = self._directory.sources(route.kind), route.pattern.encode()
        within_s = self._settings.list_s
        fetches = [self._fetch(exchange, b"GET", target, where=source, within_s=within_s) for source in sources]
        found = await asyncio.gather(*fetches, return_exceptions=True)
        good = [
            (source, one)
            for source, one in zip(sources, found, strict=True)
            if not isinstance(one, BaseException) and one[0] == OK
        ]
        if not good:
            if isinstance(found[0], BaseException):
                raise found[0]
            await exchange.answer(*found[0])
            return
        permit = permit_of(exchange.identity.team)
        bodies = [(source, body) for source, (_, _, body) in good]
        _, headers, _ = good[0][1]
        merge = listing.merging(route.kind, bodies, self._directory, permit)
        body = await self._viewed(exchange, merge, [body for _, body in bodies])
        self._name(exchange, *(source for source, _ in bodies))
        await exchange.answer(OK, headers, body)

    async def _viewed(self, exchange: Exchange, look: Callable[[], bytes], bodies: Sequence[bytes]) -> bytes:
        """Return what `look` makes of these bodies. Raises Busy if there is no room for it beside them."""
        seen = await beside(look) if self._are_large(bodies) else look()
        if not any(seen is body for body in bodies):
            exchange.hold(len(seen))
        return seen

    def _are_large(self, bodies: Sequence[bytes]) -> bool:
        most = self._settings.inline_bytes
        return sum(map(len, bodies)) > most or any(is_large(body, most) for body in bodies)

    def _name(self, exchange: Exchange, *sources: Readable) -> None:
        """Say in the answer which backends it is from, where there are several."""
        if self._directory.has_several and self._settings.has_router_headers:
            names = ", ".join(source.name for source in sources)
            exchange.extra.append((BACKEND, names.encode("latin-1", "replace")))

    async def _show(self, exchange: Exchange, route: Route, _: str) -> None:
        """Answer for a chain with the variant that would serve it now: `ollama run` pulls a model that has no show."""
        sent: Body
        sent = body = await exchange.body()
        names = await exchange.read(body, read_names, "show")
        check_names("show", names)
        asked = exchange.requested = names.get("model", "")
        if asked:
            check_use(exchange.identity, asked)
        where: Readable = self._directory
        name = ""
        if asked:
            where, name = await self._directory.shown_by(asked, exchange.identity.team)
            self._name(exchange, where)
        if name != asked:  # a virtual model, which Ollama does not know
            sent = await exchange.read(body, rewrite, model=name, options={})
        status, headers, answer = await self._fetch(exchange, b"POST", route.pattern.encode(), sent, where)
        if status == 200 and name != asked:
            answer = listing.show_of_chain(answer, name)
        await exchange.answer(status, headers, answer)

    async def _model(self, exchange: Exchange, route: Route, name: str) -> None:
        if not may_be_name(name):
            raise BadRequest("invalid model name")
        exchange.requested = name
        check_use(exchange.identity, name)
        if self._directory.is_hidden(name):
            raise ModelNotFound(f"model '{name}' not found")
        where, target = await self._directory.shown_by(name, exchange.identity.team)
        self._name(exchange, where)
        path = route.pattern.rpartition("/")[0] + "/" + quote(target, safe=":")
        status, headers, body = await self._fetch(exchange, b"GET", path.encode(), where=where)
        if status == 200 and target != name:
            body = listing.model_of(body, name)
        await exchange.answer(status, headers, body)

    async def _fetch(
        self,
        exchange: Exchange,
        method: bytes,
        target: bytes,
        body: Body | None = None,
        where: Readable | None = None,
        within_s: float | None = None,
    ) -> tuple[int, list[Header], bytes]:
        """Return status, headers and body of an upstream answer, without Content-Length, which sending sets.

        Raises UpstreamTimeout if it has not come `within_s` seconds.
        """
        request = UpstreamRequest(
            method, target, request_headers(exchange.client_headers, exchange.headers), body, safe_to_resend=True
        )
        async with self._shares.of(client_of(exchange.cycle, self._settings.proxies)):
            source = where or self._directory
            try:
                async with asyncio.timeout(within_s):
                    upstream, answer = await self._ask(exchange, source, request)
                    if upstream.status != NOT_FOUND and may_be_failed_listing(upstream.status, answer):
                        upstream, answer = await self._ask(exchange, source, request)
            except TimeoutError as error:
                raise UpstreamTimeout(f"{source.name}: no whole answer within {within_s or 0:g} s") from error
        headers = [
            pair for pair in response_headers(upstream.headers, dict(upstream.headers)) if pair[0] != b"content-length"
        ]
        return upstream.status, headers, shown_error(answer, None) if upstream.status >= HTTP_ERRORS else answer

    @staticmethod
    async def _ask(exchange: Exchange, source: Readable, request: UpstreamRequest) -> tuple[UpstreamResponse, bytes]:
        upstream = await source.read(request)
        return upstream, await read_whole(upstream, exchange.hold)
