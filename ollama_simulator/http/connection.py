"""An HTTP/1.1 server with the framing of Go's net/http, in which faults can be injected (`faults.py`).

One `Connection` per client; `Request` reads its body lazily; `Response` buffers up to 2,048 bytes, so that short
responses get a Content-Length and long or flushed ones are chunked, one chunk per write.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from ollama_simulator.http.requests import BadHead, Request, Seen, body_plan, parse_head
from ollama_simulator.http.response import ClientGone, Response

MAX_HEAD = (1 << 20) + 4096
"""Go's DefaultMaxHeaderBytes plus its slack; a longer head gets a 431."""

EOF_SEEN_S = 0.001
"""How long net/http takes to see that a client has closed its side, and to cancel the request's context."""

App = Callable[[Request, Response], Coroutine[Any, Any, None]]


class Connection(asyncio.Protocol):
    """One client connection: reads requests one after another, cancels a handler when its client leaves."""

    def __init__(self, app: App, opened: set[Connection], number: int = 0) -> None:
        self.number = number
        self.buffer = bytearray()
        self.eof = False
        self.closed_at_s: float | None = None
        self.transport: asyncio.Transport
        self._app = app
        self._opened = opened
        self._changed = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._handling: asyncio.Task[None] | None = None
        self._body_read = False
        self._paused = False
        self.task: asyncio.Task[None] | None = None
        self.records: deque[Seen] = deque(maxlen=1000)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._opened.add(self)
        self.task = asyncio.get_running_loop().create_task(self._serve())

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if len(self.buffer) > MAX_HEAD and not self._paused:
            self._paused = True
            self.transport.pause_reading()
        self._changed.set()

    def eof_received(self) -> bool:
        self.eof = True
        self._changed.set()
        if self._body_read:
            self._leave_later()
        return True

    def connection_lost(self, _exc: Exception | None) -> None:
        self.closed_at_s = asyncio.get_running_loop().time()
        for record in self.records:
            record.closed_at_s = self.closed_at_s
        self.eof = True
        self._opened.discard(self)
        self._changed.set()
        self._writable.set()
        self._cancel_handler()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # for Request and Response

    @property
    def has_left(self) -> bool:
        """Whether the client has closed its side after a whole request, which net/http takes for leaving."""
        return self.eof and self._body_read

    async def fill(self) -> bool:
        """Wait for more bytes. False: the client sends no more."""
        self._resume()
        if self.eof:
            return False
        self._changed.clear()
        await self._changed.wait()
        return True

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            with suppress(RuntimeError):
                self.transport.resume_reading()

    async def write(self, data: bytes) -> None:
        """Send `data`, waiting while the client does not read. Raises ClientGone."""
        if self.closed_at_s is not None or self.transport.is_closing():
            raise ClientGone
        self.transport.write(data)
        await self._writable.wait()

    def body_ended(self) -> None:
        """Record that the body was read completely: from now on, an EOF means that the client has left."""
        self._resume()
        self._body_read = True
        if self.eof:
            self._leave_later()

    def reset(self) -> None:
        """Close with an RST."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _leave_later(self) -> None:
        """Cancel the handler unless it is done at once: a client that sends no more may still read."""
        asyncio.get_running_loop().call_later(EOF_SEEN_S, self._cancel_handler)

    def _cancel_handler(self) -> None:
        if self._handling is not None:
            self._handling.cancel()

    # the loop

    async def _serve(self) -> None:
        try:
            while await self._one():
                pass
        except (ClientGone, ConnectionError):
            pass
        except Exception as error:  # as Go's server handles a panic: log it and close the connection
            asyncio.get_running_loop().call_exception_handler({"message": "handler failed", "exception": error})
        finally:
            self.transport.close()

    async def _one(self) -> bool:
        """Serve one request. True if another may follow on the connection."""
        head = await self._read_head()
        if head is None:
            return False
        try:
            request = parse_head(head, self)
            body_plan(request)
        except BadHead as error:
            await self.write(error.answer)
            return False
        response = Response(request, self)
        self._body_read = False
        if request.remaining == 0:
            self.body_ended()
        self._handling = asyncio.get_running_loop().create_task(self._app(request, response))
        try:
            await self._handling
        except asyncio.CancelledError:
            if not self._handling.cancelled():  # the server is stopping
                self._handling.cancel()
                raise
            return False
        finally:
            self._handling = None
        return response.keeps_alive and self.closed_at_s is None

    async def _read_head(self) -> bytes | None:
        while True:
            if self.buffer.startswith((b"\r", b"\n")):
                await self.write(BadHead("400 Bad Request").answer)
                return None
            end = self.buffer.find(b"\r\n\r\n")
            bare = self.buffer.find(b"\n\n")
            if bare >= 0 and (bare < end or end < 0):
                head = bytes(self.buffer[:bare])
                del self.buffer[: bare + 2]
                return head
            if end >= 0 and end <= MAX_HEAD:
                head = bytes(self.buffer[:end])
                del self.buffer[: end + 4]
                return head
            if len(self.buffer) > MAX_HEAD:
                reason = "431 Request Header Fields Too Large"
                await self.write(BadHead(reason).answer)
                return None
            if not await self.fill():
                if self.buffer and self.closed_at_s is None:
                    await self.write(BadHead("400 Bad Request").answer)
                return None
