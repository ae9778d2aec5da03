"""The admin listener: explanation, state, recent decisions, configuration, health, metrics and the dashboard.

It changes only what was learned (`POST /router/forget`). It answers only under the allowed host names, so that no web
page can reach it by DNS rebinding (K4); a page of another site cannot post to it; and its own pages load nothing from
other sites (K2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.admin.actions import Actions
from router.admin.inspector import Inspector
from router.errors import BadRequest, RouterError
from router.http.server.hosts import HostRule, how_to_allow

_DASHBOARD = Path(__file__).parent / "dashboard"
_ASSETS = {
    "index.html": "text/html; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
    "dashboard.css": "text/css; charset=utf-8",
    "favicon.svg": "image/svg+xml",
}
_SECURITY = [
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


def admin_app(
    inspector: Inspector, actions: Actions, metrics: Callable[[], tuple[bytes, str]], *, hosts: Iterable[str] = ()
) -> Starlette:
    """Return the ASGI application. `metrics` returns Prometheus's text and type; `hosts` are additional host names."""
    pages = Pages(inspector, actions, metrics)
    routes = [
        Route("/router/explain", pages.explain),
        Route("/router/state", pages.state),
        Route("/router/decisions", pages.decisions),
        Route("/router/config", pages.config),
        Route("/router/forget", pages.forget, methods=["POST"]),
        Route("/healthz", pages.health),
        Route("/readyz", pages.ready),
        Route("/metrics", pages.metrics),
        *(Route(f"/{name}" if name != "index.html" else "/", pages.asset(name)) for name in _ASSETS),
    ]
    handlers: dict[Any, Any] = {HTTPException: _http_error, RouterError: _router_error}
    return Starlette(routes=routes, exception_handlers=handlers, middleware=[Middleware(AdminGuard, hosts=hosts)])


class Pages:
    """The request handlers."""

    def __init__(self, inspector: Inspector, actions: Actions, metrics: Callable[[], tuple[bytes, str]]) -> None:
        self._inspector = inspector
        self._actions = actions
        self._metrics = metrics

    async def explain(self, request: Request) -> Response:
        model = request.query_params.get("model", "")
        if not model:
            raise BadRequest("missing query parameter: model=NAME")
        return _json(self._inspector.explain(model, _num_ctx(request.query_params.get("num_ctx"))))

    async def state(self, _request: Request) -> Response:
        return _json(self._inspector.state())

    async def decisions(self, _request: Request) -> Response:
        return _json({"decisions": self._inspector.decisions()})

    async def config(self, _request: Request) -> Response:
        return _json(self._inspector.config())

    async def forget(self, request: Request) -> Response:
        """Forget what was learned about `?model=NAME`, or about all models."""
        return _json(await self._actions.forget(request.query_params.get("model") or None))

    async def health(self, _request: Request) -> Response:
        """Report that the process is alive, whatever the state of Ollama and the cards."""
        return _json({"status": "ok"})

    async def ready(self, _request: Request) -> Response:
        is_ready, facts = self._inspector.ready()
        return _json({"ready": is_ready, **facts}, 200 if is_ready else 503)

    async def metrics(self, _request: Request) -> Response:
        body, content_type = self._metrics()
        return Response(body, headers={"content-type": content_type})

    def asset(self, name: str) -> Callable[[Request], Any]:
        """Return a handler for one file of the dashboard, which is read once, here."""
        body = (_DASHBOARD / name).read_bytes()

        async def handler(_request: Request) -> Response:
            return Response(body, headers={"content-type": _ASSETS[name]})

        return handler


class AdminGuard:
    """ASGI middleware: refuses other host names, and adds the security headers to every answer."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = ()) -> None:
        self._app = app
        self._hosts = HostRule(("localhost.localdomain", *hosts), is_loopback=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_SECURITY]
            await send(message)

        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif (refusal := self._refusal(scope)) is not None:
            await _json({"error": refusal}, 403)(scope, receive, secured)
        else:
            await self._app(scope, receive, secured)

    def _refusal(self, scope: Scope) -> str | None:
        """Return why a request is refused, None if it is not."""
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or not hosts[0]:
            return "a request needs one Host"
        if not self._hosts.allows(hosts[0]):
            return how_to_allow(hosts[0])
        if scope.get("method", "GET") not in ("GET", "HEAD") and _is_of_another_site(scope):
            return "origin not allowed"
        return None


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]


def _is_of_another_site(scope: Scope) -> bool:
    """Return True for a request that a browser sends for a page of another site; other clients send no Origin."""
    origins = _values(scope, b"origin")
    return any(origin.partition(b"://")[2] not in _values(scope, b"host") for origin in origins)


def _num_ctx(text: str | None) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and 0 < int(text[:12]) < 2**31):
        raise BadRequest("num_ctx must be a number of tokens, greater than 0")
    return int(text)


def _json(data: object, status: int = 200) -> Response:
    body = msgspec.json.encode(data, enc_hook=str)
    return Response(body, status, headers={"content-type": "application/json; charset=utf-8"})


async def _http_error(_request: Request, exc: HTTPException) -> Response:
    return _json({"error": str(exc.detail).lower()}, exc.status_code)


async def _router_error(_request: Request, exc: RouterError) -> Response:
    return _json({"error": exc.message, "code": exc.code}, exc.status)
