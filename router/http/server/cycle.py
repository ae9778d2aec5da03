"""One request and its answer on a client's connection.

The answer goes through these phases; a call in the wrong one raises RuntimeError:

    OPEN ── start, respond ──▶ STARTED ── last piece ──▶ COMPLETE
      └───────── the client leaves ─┴──▶ GONE            (calls are ignored then)

The head is sent together with the first piece of the body, which may be empty. Large pieces are not copied. The task of
a request is cancelled when its client leaves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from enum import Enum
from typing import Protocol

import msgspec

from router.http.headers import Header
from router.http.server.clients import Client
from router.http.server.heads import Head
from router.http.server.limits import GONE_WRONG, HIGH_WATER_BYTES
from router.http.server.rendering import NO_BODY, UNKNOWN, render, render_ok
from router.http.server.taskless import Taskless

logger = logging.getLogger("router.http")

LARGE_BYTES = 65536
"""Pieces of at least this size are passed to the transport without a copy."""


class ClientGone(Exception):
    """The client left before its request was complete."""


class Phase(Enum):
    """The phases of an answer; see the module's docstring."""

    OPEN = "open"
    STARTED = "started"
    COMPLETE = "complete"
    GONE = "gone"


# Names of their own: in Python 3.11 `Phase.OPEN` is a slow look-up, and each request makes a dozen of them.
OPEN, STARTED, COMPLETE, GONE = Phase


class Carrier(Protocol):
    """The connection as a cycle uses it."""

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    client: str
    peer: Client

    @property
    def is_write_paused(self) -> bool: ...

    def resume_body(self) -> None: ...

    async def drain(self) -> None: ...

    def cycle_done(self, cycle: Cycle) -> None: ...


