"""The admin listener: explanation, state, recent decisions, configuration, health, metrics and the dashboard.

It answers only under the allowed host names, so that no web page can reach it by DNS rebinding (K4); a page of another
site cannot post to it; `lock.py` says who needs an admin key; and its own pages load nothing from other sites (K2).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from router.admin.accounts import Accounts
from router.admin.actions import Actions
from router.admin.askers import Askers
from router.admin.chat import Chat
from router.admin.feed import Feed
from router.admin.guard import UNLOCKED, AdminGuard
from router.admin.lock import AdminLock, shown_key
from router.admin.reporting import Boarding, Reporting
from router.admin.teams import TeamsPage
from router.admin.usage_pages import rendered, usage_query
from router.errors import BadRequest, RouterError

_DASHBOARD = Path(__file__).parent / "dashboard"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
MAX_CHAT_BYTES = 1 << 20
"""Largest request of the dashboard's chat."""

MOST_DIGITS = 10


@dataclass(frozen=True, slots=True)
class Parts:
    """What the pages show and do. `metrics` returns Prometheus's text and its type."""

    inspector: Reporting
    actions: Actions
    accounts: Accounts
    teams: TeamsPage
    metrics: Callable[[], tuple[bytes, str]]
    board: Boarding
    feed: Feed
    chat: Chat
    askers: Askers


def admin_app(parts: Parts, *, hosts: Iterable[str] = (), lock: AdminLock = UNLOCKED) -> Starlette:
    """Return the ASGI application. `hosts` are additional host names, `lock` says who needs a key."""
    pages = Pages(parts)
    routes = [
        Route("/router/explain", pages.explain),
        Route("/router/state", pages.state),
        Route("/router/board", pages.board),
        Route("/router/events", pages.events),
        Route("/router/decisions", pages.decisions),
        Route("/router/config", pages.config),
        Route("/router/usage", pages.usage),
        Route("/router/teams", pages.teams),
        Route("/router/forget", pages.forget, methods=["POST"]),
        Route("/router/reload", pages.reload, methods=["POST"]),
        Route("/router/unload", pages.unload, methods=["POST"]),
        Route("/router/keep", pages.keep, methods=["POST"]),
        Route("/router/drain", pages.drain, methods=["POST"]),
        Route("/router/chat", pages.chat, methods=["POST"]),
        Route("/healthz", pages.health),
        Route("/readyz", pages.ready),
        Route("/metrics", pages.metrics),
        *(Route(_path_of(path), asset(path)) for path in _assets()),
    ]
    handlers: dict[Any, Any] = {HTTPException: _http_error, RouterError: _router_error}
    return Starlette(
        routes=routes, exception_handlers=handlers, middleware=[Middleware(AdminGuard, hosts=hosts, lock=lock)]
    )


def page_paths() -> list[str]:
    """Return the paths of the dashboard's own files, which show nothing of the router."""
    return [_path_of(path) for path in _assets()]


def _path_of(path: Path) -> str:
    return "/" if path.name == "index.html" else f"/{path.name}"


def _assets() -> list[Path]:
    """Return the files of the dashboard."""
    return sorted(path for path in _DASHBOARD.iterdir() if path.suffix in _TYPES)


def asset(path: Path) -> Callable[[Request], Any]:
    """Return a handler for one file of the dashboard, which is read once, here."""
    body = path.read_bytes()

    async def handler(_request: Request) -> Response:
        return Response(body, headers={"content-type": _TYPES[path.suffix]})

    return handler


