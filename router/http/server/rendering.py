"""Rendering of answer heads: the framing of the body, and whether the connection stays open."""

from __future__ import annotations

import time
from collections.abc import Iterable
from email.utils import formatdate
from http import HTTPStatus

from router.http.headers import Header, header_lines
from router.http.server.heads import Head

UNKNOWN, NO_BODY = -1, -2
"""Special body lengths: ended by the last chunk or the connection; no body."""

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
STATUS_LINES = {code: b"HTTP/1.1 %d %b\r\n" % (code, _REASONS.get(code, b"Unknown")) for code in range(100, 600)}
OK_LINE = STATUS_LINES[200]
_ABOUT_THE_BODY = frozenset((b"content-length", b"transfer-encoding", b"connection"))


class DateLine:
    """The Date header, rendered once per second."""

    def __init__(self) -> None:
        self._line = b""
        self._until_s = -1.0

    def at(self, loop_s: float) -> bytes:
        """Return the header line for a loop time."""
        if loop_s >= self._until_s:
            self._line = b"date: %b\r\n" % formatdate(time.time(), usegmt=True).encode()
            self._until_s = loop_s + 1.0 - time.time() % 1.0
        return self._line


DATE = DateLine()


def render(
    request: Head,
    status: int,
    headers: Iterable[Header],
    lines: bytes,
    loop_s: float,
    *,
    is_kept: bool,
    body_bytes: int = UNKNOWN,
) -> tuple[bytes, bool, bool, int]:
    """Render the head of the answer to `request`; `lines` are further headers, rendered by `header_lines`.

    `body_bytes` becomes its Content-Length, unless it is UNKNOWN; then `headers` may hold one.

    Returns the bytes, whether the connection is kept, whether the body is chunked, and its length in bytes (or UNKNOWN
    or NO_BODY). Raises ValueError for a header that contains a line break or a NUL.
    """
    framing = b"content-length: %d\r\n" % body_bytes if body_bytes >= 0 else b""
    sent: list[Header] = []
    for header in headers:
        name, value = header
        if name in _ABOUT_THE_BODY:
            if name != b"content-length":
                is_kept = is_kept and not (name == b"connection" and value.lower() == b"close")
                continue
            body_bytes = int(value)
        sent.append(header)
    is_chunked = False
    if request.method == "HEAD" or status in (204, 304):
        body_bytes = NO_BODY
    elif body_bytes < 0 and request.http_10:
        is_kept = False
    elif body_bytes < 0:
        is_chunked = True
        framing = b"transfer-encoding: chunked\r\n"
    if not is_kept or request.http_10:
        framing += b"connection: keep-alive\r\n" if is_kept else b"connection: close\r\n"
    own = header_lines(sent) if sent else b""
    data = b"".join((STATUS_LINES[status], DATE.at(loop_s), lines, own, framing, b"\r\n"))
    return data, is_kept, is_chunked, body_bytes


def render_ok(lines: bytes, loop_s: float, body_bytes: int) -> bytes:
    """Render the head of a 200 with these further headers and a body of that length, on a connection that is kept."""
    return b"%b%b%bcontent-length: %d\r\n\r\n" % (OK_LINE, DATE.at(loop_s), lines, body_bytes)


def refusal(status: int, text: bytes) -> bytes:
    """Return a whole answer to what cannot be read as a request: `text` after the reason, or as JSON if it is that."""
    line = STATUS_LINES[status].rstrip()[9:]
    body = text if text.startswith(b"{") else line + (b": " + text if text else b"")
    kind = b"application/json" if text.startswith(b"{") else b"text/plain"
    return b"%bcontent-type: %b; charset=utf-8\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (
        STATUS_LINES[status],
        kind,
        len(body),
        body,
    )