class Cycle(msgspec.Struct, eq=False):
    """One request and its answer. It is processed by `task`, or by `taskless` on the fast path."""

    carrier: Carrier
    head: Head
    keep_alive: bool = True
    request_complete: bool = False
    chunks: list[bytes] = []
    buffered_bytes: int = 0
    expects_continue: bool = False
    phase: Phase = OPEN
    task: asyncio.Task[None] | None = None
    taskless: Taskless | None = None
    waiter: asyncio.Future[None] | None = None
    head_bytes: bytes = b""  # rendered, but not sent yet
    is_chunked: bool = False
    left_bytes: int = UNKNOWN
    request_id: str = ""  # set on the fast path

    @property
    def is_gone(self) -> bool:
        """True if the client left before its answer was complete."""
        return self.phase is GONE

    def has_client_gone(self) -> bool:
        """Return `is_gone`; a method, so that it can be passed as a callback."""
        return self.phase is GONE

    @property
    def is_complete(self) -> bool:
        """True if the whole answer was sent."""
        return self.phase is COMPLETE

    # --- calls by the connection -------------------------------------------------------------------------------

    def feed(self, chunk: bytes) -> None:
        """Add a piece of the request's body."""
        self.chunks.append(chunk)
        self.buffered_bytes += len(chunk)
        self._wake()

    def end_request(self) -> None:
        """Mark the request as complete."""
        self.request_complete = True
        self._wake()

    def leave(self) -> None:
        """Cancel the processing: the client has left. A no-op after a complete answer."""
        if self.phase is COMPLETE:
            return
        self.phase = GONE
        self._wake()
        taskless, self.taskless = self.taskless, None
        if taskless is not None:
            taskless.give_up()
        elif self.task is not None:
            self.task.cancel()

    def close_after(self) -> None:
        """Make this answer the last one on its connection."""
        self.keep_alive = False

    def interrupt(self) -> None:
        """End the processing that runs without a task: the grace period is over."""
        taskless, self.taskless = self.taskless, None
        if taskless is not None:
            taskless.interrupt()

    def abandon(self) -> None:
        """End an answer that its processing left incomplete: by a plain 500, or by cutting the connection."""
        if self.phase in (COMPLETE, GONE):
            return
        if self.phase is STARTED and not self.head_bytes:
            self.carrier.transport.abort()
            return
        self.keep_alive, self.phase = False, OPEN  # its head was not sent: begin another answer
        self.respond(500, ((b"content-type", b"text/plain"),), GONE_WRONG, adds_length=True)

    # --- processing --------------------------------------------------------------------------------------------

    def process_in_task(self, work: Callable[[], Awaitable[None]], at_end: Callable[[], None] | None = None) -> None:
        """Run `work`, which sends the answer, in a task that is cancelled when the client leaves.

        `at_end` is called when the task has ended, even if it was cancelled before it began.
        """
        self.taskless = None
        self.task = self.carrier.loop.create_task(run(self, work))
        if at_end is not None:
            self.task.add_done_callback(lambda _: at_end())

    def process_with(self, taskless: Taskless) -> None:
        """Set the processing without a task; it ends with the answer, or when a task takes over."""
        self.taskless = taskless

    # --- reading the request -----------------------------------------------------------------------------------

    def take_body(self) -> bytes | None:
        """Take the whole body if it has arrived completely; else return None and leave it."""
        if not self.request_complete:
            return None
        body = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
        self.chunks.clear()
        self.buffered_bytes = 0
        return body

    async def read(self) -> bytes:
        """Wait for the next bytes of the body and return them; b"" at its end. Raises ClientGone."""
        if self.expects_continue and self.phase is OPEN:
            self.expects_continue = False
            self.carrier.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self.chunks or self.request_complete or self.phase is GONE):
            await self._wait_for_change()
        if self.phase is GONE:
            raise ClientGone
        body = b"".join(self.chunks)
        self.chunks.clear()
        if self.buffered_bytes > HIGH_WATER_BYTES:
            self.carrier.resume_body()
        self.buffered_bytes = 0
        return body

    async def wait_until_ended(self) -> None:
        """Wait until the answer is complete or the client has left."""
        while self.phase in (OPEN, STARTED):
            await self._wait_for_change()

    async def _wait_for_change(self) -> None:
        self.waiter = self.carrier.loop.create_future()
        try:
            await self.waiter
        finally:
            self.waiter = None

    def _wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    # --- writing the answer ------------------------------------------------------------------------------------

    def respond(
        self, status: int, headers: Iterable[Header], body: bytes, lines: bytes = b"", *, adds_length: bool = False
    ) -> None:
        """Send a complete answer in one write. With `adds_length`, a Content-Length is added to its headers.

        `lines` are further headers, rendered by `header_lines`; none of them may concern the body or the connection.
        """
        self.start(status, headers, lines, len(body) if adds_length else UNKNOWN)
        if self.phase is STARTED:
            self._write(body, more=False)

    def respond_ok(self, body: bytes, lines: bytes) -> None:
        """Send a complete 200 in one write, as `respond` with `adds_length` and no other headers than `lines`."""
        head, size, carrier = self.head, len(body), self.carrier
        is_usual = self.phase is OPEN and self.keep_alive and self.request_complete and size < LARGE_BYTES
        if not is_usual or head.http_10 or head.method == "HEAD":
            self.respond(200, (), body, lines, adds_length=True)
            return
        carrier.transport.write(render_ok(lines, carrier.loop.time(), size) + body)
        self.phase, self.taskless = COMPLETE, None  # they refer to each other
        if self.waiter is not None:
            self._wake()
        carrier.cycle_done(self)

    def start(self, status: int, headers: Iterable[Header], lines: bytes = b"", body_bytes: int = UNKNOWN) -> None:
        """Begin an answer; its head is sent with the first piece of its body. See `render` for the arguments."""
        if self.phase is GONE:
            return
        if self.phase is not OPEN:
            raise RuntimeError(f"the answer is {self.phase.value}")
        is_kept, now_s = self.keep_alive and self.request_complete, self.carrier.loop.time()
        rendered = render(self.head, status, headers, lines, now_s, is_kept=is_kept, body_bytes=body_bytes)
        self.phase = STARTED
        self.head_bytes, self.keep_alive, self.is_chunked, self.left_bytes = rendered

    def push(self, piece: bytes) -> bool:
        """Send a piece of a started answer; return False if the caller should `drain` before the next one."""
        if self.phase is GONE:
            return True
        self._write(piece, more=True)
        return not self.carrier.is_write_paused

    async def write(self, piece: bytes, *, more: bool) -> None:
        """Send a piece of the body (the last one if not `more`); wait while the client reads slowly."""
        if self.phase is GONE:
            return
        if self.phase is not STARTED:
            raise RuntimeError(f"the answer is {self.phase.value}")
        self._write(piece, more=more)
        if more and self.carrier.is_write_paused:
            await self.carrier.drain()

    async def drain(self) -> None:
        """Wait until the client has read most of what was written."""
        await self.carrier.drain()

    def _write(self, body: bytes, *, more: bool) -> None:
        head, self.head_bytes = self.head_bytes, b""
        if self.left_bytes == NO_BODY:
            body = b""
        elif self.left_bytes >= 0:
            self.left_bytes -= len(body)
            if self.left_bytes < 0 or (self.left_bytes and not more):
                raise RuntimeError("the body does not match its content-length")
        transport, end = self.carrier.transport, b""
        if self.is_chunked:
            if body:
                head, end = b"%b%x\r\n" % (head, len(body)), b"\r\n"
            end += b"" if more else b"0\r\n\r\n"
        if len(body) >= LARGE_BYTES:
            for part in (head, body, end) if end else (head, body):  # not writelines: see `Wire`
                transport.write(part)
        elif head or body or end:
            transport.write(head + body + end)
        if not more:
            self.phase, self.taskless = COMPLETE, None  # they refer to each other
            if self.waiter is not None:
                self._wake()
            self.carrier.cycle_done(self)


async def run(cycle: Cycle, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work`, and end the answer if it did not."""
    try:
        await work()
    except asyncio.CancelledError:
        if not cycle.is_gone:
            raise
    except Exception:
        logger.exception("the application failed")
    if not (cycle.is_complete or cycle.is_gone):
        cycle.abandon()
