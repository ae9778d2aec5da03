"""One request and its answer on a client's connection, rendered to bytes.

The answer goes through these phases; what is done in the wrong one raises RuntimeError:

    OPEN ── start, respond ──▶ STARTED ── last piece ──▶ COMPLETE
      └───────── the client leaves ─┴──▶ GONE            (nothing is sent any more; not after COMPLETE)

The head leaves together with the first bytes of the body (or with an empty piece), large bodies are not copied, and the
task at work is cancelled when the client leaves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from enum import Enum
from typing import Protocol

import msgspec

from router.http.headers import Header
from router.http.server.heads import Head
from router.http.server.rendering import NO_BODY, UNKNOWN, render

logger = logging.getLogger("router.http")

HIGH_WATER_BYTES = 512 << 10
"""A request's body that is not read is held up to here; then the socket is not read."""

LARGE_BYTES = 65536
"""Pieces from this size on are handed to the transport without being copied."""

GONE_WRONG = b"Internal Server Error"


class ClientGone(Exception):
    """The client left before its request was complete: there is nobody to answer."""


class Phase(Enum):
    """See the module."""

    OPEN = "open"
    STARTED = "started"
    COMPLETE = "complete"
    GONE = "gone"


class Carrier(Protocol):
    """What a cycle needs of its connection."""

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop

    @property
    def is_write_paused(self) -> bool: ...

    def resume_body(self) -> None: ...

    async def drain(self) -> None: ...

    def cycle_done(self, cycle: Cycle) -> None: ...


class Taskless(Protocol):
    """Work for a request that runs without a task."""

    def give_up(self) -> None:
        """The client has left: no answer."""

    def interrupt(self) -> None:
        """There is no more time: a short answer."""


