"""One request at the edge: its head, its body under the limits, and answers of the router's own."""

from __future__ import annotations

from router.api.bodies import decoded, read_body, too_large
from router.api.responses import render_error
from router.api.settings import EdgeSettings
from router.core.ollama.routes import Dialect
from router.errors import RouterError
from router.http.headers import Header
from router.http.server.cycle import Cycle


class Exchange:
    """One request and its answer. `extra` are headers that every answer to it carries."""

    __slots__ = (
        "_settings",
        "client_headers",
        "cycle",
        "dialect",
        "extra",
        "headers",
        "is_started",
        "method",
        "request_id",
        "target",
    )

    def __init__(self, cycle: Cycle, settings: EdgeSettings) -> None:
        head = cycle.head
        self.client_headers: list[Header] = head.headers
        self.headers: dict[bytes, bytes] = head.by_name
        self.method: str = head.method
        self.target: bytes = head.target
        self.cycle = cycle
        self._settings = settings
        self.dialect: Dialect = "anthropic" if self.target == b"/v1/messages" else "ollama"
        if self.target.startswith(b"/v1/") and self.dialect == "ollama":
            self.dialect = "openai"
        self.extra: list[Header] = []
        self.request_id = ""
        self.is_started = False

    def is_gone(self) -> bool:
        """Return True if the client has left."""
        return self.cycle.is_gone

    async def body(self, limit_bytes: int | None = None) -> bytes:
        """Return the decoded body, read under the limits. Raises a RouterError, or ClientGone."""
        settings = self._settings
        limit = settings.body_bytes if limit_bytes is None else limit_bytes
        if int(self.headers.get(b"content-length", b"0")) > limit:  # refuse before a byte of it is read
            raise too_large(limit)
        body = self.cycle.take_body()
        if body is None:
            body = await read_body(
                self.cycle, limit_bytes=limit, idle_s=settings.body_idle_s, total_s=settings.body_total_s
            )
        elif len(body) > limit:
            raise too_large(limit)
        if (encoding := self.headers.get(b"content-encoding")) is not None:
            takes_zstd = self.dialect != "ollama"
            body = decoded(body, encoding, takes_zstd=takes_zstd, limit_bytes=settings.zstd_bytes)
        return body

    async def answer(self, status: int, headers: list[Header], body: bytes = b"") -> None:
        """Send a complete answer of the router's own; a no-op if an answer has begun."""
        if self.is_started:
            return
        self.is_started = True
        length = (b"content-length", b"%d" % len(body))
        self.cycle.respond(status, [*headers, length, *self.extra], body)

    async def refuse(self, error: RouterError) -> None:
        """Answer with `error` in the dialect of the path; a no-op if an answer has begun."""
        await self.answer(*render_error(error, self.dialect))