class Pages:
    """The request handlers."""

    def __init__(self, parts: Parts) -> None:
        self._inspector = parts.inspector
        self._actions = parts.actions
        self._accounts = parts.accounts
        self._teams = parts.teams
        self._metrics = parts.metrics
        self._board = parts.board
        self._feed = parts.feed
        self._chat = parts.chat
        self._askers = parts.askers

    async def explain(self, request: Request) -> Response:
        """Return the decision for `?model=NAME&num_ctx=TOKENS&team=NAME` now."""
        model, num_ctx = _named(request), _num_ctx(request.query_params.get("num_ctx"))
        key = shown_key(dict(request.headers.raw))
        return _json(
            self._inspector.explain(model, num_ctx, self._askers.asker(key, request.query_params.get("team", "")))
        )

    async def state(self, _request: Request) -> Response:
        return _json(self._inspector.state())

    async def decisions(self, _request: Request) -> Response:
        return _json({"decisions": self._inspector.decisions()})

    async def config(self, _request: Request) -> Response:
        return _json(await asyncio.to_thread(self._inspector.config))

    async def usage(self, request: Request) -> Response:
        """Return what teams have used: `?from=&to=&by=team,model&format=json|csv|focus`."""
        query = usage_query(request.query_params)
        rows = await self._accounts.rows(query.since, query.until, query.by)
        body, kind = await asyncio.to_thread(rendered, query, rows, self._accounts.problem, self._accounts.price)
        return Response(body, headers={"content-type": kind})

    async def teams(self, _request: Request) -> Response:
        return _json(await self._teams.data())

    async def forget(self, request: Request) -> Response:
        """Forget what was learned about `?model=NAME`, or about all models."""
        return _json(await self._actions.forget(request.query_params.get("model") or None))

    async def reload(self, _request: Request) -> Response:
        return _json(await self._actions.reload())

    async def board(self, _request: Request) -> Response:
        """Return what the dashboard shows, once."""
        return _json(self._board.data())

    async def events(self, _request: Request) -> Response:
        """Return the same whenever it changes, and the decisions, as server-sent events."""
        return _Stream(self._feed.events(), "text/event-stream")

    async def unload(self, request: Request) -> Response:
        """Unload `?model=NAME` as soon as it is idle."""
        return _json(self._actions.unload(_named(request)))

    async def keep(self, request: Request) -> Response:
        """Keep `?model=NAME` loaded, or with `&on=false` no longer."""
        return _json(self._actions.keep(_named(request), is_kept=_is_on(request)))

    async def drain(self, request: Request) -> Response:
        """Report that no more requests are taken, or with `?on=false` that they are again."""
        return _json(self._actions.drain(is_draining=_is_on(request)))

    async def chat(self, request: Request) -> Response:
        """Pass on a body of /api/chat, and return the decision in front of the answer."""
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MAX_CHAT_BYTES:
                raise BadRequest(f"the dashboard's chat takes at most {MAX_CHAT_BYTES} bytes")
        return _Stream(await self._chat.answer(bytes(body)), "application/x-ndjson")

    async def health(self, _request: Request) -> Response:
        """Report that the process is alive, whatever the state of Ollama and the cards."""
        return _json({"status": "ok"})

    async def ready(self, _request: Request) -> Response:
        is_ready, facts = self._inspector.ready()
        return _json({"ready": is_ready, **facts}, 200 if is_ready else 503)

    async def metrics(self, _request: Request) -> Response:
        body, content_type = self._metrics()
        return Response(body, headers={"content-type": content_type})


class _Stream(Response):
    """A body that is sent while it comes. When the client leaves, its task is cancelled, and the source closed."""

    def __init__(self, parts: AsyncIterator[bytes], media_type: str) -> None:
        super().__init__(media_type=media_type)
        del self.headers["content-length"]
        self._parts = parts

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        async with aclosing(cast("AsyncGenerator[bytes]", self._parts)) as parts:
            await send(start)
            async for part in parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _named(request: Request) -> str:
    model = request.query_params.get("model", "")
    if not model:
        raise BadRequest("missing query parameter: model=NAME")
    return model


def _is_on(request: Request) -> bool:
    text = request.query_params.get("on", "true").lower()
    if text not in ("true", "1", "false", "0"):
        raise BadRequest("on must be true or false")
    return text in ("true", "1")


def _num_ctx(text: str | None) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS and 0 < (tokens := int(text)) < 2**31):
        raise BadRequest("num_ctx must be a number of tokens, greater than 0")
    return tokens


def _json(data: object, status: int = 200) -> Response:
    body = msgspec.json.encode(data, enc_hook=str)
    return Response(body, status, headers={"content-type": "application/json; charset=utf-8"})


async def _http_error(_request: Request, exc: HTTPException) -> Response:
    return _json({"error": str(exc.detail).lower()}, exc.status_code)


async def _router_error(_request: Request, exc: RouterError) -> Response:
    return _json({"error": exc.message, "code": exc.code}, exc.status)