class Cycle(msgspec.Struct, eq=False):
    """See the module. `task` is at work for it, or `taskless`, where no task is needed."""

    carrier: Carrier
    head: Head
    keep_alive: bool = True
    request_complete: bool = False
    chunks: list[bytes] = []
    buffered_bytes: int = 0
    expects_continue: bool = False
    phase: Phase = Phase.OPEN
    task: asyncio.Task[None] | None = None
    taskless: Taskless | None = None
    waiter: asyncio.Future[None] | None = None
    head_bytes: bytes = b""  # rendered, not sent
    is_chunked: bool = False
    left_bytes: int = UNKNOWN
    request_id: str = ""  # once it has one

    @property
    def is_gone(self) -> bool:
        """True when the client has left before its answer was complete."""
        return self.phase is Phase.GONE

    def has_client_gone(self) -> bool:
        """`is_gone`, for those who ask later."""
        return self.phase is Phase.GONE

    @property
    def is_complete(self) -> bool:
        """True when the whole answer was sent."""
        return self.phase is Phase.COMPLETE

    # --- what the connection reports ---------------------------------------------------------------------------

    def feed(self, chunk: bytes) -> None:
        """A piece of the request's body has come."""
        self.chunks.append(chunk)
        self.buffered_bytes += len(chunk)
        self._wake()

    def end_request(self) -> None:
        """The request is complete."""
        self.request_complete = True
        self._wake()

    def leave(self) -> None:
        """The client is gone: what works for it is cancelled."""
        if self.phase is Phase.COMPLETE:
            return
        self.phase = Phase.GONE
        self._wake()
        taskless, self.taskless = self.taskless, None
        if taskless is not None:
            taskless.give_up()
        elif self.task is not None:
            self.task.cancel()

    def close_after(self) -> None:
        """The answer is the last one on its connection."""
        self.keep_alive = False

    def interrupt(self) -> None:
        """There is no more time for what runs without a task."""
        taskless, self.taskless = self.taskless, None
        if taskless is not None:
            taskless.interrupt()

    def abandon(self) -> None:
        """The work for it has ended without a complete answer: a plain 500, or a visible cut."""
        if self.phase is Phase.STARTED and not self.head_bytes:
            self.carrier.transport.abort()
            return
        self.keep_alive, self.is_chunked, self.left_bytes = False, False, UNKNOWN
        self._start(500, ((b"content-type", b"text/plain"), (b"content-length", b"%d" % len(GONE_WRONG))), b"")
        self._write(GONE_WRONG, more=False)

    # --- who works for it --------------------------------------------------------------------------------------

    def work_by_task(self, work: Callable[[], Awaitable[None]], at_end: Callable[[], None] | None = None) -> None:
        """Run `work`, which sends the answer, in a task that is cancelled when the client leaves.

        `at_end` is called when the task has ended, even if it was cancelled before it began.
        """
        self.taskless = None
        self.task = self.carrier.loop.create_task(run(self, work))
        if at_end is not None:
            self.task.add_done_callback(lambda _: at_end())

    def work_by(self, taskless: Taskless) -> None:
        """`taskless` works for it without a task, until the answer is complete or a task takes over."""
        self.taskless = taskless

    # --- reading the request -----------------------------------------------------------------------------------

    def take_body(self) -> bytes | None:
        """The whole body when it has arrived completely, else None. Nothing is taken then."""
        if not self.request_complete:
            return None
        body = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
        self.chunks.clear()
        self.buffered_bytes = 0
        return body

    async def read(self) -> bytes:
        """The next bytes of the body as soon as there are any; b"" at its end. Raises ClientGone."""
        if self.expects_continue and self.phase is Phase.OPEN:
            self.expects_continue = False
            self.carrier.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self.chunks or self.request_complete or self.phase is Phase.GONE):
            await self._news()
        if self.phase is Phase.GONE:
            raise ClientGone
        body = b"".join(self.chunks)
        self.chunks.clear()
        if self.buffered_bytes > HIGH_WATER_BYTES:
            self.carrier.resume_body()
        self.buffered_bytes = 0
        return body

    async def ended(self) -> None:
        """Return when the answer is complete, or the client has left."""
        while self.phase in (Phase.OPEN, Phase.STARTED):
            await self._news()

    async def _news(self) -> None:
        self.waiter = self.carrier.loop.create_future()
        try:
            await self.waiter
        finally:
            self.waiter = None

    def _wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    # --- writing the answer ------------------------------------------------------------------------------------

    def respond(self, status: int, headers: Iterable[Header], body: bytes, lines: bytes = b"") -> None:
        """Send a whole answer in one write.

        `lines` are further headers, rendered; none of them is about the body or the connection.
        """
        if self.phase is Phase.GONE:
            return
        if self.phase is not Phase.OPEN:
            raise RuntimeError(f"the answer is {self.phase.value}")
        self._start(status, headers, lines)
        self._write(body, more=False)

    def start(self, status: int, headers: Iterable[Header]) -> None:
        """Begin an answer: its head goes out with the first piece of its body."""
        if self.phase is Phase.GONE:
            return
        if self.phase is not Phase.OPEN:
            raise RuntimeError(f"the answer is {self.phase.value}")
        self._start(status, headers, b"")

    def push(self, piece: bytes) -> bool:
        """Send a piece of an answer that has started; False when the client should be waited for (`drain`)."""
        if self.phase is Phase.GONE:
            return True
        self._write(piece, more=True)
        return not self.carrier.is_write_paused

    async def write(self, piece: bytes, *, more: bool) -> None:
        """Send a piece of the body, the last one without `more`; wait until the client has taken most of it."""
        if self.phase is Phase.GONE:
            return
        if self.phase is not Phase.STARTED:
            raise RuntimeError(f"the answer is {self.phase.value}")
        self._write(piece, more=more)
        if more and self.carrier.is_write_paused:
            await self.carrier.drain()

    async def drain(self) -> None:
        """Wait until the client has taken most of what was written."""
        await self.carrier.drain()

    def _start(self, status: int, headers: Iterable[Header], lines: bytes) -> None:
        is_kept = self.keep_alive and self.request_complete
        rendered = render(self.head, status, headers, lines, self.carrier.loop.time(), is_kept=is_kept)
        self.phase = Phase.STARTED
        self.head_bytes, self.keep_alive, self.is_chunked, self.left_bytes = rendered

    def _write(self, body: bytes, *, more: bool) -> None:
        head, self.head_bytes = self.head_bytes, b""
        if self.left_bytes == NO_BODY:
            body = b""
        elif self.left_bytes >= 0:
            self.left_bytes -= len(body)
            if self.left_bytes < 0 or (self.left_bytes and not more):
                raise RuntimeError("the body does not match its content-length")
        transport = self.carrier.transport
        end = b""
        if self.is_chunked:
            if body:
                head, end = b"%b%x\r\n" % (head, len(body)), b"\r\n"
            end += b"" if more else b"0\r\n\r\n"
        if len(body) >= LARGE_BYTES:
            transport.writelines((head, body, end) if end else (head, body))
        elif head or body or end:
            transport.write(head + body + end)
        if not more:
            self.phase, self.taskless = Phase.COMPLETE, None  # they refer to each other
            self._wake()
            self.carrier.cycle_done(self)


async def run(cycle: Cycle, work: Callable[[], Awaitable[None]]) -> None:
    """Do the work for one request; what it leaves undone is closed here."""
    try:
        await work()
    except asyncio.CancelledError:
        if not cycle.is_gone:
            raise
    except Exception:
        logger.exception("the application failed")
    if not (cycle.is_complete or cycle.is_gone):
        cycle.abandon()
