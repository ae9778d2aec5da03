"""Routes that manage models or the account, and uploads: passed on unchanged, body and answer streamed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from router.api.bodies import BodyStream
from router.api.exchange import Exchange
from router.api.responses import request_headers
from router.api.sending import HTTP_ERRORS, Sender, read_whole
from router.api.settings import EdgeSettings
from router.core.ollama.listings import NOT_FOUND
from router.core.ollama.names import key_of
from router.core.ollama.routes import Route
from router.core.payload.management import check_names, read_blobs, read_names, read_remote_host
from router.core.payload.rewrite import rewrite_names
from router.core.teams.rights import check_management, check_remote_host
from router.core.teams.team import Team
from router.errors import BadRequest, Forbidden, ModelNotFound, UpstreamError
from router.http.client.outgoing import Body
from router.http.client.response import UpstreamRequest, UpstreamResponse
from router.routing.directing import Directing, Source
from router.routing.directory import Managed

DIGEST = re.compile(r"sha256[:-][0-9a-f]{64}")
NAMED = frozenset(("pull", "push", "create", "copy", "delete"))
BACKEND = b"x-router-backend"
"""Names a backend: in a request that manages models the one that is meant, in an answer those that it is from."""

CHANGING = frozenset(("pull", "create", "copy", "delete"))


class Passing:
    """Passes requests on to the upstream."""

    def __init__(self, directory: Directing, settings: EdgeSettings) -> None:
        self._directory = directory
        self._settings = settings

    async def serve(self, exchange: Exchange, route: Route, argument: str) -> None:
        await self._directory.settled()  # before, no name is known to be a model's
        if route.kind in ("blob_put", "blob_head"):
            await self._blob(exchange, route, argument)
            return
        sent: Body
        sent, what = (body := await exchange.body()), Managed(route.kind)
        if route.kind in NAMED:
            names = await exchange.read(body, read_names, route.kind)
            check_names(route.kind, names)
            exchange.requested = ", ".join(names.values())
            # Rights first: a chain that the team may not use is as unknown to it as any other name.
            check_management(exchange.identity, route.kind, names, self._settings.registries)
            self._check(names, exchange.identity.team)
            if route.kind == "create" and (host := await exchange.read(body, read_remote_host)):
                check_remote_host(exchange.identity, host, self._settings.remote_hosts)
            blobs = await exchange.read(body, read_blobs) if route.kind == "create" else frozenset()
            what = Managed(route.kind, names, blobs)
            if names:  # each name once and under Ollama's own key, so that Ollama sees exactly the names checked here
                sent = await exchange.read(body, rewrite_names, names)
        target = route.pattern if not argument else route.pattern.rpartition("/")[0] + "/" + quote(argument, safe="")
        await self._pass(exchange, route, what, target.encode(), sent or None)

    async def _blob(self, exchange: Exchange, route: Route, digest: str) -> None:
        if DIGEST.fullmatch(digest) is None:
            raise BadRequest("invalid digest format")
        target, what = b"/api/blobs/" + digest.encode(), Managed(route.kind, {}, read_blobs(digest.encode()))
        if route.kind == "blob_head":
            await self._pass(exchange, route, what, target, None)
            return
        length = exchange.headers.get(b"content-length")
        stream = BodyStream(exchange.cycle, self._settings.body_idle_s)
        if length is None and b"transfer-encoding" not in exchange.headers:
            length = b"0"
        await self._pass(exchange, route, what, target, stream, None if length is None else int(length))

    def _check(self, names: Mapping[str, str], team: Team) -> None:
        """Raise Forbidden for the name of a chain, which cannot be pulled, deleted or overwritten; 404 to copy it."""
        for virtual in self._directory.virtual_models(team):
            for role, name in names.items():
                if not _is_same(name, virtual.name):
                    continue
                what = f"{name!r} is a chain of this router, not a model"
                variants = ", ".join(virtual.variants) or "none of them is installed"
                if role == "source":  # Ollama itself would not find it
                    raise ModelNotFound(f"{what}; copy one of its variants: {variants}")
                raise Forbidden(f"{what}; its variants: {variants}")

    async def _pass(
        self,
        exchange: Exchange,
        route: Route,
        what: Managed,
        target: bytes,
        body: Body | BodyStream | None,
        length: int | None = None,
    ) -> None:
        headers = request_headers(exchange.client_headers, exchange.headers)
        request = UpstreamRequest(route.method.encode(), target, headers, body, length)
        asked = exchange.headers.get(BACKEND, b"").decode("latin-1").strip()
        targets = self._directory.targets(what, asked)
        upstream = await self._done_on(exchange, targets, request)
        if self._directory.has_several and self._settings.has_router_headers:
            exchange.extra.append((BACKEND, ", ".join(one.name for one in targets).encode("latin-1", "replace")))
        sender = Sender(exchange, route, exchange.extra)
        try:
            await self._send(sender, upstream)
        finally:
            exchange.is_started = sender.is_started
            exchange.status, exchange.sent_bytes = sender.sent.status, sender.sent.sent_bytes
            exchange.error = sender.sent.error
            if route.kind in CHANGING:  # also after a failure: it may have changed something
                self._directory.catalog_changed()

    async def _done_on(
        self, exchange: Exchange, targets: Sequence[Source], request: UpstreamRequest
    ) -> UpstreamResponse:
        """Have it done on each backend, also after a failure on another one, and return one answer for all.

        That is a failure, if there was one, but for a 404: what is known of a backend's models may be out of date.
        """
        if len(targets) == 1:
            return await targets[0].forward(request)
        answers: list[UpstreamResponse] = []
        failures: list[UpstreamError] = []
        for target in targets:
            try:
                answer = await target.forward(request)
                body = await read_whole(answer, exchange.hold)
                answers.append(UpstreamResponse.of(answer.status, answer.headers, body))
            except UpstreamError as error:
                failures.append(error)
        refused = [one for one in answers if one.status >= HTTP_ERRORS and one.status != NOT_FOUND]
        if failures and not refused:
            raise failures[0]
        return (refused or [one for one in answers if one.status < HTTP_ERRORS] or answers)[0]

    async def _send(self, sender: Sender, upstream: UpstreamResponse) -> None:
        try:
            await sender.relay(upstream)
        except UpstreamError:
            if not sender.is_started:
                raise


def _is_same(name: str, other: str) -> bool:
    try:
        return key_of(name) == key_of(other)
    except BadRequest:
        return False
