"""One HTTP response, framed as by Go's net/http, with hooks for faults."""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus

from ollama_simulator.http.faults import Fault
from ollama_simulator.http.requests import Connection, Request

BUFFER_BYTES = 2048
"""Bytes that net/http buffers before it resorts to chunked encoding."""

DRAIN_BYTES = 256 << 10
"""Bytes of an unread body that net/http reads at most to keep the connection."""


class ClientGone(Exception):
    """The client closed its connection during the response."""


class Response:
    """A response. Headers are sent in Go's order: by name, then Date, Content-Length, Connection, Transfer-Encoding."""

    def __init__(self, request: Request, connection: Connection) -> None:
        self.request = request
        self.connection = connection
        self.status = 200
        self.headers: list[tuple[str, str]] = []
        self.is_started = False
        self.is_finished = False
        self.chunks_written = 0
        self.bytes_written = 0
        self.fault: Fault | None = None
        self._held = bytearray()
        self._chunked = False
        self._close = request.wants_close
        self._is_close_told = True

    @property
    def keeps_alive(self) -> bool:
        """Whether another request may follow on this connection."""
        return self.is_finished and not self._close

    def set(self, name: str, value: str) -> None:
        """Set a header, replacing those of the same name."""
        self.headers = [pair for pair in self.headers if pair[0] != name]
        self.headers.append((name, value))

    def close(self) -> None:
        """End the connection after this answer."""
        self._close = True

    def close_silently(self) -> None:
        """End the connection after this answer without a header that says so."""
        self._close, self._is_close_told = True, False

    async def write(self, data: bytes) -> None:
        """Write body bytes: up to 2,048 are buffered, more are sent as one chunk."""
        if len(self._held) + len(data) <= BUFFER_BYTES:
            self._held += data
            return
        if self._held and len(data) < BUFFER_BYTES:
            data, self._held = bytes(self._held) + data, bytearray()
        elif self._held:
            await self.flush()
        await self._send(data)

    async def flush(self) -> None:
        """Send the buffer as one chunk, after the headers."""
        held, self._held = bytes(self._held), bytearray()
        await self._send(held)

    async def line(self, data: bytes) -> None:
        """Send one line or event of a stream immediately, as its own chunk."""
        self._held += data
        await self.flush()

    async def finish(self) -> None:
        """End the response."""
        if self.is_finished:
            return
        if not self.is_started:
            await self._finish_short()
        elif self._held:
            await self.flush()
        if self._chunked and not self._bodyless:
            await self.connection.write(b"0\r\n\r\n")
        self.is_finished = True

    @property
    def _bodyless(self) -> bool:
        return self.request.method == "HEAD" or self.status in (204, 304)

    async def _finish_short(self) -> None:
        is_stated = any(name == "Content-Length" for name, _ in self.headers)
        extra = [] if self.status in (204, 304) or is_stated else [("Content-Length", str(len(self._held)))]
        if self.request.method == "HEAD" and not self._held:
            extra = []
        body = b"" if self._bodyless else bytes(self._held)
        self._held.clear()
        await self._start(extra, body)
        if body:
            self.bytes_written += len(body)
            self.chunks_written += 1

    async def _send(self, data: bytes) -> None:
        if not self.is_started:
            self._chunked = self.request.version >= (1, 1) and self.request.method != "HEAD"
            if self.request.version < (1, 1):
                self._close = True
            await self._start([], b"")
        if not data or self._bodyless:
            return
        if self.fault is not None:
            await self.fault.before_chunk(self, data)
        framed = b"%x\r\n%s\r\n" % (len(data), data) if self._chunked else data
        self.chunks_written += 1
        self.bytes_written += len(data)
        await self.connection.write(framed)

    async def _start(self, extra: list[tuple[str, str]], body: bytes) -> None:
        self.is_started = True
        await self._drain_body()
        if self.fault is not None:
            await self.fault.before_head(self)
        await self.connection.write(self.head(extra) + body)

    async def _drain_body(self) -> None:
        """Read up to 256 KiB of an unread body. Longer and incomplete ones close the connection, as in net/http."""
        request = self.request
        if request.body is None and request.remaining != 0:
            is_late = request.awaits_continue or request.remaining >= DRAIN_BYTES
            self._close = self._close or is_late or len(await request.read()) >= DRAIN_BYTES
        if not request.is_body_complete:
            self._close = True

    def head(self, extra: list[tuple[str, str]]) -> bytes:
        """Return the status line and headers in Go's order."""
        reason = (
            HTTPStatus(self.status).phrase
            if self.status in HTTPStatus._value2member_map_
            else f"status code {self.status}"
        )
        headers = sorted(self.headers, key=lambda pair: pair[0])
        headers.append(("Date", formatdate(usegmt=True)))
        headers += extra
        if not any(name == "Connection" for name, _ in headers):
            if self._close and self._is_close_told and self.request.version >= (1, 1):
                headers.append(("Connection", "close"))
            elif not self._close and self.request.version < (1, 1):
                headers.append(("Connection", "keep-alive"))
        if self._chunked:
            headers.append(("Transfer-Encoding", "chunked"))
        version = "1.1" if self.request.version >= (1, 1) else "1.0"
        lines = [f"HTTP/{version} {self.status} {reason}"]
        lines += [f"{name}: {value}" for name, value in headers]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8")
