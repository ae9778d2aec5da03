"""Sending an answer. The sender owns the upstream response and closes it at the end, whatever happens.

It ends when the client has all of it, the client leaves, the upstream breaks off, or the router shuts down.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from router.adapters.gathered import Gathered
from router.api.announcing import Announced, announced_body
from router.api.endings import StreamEnd, body_ending
from router.api.error_texts import shown_error, shown_value
from router.api.exchange import Exchange
from router.api.responses import NO_RETRY, response_headers
from router.api.streams import Stream, is_stream, renamed_json, stream_of
from router.core.ollama.routes import Route
from router.errors import RouterError, UpstreamError
from router.http.client.response import AnswerHead, UpstreamResponse
from router.http.headers import Header, header_lines
from router.routing.destination import Rename

WHOLE_BYTES = 4 << 20
"""An unstreamed answer is buffered up to this size, so that one that breaks off can still become a clean error."""

HTTP_ERRORS = 400
"""The first status of an error."""

UNCOUNTED = StreamEnd(is_terminated=True)
COUNTED_BYTES = 64 << 10
"""Token counts are read from unstreamed answers up to this size: larger ones are embeddings."""


@dataclass(slots=True)
class Sent:
    """The result of sending: `outcome` is completed, client_gone, upstream_error or shutdown."""

    outcome: str = "client_gone"
    status: int = 0
    sent_bytes: int = 0
    ending: StreamEnd | None = None
    error: str = ""


class Sender:
    """Sends one answer to one client. `extra` are the router's own headers, `announce` is a line for its text."""

    __slots__ = ("_announce", "_cycle", "_errors", "_extra", "_line_bytes", "_rename", "_route", "is_started", "sent")

    def __init__(
        self,
        exchange: Exchange,
        route: Route,
        extra: list[Header],
        rename: Rename | None = None,
        errors: Rename | None = None,
        announce: str = "",
    ) -> None:
        self._cycle = exchange.cycle
        self._line_bytes = exchange.line_bytes
        self._route = route
        self._extra = extra
        self._rename = rename
        self._errors = errors or rename
        self._announce = announce
        self.is_started = False
        self.sent = Sent()

    async def relay(self, upstream: UpstreamResponse) -> Sent:
        """Relay `upstream` to its end and close it. Raises UpstreamError if nothing has been sent yet."""
        by_name = upstream.by_name
        try:
            check_encoding(by_name)
            kind = by_name.get(b"content-type", b"")
            stream = stream_of(kind, self._route, self._rename, self._errors, self._line_bytes)
            headers = response_headers(upstream.headers, by_name)
            if stream is None:
                await self._relay_whole(upstream, headers)
            elif self._announce:
                await self._relay_stream(upstream, Announced(stream, self._route.kind, self._announce), headers)
            else:
                await self._relay_stream(upstream, stream, headers)
        finally:
            upstream.close()
        return self.sent

    async def _relay_whole(self, upstream: UpstreamResponse, headers: list[Header]) -> None:
        body = upstream.read_nowait() if upstream.is_complete else await self._gather(upstream)
        if body is not None and upstream.is_complete:
            headers, body = _as_shown(upstream.status, headers, body, self._route, self._rename, self._errors)
            if self._announce:
                body = announced_body(body, self._route.kind, self._announce)
                headers = [*_without_length(headers), (b"content-length", b"%d" % len(body))]
            self._whole(upstream.status, headers, body)
            self.sent.ending = ending_of(body, self._route)
        else:
            if _is_final_error(upstream.status, self._route):
                headers.append(NO_RETRY)
            self._start(upstream.status, headers)
            await self._body(body or b"", more=True)
            await self._relay_rest(upstream)
        self.sent.outcome = "completed"

    async def _gather(self, upstream: UpstreamResponse) -> bytes:
        """Return the body, or its first `WHOLE_BYTES` if it is longer."""
        parts: list[bytes] = []
        size = 0
        # One piece beyond the limit at most: the caller sees by `is_complete` whether that was all.
        while size <= WHOLE_BYTES and (part := await upstream.read()):
            parts.append(part)
            size += len(part)
        return b"".join(parts)

    async def _relay_rest(self, upstream: UpstreamResponse) -> None:
        """Relay the rest of a long body. If it breaks off, so does the connection: no other error can be sent now."""
        try:
            while part := await upstream.read():
                await self._body(part, more=True)
        except UpstreamError:
            self.sent.outcome = "upstream_error"
            raise
        await self._body(b"", more=False)

    async def _relay_stream(
        self, upstream: UpstreamResponse, stream: Stream | Announced, headers: list[Header]
    ) -> None:
        last_words: bytes
        if b"content-length" in upstream.by_name:  # another name or a last word has another length
            headers = _without_length(headers)
        try:
            self._start(upstream.status, headers)
            await self._pump(upstream, stream)
            self.sent.ending = stream.ending()
            self.sent.error = "" if self.sent.ending.is_terminated else "the upstream ended the stream early"
            last_words = stream.error(self.sent.error) if self.sent.error else b""
            self.sent.outcome = "upstream_error" if last_words else "completed"
        except RouterError as exc:
            self.sent.outcome, self.sent.error = "upstream_error", exc.message
            last_words = stream.error(exc.message, exc.status)
        except asyncio.CancelledError:
            if self._cycle.is_gone:
                raise
            # The router stops: the cancellation ends here, because the client still gets a well-formed end.
            self.sent.outcome, self.sent.error = "shutdown", "the router is shutting down"
            last_words = stream.error(self.sent.error, 503)
        await self._body(last_words, more=False)

    async def _pump(self, upstream: UpstreamResponse, stream: Stream | Announced) -> None:
        """Relay the stream; each piece is written as soon as it has been read."""
        cycle = self._cycle

        def push(chunk: bytes) -> bool:
            if whole := stream.feed(chunk):
                self.sent.sent_bytes += len(whole)
                return cycle.push(whole)
            return True

        # The first piece usually arrives with the head; sent together they need one packet.
        first = upstream.read_nowait()
        if first is None:
            await self._body(b"", more=True)  # send the head without waiting for the first line
        elif first and not push(first):
            await cycle.drain()
        while not await upstream.pour(push):
            await cycle.drain()
        if rest := stream.rest():
            await self._body(rest, more=True)

    def _whole(self, status: int, headers: list[Header], body: bytes) -> None:
        self.is_started = True
        self.sent.status = status
        self.sent.sent_bytes = len(body)
        self._cycle.respond(status, headers + self._extra, body)

    def _start(self, status: int, headers: list[Header]) -> None:
        self.is_started = True
        self.sent.status = status
        self._cycle.start(status, headers + self._extra)

    async def _body(self, body: bytes, *, more: bool) -> None:
        self.sent.sent_bytes += len(body)
        await self._cycle.write(body, more=more)


