"""Refused hosts and origins: what the client is told, and the operator in the log, a bounded number of times."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from router.errors import Forbidden
from router.http.server.hosts import MAX_SHOWN, how_to_allow

PERIOD_S, MAX_REPORTS = 600.0, 20
"""A refused value is reported once per period, and at most so many values are: clients can make up any number."""


class Refusals:
    """Makes the error for a refused request, which names the key that would allow it, and reports it."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._reported: set[str] = set()
        self._since_s = 0.0

    def of_host(self, host: bytes) -> Forbidden:
        """Return the error for a Host that is not allowed."""
        return self._reported_once(how_to_allow(host))

    def of_origin(self, origin: bytes) -> Forbidden:
        """Return the error for an Origin that is not allowed."""
        return self._reported_once(how_to_allow_origin(origin))

    def _reported_once(self, text: str) -> Forbidden:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._since_s > PERIOD_S:
            self._reported.clear()
            self._since_s = now_s
        if text not in self._reported and len(self._reported) < MAX_REPORTS:
            self._reported.add(text)
            self._report(f"refused a request: {text}")
        return Forbidden(text)


def how_to_allow_origin(origin: bytes) -> str:
    """Return why a request with this Origin is refused, and what to configure to allow it."""
    shown = origin.decode("latin-1").lower()[:MAX_SHOWN].rstrip("/")
    if '"' in shown or "\\" in shown or not shown.isascii() or not shown.isprintable():
        return f"web pages of the origin {shown!r} are not allowed: it is not an origin"
    return (
        f"web pages of the origin {shown} are not allowed; to allow them, add it to the key origins of the router's "
        f'configuration: origins: ["{shown}"] (or set OLLAMA_ORIGINS={shown})'
    )
