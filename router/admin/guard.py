"""What stands in front of all admin pages: host names, other sites, keys, and the security headers of every answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.admin.lock import NEEDS_KEY, AdminLock, Refused
from router.http.server.hosts import HostRule, how_to_allow

UNLOCKED = AdminLock()
UNAUTHORIZED = 401
CLOCK_S = 30.0
"""How often the wall clock is read while an answer lasts whose key expires."""

_SECURITY = [
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


class AdminGuard:
    """ASGI middleware: refuses other host names and who has no key, and adds the security headers to every answer."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = (), lock: AdminLock = UNLOCKED) -> None:
        self._app = app
        self._lock = lock
        self._hosts = HostRule(("localhost.localdomain", *hosts), is_loopback=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_SECURITY]
            await send(message)

        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif (refusal := self._refusal(scope)) is not None:
            answer = _answer(refusal)
            if refusal.status == UNAUTHORIZED:
                answer.headers["www-authenticate"] = 'Bearer realm="ollama-router admin"'
            await answer(scope, receive, secured)
        elif (left_s := self._left_s(scope)) is None:
            await self._app(scope, receive, secured)
        else:
            await self._while_valid(scope, receive, secured, left_s)

    def _left_s(self, scope: Scope) -> float | None:
        """Return how long a request may read; None = as long as it likes. What changes something is not interrupted."""
        return self._lock.valid_for_s(dict(scope["headers"])) if scope.get("method") in ("GET", "HEAD") else None

    async def _while_valid(self, scope: Scope, receive: Receive, send: Send, left_s: float | None) -> None:
        """Answer until the key of the request expires, which ends a stream of events properly.

        The wall clock is read again and again: it may be set meanwhile.
        """
        is_started = False

        async def noting(message: Message) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        work = asyncio.ensure_future(self._app(scope, receive, noting))
        try:
            while not work.done() and left_s is not None and left_s > 0:
                await asyncio.wait((work,), timeout=min(left_s, CLOCK_S))
                left_s = self._left_s(scope)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        if not work.cancelled():
            work.result()
        elif is_started:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await _answer(self._refusal(scope) or Refused(UNAUTHORIZED, NEEDS_KEY))(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refused | None:
        """Return why a request is refused, None if it is not."""
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or not hosts[0]:
            return Refused(403, "a request needs one Host")
        if not self._hosts.allows(hosts[0]):
            return Refused(403, how_to_allow(hosts[0]))
        method = scope.get("method", "GET")
        if method not in ("GET", "HEAD") and _is_of_another_site(scope):
            return Refused(403, "origin not allowed")
        return self._lock.refusal(method, scope.get("path", ""), dict(scope["headers"]))


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]


def _is_of_another_site(scope: Scope) -> bool:
    """Return True for a request that a browser sends for a page of another site; other clients send no Origin."""
    origins = _values(scope, b"origin")
    return any(origin.partition(b"://")[2] not in _values(scope, b"host") for origin in origins)


def _answer(refusal: Refused) -> Response:
    body = msgspec.json.encode({"error": refusal.why})
    return Response(body, refusal.status, headers={"content-type": "application/json; charset=utf-8"})