def common_head_lines(head: AnswerHead) -> bytes:
    """Return the rendered header lines of a common answer without Content-Length; b"" for a stream or an error.

    They are cached with the head, which answers share if they repeat it.
    """
    if head.cached is None:
        by_name = head.by_name
        kept = _without_length(response_headers(head.headers, by_name))
        is_plain = not is_stream(by_name.get(b"content-type", b"")) and b"content-encoding" not in by_name
        is_common = head.status == 200 and is_plain
        head.cached = header_lines(kept) if is_common and b"content-length" in by_name else b""
    lines: bytes = head.cached
    return lines


def complete_answer(
    upstream: UpstreamResponse, route: Route, rename: Rename | None, errors: Rename | None = None
) -> tuple[list[Header], bytes] | None:
    """Return headers and body of an answer that has arrived completely; None for a stream, which is not read.

    Raises UpstreamError.
    """
    by_name = upstream.by_name
    check_encoding(by_name)
    if is_stream(by_name.get(b"content-type", b"")):
        return None
    body = upstream.read_nowait() or b""
    return _as_shown(upstream.status, response_headers(upstream.headers, by_name), body, route, rename, errors)


def check_encoding(by_name: Mapping[bytes, bytes]) -> None:
    """Raise UpstreamError for an encoded body, which the router neither asks for nor decodes."""
    if by_name.get(b"content-encoding", b"identity") != b"identity":
        raise UpstreamError("the upstream answered in an encoding that was not asked for")


def _as_shown(
    status: int,
    headers: list[Header],
    body: bytes,
    route: Route,
    rename: Rename | None,
    errors: Rename | None,
) -> tuple[list[Header], bytes]:
    """Return headers and body as the client gets them, with the model's name replaced by the one to show."""
    if _is_final_error(status, route):
        headers.append(NO_RETRY)
    shown = _shown(status, body, rename, errors or rename)
    if shown is not body:  # another name has another length
        headers = [*_without_length(headers), (b"content-length", b"%d" % len(shown))]
    return headers, shown


def _shown(status: int, body: bytes, rename: Rename | None, errors: Rename | None) -> bytes:
    """Return a body without the name of a derived tag, which must never reach a client."""
    if status >= HTTP_ERRORS:
        return shown_error(body, errors)
    return body if rename is None else shown_value(renamed_json(body, rename), errors)


def _without_length(headers: list[Header]) -> list[Header]:
    return [pair for pair in headers if pair[0] != b"content-length"]


def ending_of(body: bytes, route: Route) -> StreamEnd:
    """Return the token counts of a complete answer; called after it was sent, so that it delays no client."""
    return body_ending(body) if route.is_inference and len(body) <= COUNTED_BYTES else UNCOUNTED


def _is_final_error(status: int, route: Route) -> bool:
    """Return True for an error on which a client must not retry: it would double the work (C4)."""
    return status >= 500 and status != 503 and route.is_inference


async def read_whole(upstream: UpstreamResponse, hold: Callable[[int], None], limit_bytes: int = 64 << 20) -> bytes:
    """Return the whole body of an answer and close it. Raises UpstreamError, also beyond `limit_bytes`.

    `hold` is called with the number of bytes before each part is kept, and may raise.
    """
    gathered = Gathered()
    with contextlib.closing(upstream):
        while part := await upstream.read():
            hold(len(part))
            gathered.add(part)
            if gathered.size > limit_bytes:
                raise UpstreamError("the upstream's answer is too large")
    return await gathered.whole()
