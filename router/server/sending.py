"""The answer that owns its upstream: whatever happens while it is sent, the upstream is closed at its end.

Exit paths: the client has all of it; the client is gone; the upstream broke off; our own time is over (shutdown).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from router.adapters.relay import UpstreamResponse
from router.core.routes import Route
from router.errors import RouterError, UpstreamError
from router.server.responses import JSON, NO_RETRY, Header, header, response_headers
from router.server.streams import Ending, Rename, Stream, body_ending, renamed_json, stream_of

Send = Callable[[dict[str, Any]], Awaitable[None]]

WHOLE_BYTES = 4 << 20
"""An answer that is no stream is held back up to here, so that one that breaks off can still become a clean error."""

COUNTED_BYTES = 64 << 10
"""Token counts are read from unstreamed answers up to this size; beyond it are only embeddings."""


@dataclass(slots=True)
class Sent:
    """What has been sent: `outcome` is completed, client_gone, upstream_error or shutdown."""

    outcome: str = "client_gone"
    status: int = 0
    sent_bytes: int = 0
    ending: Ending | None = None


class Sender:
    """Sends one answer to one client. `extra` are our own headers."""

    __slots__ = ("_extra", "_is_gone", "_rename", "_route", "_send", "is_started", "sent")

    def __init__(
        self, send: Send, route: Route, extra: list[Header], is_gone: Callable[[], bool], rename: Rename | None = None
    ) -> None:
        self._send = send
        self._route = route
        self._extra = extra
        self._is_gone = is_gone
        self._rename = rename
        self.is_started = False
        self.sent = Sent()

    async def relay(self, upstream: UpstreamResponse) -> Sent:
        """Pass `upstream` on to its end and close it. Raises UpstreamError while nothing was sent yet."""
        try:
            if (encoding := header(upstream.headers, b"content-encoding")) not in (b"", b"identity"):
                raise UpstreamError(f"the upstream answered in an encoding that was not asked for: {encoding!r}")
            stream = stream_of(header(upstream.headers, b"content-type"), self._route, self._rename)
            if stream is None:
                await self._relay_whole(upstream)
            else:
                await self._relay_stream(upstream, stream)
        finally:
            upstream.close()
        return self.sent

    async def whole(self, status: int, headers: list[Header], body: bytes) -> Sent:
        """Send an answer that is all here."""
        await self._start(status, [*headers, (b"content-length", b"%d" % len(body))])
        await self._body(body, more=False)
        self.sent.outcome = "completed"
        return self.sent

    async def _relay_whole(self, upstream: UpstreamResponse) -> None:
        headers = response_headers(upstream.headers)
        if upstream.status >= 500 and self._route.is_inference and upstream.status != 503:
            headers.append(NO_RETRY)
        body = await self._gather(upstream)
        if upstream.is_complete:
            if self._rename is not None:
                body = renamed_json(body, self._rename)
                headers = [pair for pair in headers if pair[0] != b"content-length"]
                headers.append((b"content-length", b"%d" % len(body)))
            if self._route.is_inference and len(body) <= COUNTED_BYTES:
                self.sent.ending = body_ending(body)
            await self._start(upstream.status, headers)
            await self._body(body, more=False)
        else:
            await self._start(upstream.status, headers)
            await self._body(body, more=True)
            await self._relay_rest(upstream)
        self.sent.outcome = "completed"

    async def _gather(self, upstream: UpstreamResponse) -> bytes:
        """The body as far as it may be held back."""
        body = upstream.read_nowait()
        if body is not None and upstream.is_complete:
            return body
        parts = [body] if body else []
        size = len(body or b"")
        while size <= WHOLE_BYTES and (part := await upstream.read()):
            parts.append(part)
            size += len(part)
        return b"".join(parts)

    async def _relay_rest(self, upstream: UpstreamResponse) -> None:
        """What was too long to hold back: a cut in it becomes a visible cut, for there is no other way to say it."""
        try:
            while part := await upstream.read():
                await self._body(part, more=True)
        except UpstreamError:
            self.sent.outcome = "upstream_error"
            raise
        await self._body(b"", more=False)

    async def _relay_stream(self, upstream: UpstreamResponse, stream: Stream) -> None:
        last_words: bytes
        try:
            await self._start(upstream.status, response_headers(upstream.headers))
            await self._pump(upstream, stream)
            self.sent.ending = stream.ending()
            last_words = b"" if self.sent.ending.is_terminated else stream.error("the upstream ended the stream early")
            self.sent.outcome = "upstream_error" if last_words else "completed"
        except RouterError as exc:
            self.sent.outcome = "upstream_error"
            last_words = stream.error(exc.message, exc.status)
        except asyncio.CancelledError:
            if self._is_gone():
                raise
            self.sent.outcome = "shutdown"
            last_words = stream.error("the router is shutting down", 503)
        await self._body(last_words, more=False)

    async def _pump(self, upstream: UpstreamResponse, stream: Stream) -> None:
        while True:
            chunk = upstream.read_nowait()
            if chunk is None:
                if self.sent.sent_bytes == 0:
                    await self._body(b"", more=True)  # the head must not wait for the first line
                chunk = await upstream.read()
            if not chunk:
                break
            if whole := stream.feed(chunk):
                await self._body(whole, more=True)
        if rest := stream.rest():
            await self._body(rest, more=True)

    async def _start(self, status: int, headers: list[Header]) -> None:
        self.is_started = True
        self.sent.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers + self._extra})

    async def _body(self, body: bytes, *, more: bool) -> None:
        self.sent.sent_bytes += len(body)
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


async def read_whole(upstream: UpstreamResponse, limit_bytes: int = 64 << 20) -> bytes:
    """The whole body of an answer that we look into ourselves. Closes it. Raises UpstreamError."""
    parts: list[bytes] = []
    size = 0
    with contextlib.closing(upstream):
        while part := await upstream.read():
            parts.append(part)
            size += len(part)
            if size > limit_bytes:
                raise UpstreamError("the upstream's answer is too large")
    return b"".join(parts)


__all__ = ["JSON", "Sender", "Sent", "read_whole"]
