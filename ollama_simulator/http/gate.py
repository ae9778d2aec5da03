"""Checks ahead of a handler: path cleaning, routing, Origin and Host."""

from __future__ import annotations

from collections.abc import Sequence

from ollama_simulator.http.requests import Request
from ollama_simulator.http.response import Response
from ollama_simulator.http.routing import (
    ALLOWED_HEADERS,
    DEFAULT_ORIGINS,
    Match,
    clean,
    find,
    is_address,
    is_allowed_host,
    is_same_origin,
    origin_rule,
)


class Gate:
    """`origins` extend Ollama's own list. `checks_host`: apply the Host rule of a loopback listener."""

    def __init__(self, origins: Sequence[str]) -> None:
        self.checks_host = True
        self._allows_all = "*" in origins
        self._allows = origin_rule((*DEFAULT_ORIGINS, *origins))

    async def route(self, request: Request, response: Response) -> Match | None:
        """Return the route to serve, or None if `response` is complete already."""
        if request.raw_path == "*":
            _asterisk(request, response)
            return None
        cleaned = clean(request.raw_path)
        if cleaned != request.raw_path and request.method != "CONNECT":
            await _redirect(response, 307, cleaned + (f"?{request.query}" if request.query else ""))
            return None
        match = find(request.method, request.path, request.header("X-Forwarded-Prefix"))
        if match.location:
            asked = f"?{request.query}" if "?" in request.target else ""
            await _redirect(response, match.status, match.location + asked)
            return None
        if match.allow:
            response.set("Allow", match.allow)
        if not self._admits(request, response):
            return None
        if not match.handler:
            response.status = match.status
            response.set("Content-Type", "text/plain")
            await response.write(b"404 page not found" if match.status == 404 else b"405 method not allowed")
            return None
        return match

    def _admits(self, request: Request, response: Response) -> bool:
        """Apply CORS and the Host rule. False if `response` is complete already."""
        origin = request.header("Origin")
        if origin and not is_same_origin(request):
            if not self._allows(origin):
                response.status = 403
                return False
            response.set("Access-Control-Allow-Origin", "*" if self._allows_all else origin)
            if request.method == "OPTIONS":
                _preflight(response, varies=not self._allows_all)
                return False
            if not self._allows_all:
                response.set("Vary", "Origin")
        if self.checks_host and not is_allowed_host(request.host, "localhost"):
            response.status = 403
            return False
        if self.checks_host and request.method == "OPTIONS" and not is_address(request.host):
            response.status = 204
            return False
        return True


def _asterisk(request: Request, response: Response) -> None:
    """Answer ``OPTIONS *`` and refuse ``*`` with other methods, as net/http does without a handler."""
    if request.method == "OPTIONS":
        response.set("Content-Length", "0")
    else:
        response.status = 400
        response.set("Connection", "close")
        response.close()


def _preflight(response: Response, *, varies: bool) -> None:
    response.status = 204
    response.set("Access-Control-Allow-Headers", ALLOWED_HEADERS)
    response.set("Access-Control-Allow-Methods", "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS")
    response.set("Access-Control-Max-Age", "43200")
    names = ("Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers")
    response.headers += [("Vary", name) for name in names if varies]


async def _redirect(response: Response, status: int, location: str) -> None:
    response.status = status
    response.set("Location", location)
    if response.request.method in ("GET", "HEAD"):
        response.set("Content-Type", "text/html; charset=utf-8")
    if response.request.method == "GET":
        word = "Moved Permanently" if status == 301 else "Temporary Redirect"
        shown = location.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&#34;")
        await response.write(f'<a href="{shown}">{word}</a>.\n\n'.encode())
