"""Parsing of answers: httptools' callbacks, the limits of a head, and how an answer ends. No sockets.

`AnswerParser` is the parsing part of a connection; `wire.Wire` is the rest of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import httptools

from router.errors import UpstreamError
from router.http.client.response import AnswerHead, UpstreamResponse
from router.http.repeats import LastHead

MAX_HEADER_BYTES = 64 << 10
"""Of a head, and of all that comes between two pieces of a body: trailers, and what a chunk says of itself."""
MAX_HEADERS = 256
LEAST_STATUS, MAX_STATUS = 100, 599
ParserErrors = (httptools.HttpParserError, httptools.HttpParserUpgrade)


class ConnectionGone(UpstreamError):
    """The connection ended before the first byte of an answer: another connection may be tried."""


class AnswerParser(asyncio.Protocol):
    """Reads answers into `_response`, which is None while no request is under way or its answer is complete."""

    __slots__ = (
        "_answer_wait_s",
        "_has_head",
        "_head_bytes",
        "_headers",
        "_is_head_request",
        "_is_keep_alive",
        "_known",
        "_on_head",
        "_parser",
        "_parts",
        "_response",
        "_until_eof",
        "_wait_s",
    )

    def __init__(self, answer_wait_s: float, known: LastHead[AnswerHead]) -> None:
        self._known = known
        self._parser: Any = httptools.HttpResponseParser(self)
        self._answer_wait_s = self._wait_s = answer_wait_s
        self._parts: list[bytes] = []
        self._response: UpstreamResponse | None = None
        self._on_head: Callable[[], None] | None = None  # called once, at the head or when there will be none
        self._head_bytes = 0  # since the last piece of a body
        self._headers: list[tuple[bytes, bytes]] = []
        self._is_head_request = self._until_eof = self._is_keep_alive = self._has_head = False

    def _begin_parsing(self) -> None:
        """Forget the answer before: the first bytes of the next one have come."""
        self._has_head = self._is_keep_alive = self._until_eof = False
        self._head_bytes = 0

    def _parse(self, data: bytes) -> bool:
        """Return whether a head or a piece of the body has come with `data`. Raises ParserErrors."""
        had_head = self._has_head
        self._head_bytes += len(data)
        self._parser.feed_data(data)
        if self._parts:
            self._head_bytes = 0
            return True
        return self._has_head is not had_head

    def on_message_begin(self) -> None:
        if self._response is None:  # a second answer in the same read
            raise ValueError("bytes after the answer's end")
        self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._has_head:  # else it is a trailer, and discarded: there may be any number of them
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        headers, self._headers = self._headers, []
        if not LEAST_STATUS <= status <= MAX_STATUS:
            raise ValueError(f"the status {status}")
        if status < 200:  # provisional: the final answer follows
            if status == 101:
                raise ValueError("an upgrade that was not requested")
            return
        if len(headers) > MAX_HEADERS:
            raise ValueError("too many headers")
        if self._head_bytes > MAX_HEADER_BYTES and sum(map(_size, headers)) > MAX_HEADER_BYTES:
            raise ValueError("too many headers")
        self._has_head = True
        response = cast("UpstreamResponse", self._response)
        head = AnswerHead(status, headers, dict(headers))
        response.begin(head)
        self._is_keep_alive = self._parser.should_keep_alive()
        self._until_eof = _ends_with_connection(status, head.by_name)
        self._wait_s = self._answer_wait_s
        if self._is_head_request:
            # The parser does not know that no body follows: the connection cannot be used again.
            self._is_keep_alive = False
            self._response = None

    def on_body(self, chunk: bytes) -> None:
        self._parts.append(chunk)

    def on_message_complete(self) -> None:
        if self._has_head:  # not the end of a 1xx
            self._response = None

    def _learn(self, data: bytes, head: AnswerHead) -> None:
        """Cache the head of `data`, which was one complete answer: the next one may repeat it."""
        length = head.by_name.get(b"content-length")
        has_body = not self._is_head_request and head.status not in (204, 304)
        if length is not None and has_body:
            self._known.learn(data, head.by_name, int(length), head)

    def _flush(self, response: UpstreamResponse) -> None:
        """Pass on the body bytes of one read as one piece."""
        parts = self._parts
        if parts and not self._is_head_request:
            response.feed(parts[0] if len(parts) == 1 else b"".join(parts))
        parts.clear()


def _size(header: tuple[bytes, bytes]) -> int:
    return len(header[0]) + len(header[1])


def reason(exc: Exception) -> str:
    """Return the text of an error in a callback, or of httptools' own."""
    cause: Any = exc.__context__
    return str(cause if cause is not None else exc) or type(exc).__name__


def lost(saw_byte: bool, exc: Exception | None) -> UpstreamError:
    """Return the error for a lost connection; ConnectionGone if no byte of the answer was seen."""
    why = str(exc) if exc else "it closed the connection"
    if saw_byte:
        return UpstreamError(f"the upstream broke off its answer: {why}")
    return ConnectionGone(f"the upstream sent no answer: {why}")


def _ends_with_connection(status: int, by_name: dict[bytes, bytes]) -> bool:
    """Return True if the body ends only with the connection (RFC 9112 §6.3, rule 8)."""
    if status in (204, 304):
        return False
    return b"content-length" not in by_name and b"transfer-encoding" not in by_name
