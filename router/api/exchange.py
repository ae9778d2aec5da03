"""One request at the edge: its head, its body under the limits, and answers of the router's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

from router.api.beside import beside, is_large
from router.api.bodies import is_zstd, read_body, too_large, unzstd
from router.api.budget import BodyBudget, Holding
from router.api.paths import Redirect, with_query
from router.api.responses import own_headers, render_error
from router.api.settings import EdgeSettings
from router.core.go.json_volume import has_more_values
from router.core.ollama.routes import Dialect, Route
from router.core.teams.team import ANYONE
from router.errors import BadRequest, BodyTooLarge, RouterError
from router.http.client.outgoing import slices_of
from router.http.headers import Header
from router.http.server.cycle import Cycle
from router.routing.call import Call

P = ParamSpec("P")
T = TypeVar("T")

AT_ONCE_BYTES = 1 << 20
"""The longest answer that is sent in one write; a longer one is sent in slices, as a body is to an upstream."""


class Exchange:
    """One request and its answer. `extra` are headers that every answer to it carries; `identity` is whose it is.

    The rest is for its report: its `route`, the names that it `requested`, `status`, `sent_bytes` and `error` of its
    answer, and whether it `is_managing` models or the account or `is_dispatched`, which the dispatcher reports.
    """

    __slots__ = (
        "_held",
        "_settings",
        "call",
        "client_headers",
        "cycle",
        "dialect",
        "error",
        "extra",
        "headers",
        "identity",
        "is_dispatched",
        "is_managing",
        "is_started",
        "method",
        "request_id",
        "requested",
        "route",
        "sent_bytes",
        "status",
        "target",
    )

    def __init__(self, cycle: Cycle, settings: EdgeSettings, budget: BodyBudget) -> None:
        head = cycle.head
        self.client_headers: list[Header] = head.headers
        self.headers: dict[bytes, bytes] = head.by_name
        self.method: str = head.method
        self.target: bytes = head.target
        self.cycle = cycle
        self._settings = settings
        self._held = Holding(budget, settings.proxies.client_of(cycle.carrier.client, head.headers))
        self.dialect: Dialect = "anthropic" if self.target == b"/v1/messages" else "ollama"
        if self.target.startswith(b"/v1/") and self.dialect == "ollama":
            self.dialect = "openai"
        self.extra: list[Header] = []
        self.request_id = self.requested = self.error = ""
        self.is_started = self.is_dispatched = self.is_managing = False
        self.status = self.sent_bytes = 0
        self.route: Route | None = None
        self.identity = ANYONE
        self.call: Call | None = None

    def is_gone(self) -> bool:
        """Return True if the client has left."""
        return self.cycle.is_gone

    @property
    def line_bytes(self) -> int:
        """The longest line of an answer."""
        return self._settings.line_bytes

    async def body(self, limit_bytes: int | None = None) -> bytes:
        """Return the decoded body, read under the limits. Raises a RouterError, or ClientGone."""
        settings = self._settings
        limit = settings.body_bytes if limit_bytes is None else limit_bytes
        is_packed = self.dialect != "ollama" and is_zstd(self.headers.get(b"content-encoding", b""))
        if is_packed:
            limit = min(limit, settings.zstd_bytes)
        if int(self.headers.get(b"content-length", b"0")) > limit:  # refuse before a byte of it is read
            raise too_large(limit)
        body = self.cycle.take_body()
        if body is None:
            body = await read_body(
                self.cycle,
                limit_bytes=limit,
                idle_s=settings.body_idle_s,
                total_s=settings.body_total_s,
                held=self._held,
            )
        elif len(body) > limit:
            raise too_large(limit)
        else:
            self._held.claim(len(body))
        if not is_packed:
            return body
        unpacked = await beside(unzstd, body, settings.zstd_bytes)  # always: a few bytes may become many
        self._held.claim(len(unpacked))
        return unpacked

    def hold(self, size: int) -> None:
        """Count `size` bytes of an answer that is held whole, as those of bodies are. Raises Busy."""
        try:
            self._held.claim(size)
        except BodyTooLarge:  # what the client has sent is not
            raise self._held.busy() from None

    def release_body(self) -> None:
        """Give back what the request has taken of the budget: it has ended."""
        self._held.release()

    async def read(self, body: bytes, work: Callable[Concatenate[bytes, P], T], *args: P.args, **more: P.kwargs) -> T:
        """Return `work(body, …)`; beside the loop if the body is large. Raises BadRequest for too many values."""
        if is_large(body, self._settings.inline_bytes):
            return await beside(_bounded, body, self._settings.body_values, partial(work, body, *args, **more))
        return _bounded(body, self._settings.body_values, partial(work, body, *args, **more))

    async def answer(self, status: int, headers: list[Header], body: bytes = b"") -> None:
        """Send a complete answer of the router's own; a no-op if an answer has begun."""
        if self.is_started:
            return
        self.is_started = True
        self.status, self.sent_bytes = status, len(body)
        length = [(b"content-length", b"%d" % len(body))] if status != 204 else []
        if len(body) <= AT_ONCE_BYTES:
            self.cycle.respond(status, [*headers, *length, *self.extra], body)
        else:
            await self._answer_in_pieces(status, [*headers, *length, *self.extra], body)

    async def _answer_in_pieces(self, status: int, headers: list[Header], body: bytes) -> None:
        """Send a long answer as fast as the client reads it: the transport would copy all of it, more than once."""
        self.cycle.start(status, headers)
        for piece in slices_of(body):
            await self.cycle.write(bytes(piece), more=True)
            await asyncio.sleep(0)  # to a fast client there is nothing to wait for
        await self.cycle.write(b"", more=False)

    async def redirect(self, found: Redirect) -> None:
        """Redirect to the clean path with the query; as by net/http, GET gets a page too."""
        location = with_query(found.location, self.cycle.head.url)
        headers = [(b"location", location)]
        if self.method in ("GET", "HEAD"):
            headers.append((b"content-type", b"text/html; charset=utf-8"))
        await self.answer(found.status, headers, found.page(location) if self.method == "GET" else b"")

    async def refuse(self, error: RouterError) -> None:
        """Answer with `error` in the dialect of the path; a no-op if an answer has begun."""
        self.error = error.message
        status, headers, body = render_error(error, self.dialect)
        if self._settings.has_router_headers:
            headers += own_headers(error, self.call.tries if self.call is not None else 0)
        await self.answer(status, headers, body)


def _bounded(body: bytes, most_values: int, work: Callable[[], T]) -> T:
    if has_more_values(body, most_values):
        raise BadRequest(f"the request's body has more than {most_values} values")
    return work()


def echoed(client_id: bytes) -> str:
    """Return the printable ASCII of a client's own request id, at most 128 characters; "-" if none is left."""
    text = client_id.decode("latin-1")[:128]
    if text and text.isascii() and text.isprintable():  # each one
        return text
    return "".join(char for char in text if char.isascii() and char.isprintable()) or "-"
