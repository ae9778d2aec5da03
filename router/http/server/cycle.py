"""One request and its answer on a client's connection: ASGI's `receive` and `send`, rendered to bytes.

Differs from uvicorn's own cycle in what a relay needs: the head leaves together with the first bytes of the body (or
with an empty body message), large bodies are not copied, and the task is cancelled when the client is gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Protocol

import msgspec

from router.http.server.heads import Head

BODY_HIGH_WATER_BYTES = 512 << 10
"""So much of a request's body is held for an application that does not read it; then the socket is not read."""

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
STATUS_LINES = {code: b"HTTP/1.1 %d %b\r\n" % (code, _REASONS.get(code, b"Unknown")) for code in range(100, 600)}
_ABOUT_THE_BODY = frozenset((b"content-length", b"transfer-encoding", b"connection"))
DISCONNECT = {"type": "http.disconnect"}


class Line(Protocol):
    """What a cycle needs of its connection."""

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    is_write_paused: bool

    def resume_body(self) -> None: ...

    def scope_of(self, cycle: Cycle) -> dict[str, Any]: ...

    def begin(self, cycle: Cycle) -> None: ...

    def spawn(self, cycle: Cycle, work: Callable[[], Awaitable[None]]) -> None: ...

    async def drain(self) -> None: ...

    def cycle_done(self, cycle: Cycle) -> None: ...


class Underway(Protocol):
    """Work for a request that runs without a task. The client has left: no answer; no more time: a short one."""

    def give_up(self) -> None: ...

    def interrupt(self) -> None: ...


class DateLine:
    """The Date header, rendered once a second."""

    def __init__(self) -> None:
        self.line = b""
        self._until_s = -1.0

    def at(self, loop_s: float) -> bytes:
        if loop_s >= self._until_s:
            self.line = b"date: %b\r\n" % formatdate(time.time(), usegmt=True).encode()
            self._until_s = loop_s + 1.0 - time.time() % 1.0
        return self.line


DATE = DateLine()


