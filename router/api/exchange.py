"""One request at the edge: what was asked, who may, and the few ways to answer it."""

from __future__ import annotations

from router.api.bodies import decoded, read_body, too_large
from router.api.responses import render_error
from router.api.settings import EdgeSettings
from router.core.ollama.routes import Dialect
from router.errors import RouterError
from router.http.headers import Header
from router.http.server.cycle import Cycle


class Exchange:
    """See the module. `extra` are headers that every answer to this request carries."""

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
        self.headers: dict[bytes, bytes] = head.noted
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
        """True when the client has left."""
        return self.cycle.is_gone

    async def body(self, limit_bytes: int | None = None) -> bytes:
        """The body, under the limits and without its zstd. Raises a RouterError, or ClientGone."""
        settings = self._settings
        limit = settings.body_bytes if limit_bytes is None else limit_bytes
        if int(self.headers.get(b"content-length", b"0")) > limit:
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
        """A whole answer of our own."""
        if self.is_started:
            return
        self.is_started = True
        length = (b"content-length", b"%d" % len(body))
        self.cycle.respond(status, [*headers, length, *self.extra], body)

    async def refuse(self, error: RouterError) -> None:
        """The answer that says `error`, in the dialect of the path. Nothing where an answer has begun already."""
        await self.answer(*render_error(error, self.dialect))