class Cycle(msgspec.Struct, eq=False):
    """See the module. `is_gone` becomes True when the client has left before its answer was complete.

    `task` is the application at work for it, `underway` what is at work instead where no task is needed.
    """

    line: Line
    head: Head
    keep_alive: bool = True
    request_complete: bool = False
    chunks: list[bytes] = []
    buffered_bytes: int = 0
    expects_continue: bool = False
    task: asyncio.Task[None] | None = None
    underway: Underway | None = None
    is_gone: bool = False
    response_started: bool = False
    response_complete: bool = False
    waiter: asyncio.Future[None] | None = None
    head_bytes: bytes | None = None
    is_chunked: bool = False
    told_end: bool = False
    left_bytes: int = -1
    request_id: str = ""  # once it has one

    # What the connection tells

    def feed(self, chunk: bytes) -> None:
        self.chunks.append(chunk)
        self.buffered_bytes += len(chunk)
        self._wake()

    def end_request(self) -> None:
        self.request_complete = True
        self._wake()

    def leave(self) -> None:
        """The client is gone: whatever the application waits for is cancelled."""
        if not self.response_complete:
            self.is_gone = True
            self._wake()
            underway, self.underway = self.underway, None
            if underway is not None:
                underway.give_up()
            elif self.task is not None:
                self.task.cancel()

    def _wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def abandon(self) -> None:
        """The application has ended without a complete answer: a plain 500, or a visible cut."""
        if self.response_started and self.head_bytes is None:
            self.line.transport.abort()
            return
        body = b"Internal Server Error"
        self.keep_alive = False
        self.response_started, self.left_bytes, self.is_chunked = True, -1, False
        self.head_bytes = self._render(500, ((b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))))
        self._write(body, more=False)
        self._complete()

    @property
    def scope(self) -> dict[str, Any]:
        """The request as ASGI has it."""
        return self.line.scope_of(self)

    # Without ASGI: for what can be answered on the spot

    def begin(self) -> None:
        """Run the application for it after all."""
        self.line.begin(self)

    def spawn(self, work: Callable[[], Awaitable[None]], at_end: Callable[[], None]) -> None:
        """Run `work`, which sends the answer, in a task that is cancelled when the client leaves.

        `at_end` is called when the task has ended, even if it was cancelled before it began.
        """
        self.line.spawn(self, work)
        assert self.task is not None
        self.task.add_done_callback(lambda _: at_end())

    def has_client_gone(self) -> bool:
        """True when the client has left before its answer was complete."""
        return self.is_gone

    def peek_body(self) -> bytes | None:
        """The whole body when it has arrived completely, else None. It can still be taken or received."""
        if not self.request_complete:
            return None
        if len(self.chunks) > 1:
            self.chunks = [b"".join(self.chunks)]
        return self.chunks[0] if self.chunks else b""

    def push(self, body: bytes) -> bool:
        """Send a piece of an answer that has started, without waiting; False when the client should be waited for."""
        if self.is_gone:
            return True
        self._write(body, more=True)
        return not self.line.is_write_paused

    async def drain(self) -> None:
        """Until the client has taken most of what was written."""
        await self.line.drain()

    # ASGI

    def take_body(self) -> bytes | None:
        """The whole body when it has arrived completely, else None. Nothing is taken then."""
        if not self.request_complete:
            return None
        body = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
        self.chunks.clear()
        self.buffered_bytes = 0
        return body

    def respond(self, status: int, headers: Any, body: bytes, lines: bytes = b"") -> None:
        """A whole answer at once: what two `send`s would do, in one write and without an await.

        `lines` are further headers, ready to be sent; none of them is about the body or the connection.
        """
        if not self.is_gone:
            self.response_started = True
            self.head_bytes = self._render(status, headers, lines)
            self._write(body, more=False)
            self._complete()

    async def receive(self) -> dict[str, Any]:
        if self.expects_continue and not self.response_started and not self.is_gone:
            self.expects_continue = False
            self.line.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self.is_gone or self.response_complete or self._has_news()):
            self.waiter = self.line.loop.create_future()
            try:
                await self.waiter
            finally:
                self.waiter = None
        if self.is_gone or self.response_complete:
            return DISCONNECT
        body = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
        self.chunks.clear()
        if self.buffered_bytes > BODY_HIGH_WATER_BYTES:
            self.line.resume_body()
        self.buffered_bytes = 0
        self.told_end = self.request_complete
        return {"type": "http.request", "body": body, "more_body": not self.request_complete}

    def _has_news(self) -> bool:
        """True when there is something to receive; after the end was told only the client's leaving is news."""
        return bool(self.chunks) or (self.request_complete and not self.told_end)

    async def send(self, message: dict[str, Any]) -> None:
        if self.is_gone:
            return
        if message["type"] == "http.response.start":
            if self.response_started:
                raise RuntimeError("the response was started before")
            self.response_started = True
            self.head_bytes = self._render(message["status"], message.get("headers", ()))
            return
        if not self.response_started or self.response_complete:
            raise RuntimeError(f"unexpected ASGI message {message['type']!r}")
        more = message.get("more_body", False)
        self._write(message.get("body", b""), more=more)
        if not more:
            self._complete()
        elif self.line.is_write_paused:
            await self.line.drain()

    def _render(self, status: int, headers: Any, lines: bytes = b"") -> bytes:
        parts = [STATUS_LINES[status], DATE.at(self.line.loop.time()), lines]
        count = lines.count(b"\n")
        self.keep_alive = self.keep_alive and self.request_complete
        for name, value in headers:
            if name not in _ABOUT_THE_BODY:
                parts += (name, b": ", value, b"\r\n")
                count += 1
                continue
            if name == b"content-length":
                self.left_bytes = int(value)
            elif name == b"transfer-encoding":
                continue
            elif name == b"connection":
                self.keep_alive = self.keep_alive and value.lower() != b"close"
                continue
            parts += (name, b": ", value, b"\r\n")
            count += 1
        if self.head.method == "HEAD" or status in (204, 304):
            self.left_bytes = -2
        elif self.left_bytes < 0:
            if self.head.http_10:
                self.keep_alive = False
            else:
                self.is_chunked = True
                parts.append(b"transfer-encoding: chunked\r\n")
                count += 1
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
            count += 1
        elif self.head.http_10:
            parts.append(b"connection: keep-alive\r\n")
            count += 1
        parts.append(b"\r\n")
        head = b"".join(parts)
        if not head.count(b"\r") == head.count(b"\n") == count + 3 or b"\x00" in head:
            self.response_started = False
            raise ValueError("a response header holds a line break or a NUL")
        return head

    def _write(self, body: bytes, *, more: bool) -> None:
        head, self.head_bytes = self.head_bytes or b"", None
        if self.left_bytes == -2:
            body = b""
        elif self.left_bytes >= 0:
            self.left_bytes -= len(body)
            if self.left_bytes < 0 or (self.left_bytes and not more):
                raise RuntimeError("the body does not match its content-length")
        transport = self.line.transport
        if not self.is_chunked:
            if len(body) < 65536:
                if head or body:
                    transport.write(head + body)
            else:
                transport.writelines((head, body))
            return
        end = b"\r\n" if more else b"\r\n0\r\n\r\n"
        if not body:
            end = b"" if more else b"0\r\n\r\n"
            if head or end:
                transport.write(head + end)
        elif len(body) < 65536:
            transport.write(b"%b%x\r\n%b%b" % (head, len(body), body, end))
        else:
            transport.writelines((b"%b%x\r\n" % (head, len(body)), body, end))

    def _complete(self) -> None:
        self.response_complete = True
        self._wake()
        self.line.cycle_done(self)
