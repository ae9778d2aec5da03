"""One client's connection: its deadlines, its requests in turn, what it may leave unread, how it ends.

It has two sides. What it reads (`Reading`):

    BETWEEN ── first byte ──▶ HEAD ── empty line ──▶ BODY ── end of the request ──▶ BETWEEN
       └─────── refused, or the last answer is on its way ──┴──▶ DEAF   (what still comes is thrown away)

What it writes (`Writing`):

    FREE ── the socket is full ──▶ FULL ── an answer is complete, the client has not taken it ──▶ HELD
      ◀──────── the client has taken it ──┴──────────────────────────────────────────────────────┘

While it is HELD the next request does not start: nothing further for a client that does not read. Requests may be
pipelined: `queue` holds them in their order, and only the first is at work. What the bytes mean is `protocol.py`; what
an answer looks like is `cycle.py` and `rendering.py`.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, cast

from router.http.deadlines import NEVER, Deadlines
from router.http.repeats import Repeats
from router.http.server.cycle import Cycle
from router.http.server.heads import Head
from router.http.server.limits import WireLimits
from router.http.server.rendering import STATUS_LINES

logger = logging.getLogger("router.http")

LINGER_S = 2.0
"""After a refusal what the client still sends is read this long: a close with unread input would lose the answer."""

FULL = b'{"error":"server busy, please try again.  maximum pending requests exceeded"}'


class Reading(Enum):
    """See the module."""

    BETWEEN = "between"
    HEAD = "head"
    BODY = "body"
    DEAF = "deaf"


class Writing(Enum):
    """See the module."""

    FREE = "free"
    FULL = "full"
    HELD = "held"


class App(Protocol):
    """What answers requests."""

    def take(self, cycle: Cycle) -> bool:
        """True when a complete request is answered without a task."""

    async def serve(self, cycle: Cycle) -> None:
        """Answer a request."""


@dataclass(slots=True, eq=False)
class Shared:
    """What the connections of one listener share. `tasks` clean up after clients that have left."""

    app: App
    limits: WireLimits
    deadlines: Deadlines
    repeats: Repeats[Head] = field(default_factory=Repeats)
    connections: set[ClientConnection] = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    is_draining: bool = False

    def drain(self) -> None:
        """Take nothing new from now on."""
        self.is_draining = True


class ClientConnection(asyncio.Protocol):
    """See the module."""

    transport: asyncio.Transport

    def __init__(self, shared: Shared, loop: asyncio.AbstractEventLoop) -> None:
        self.shared = shared
        self.limits = shared.limits
        self.loop = loop
        self.deadline = NEVER
        self.reading = Reading.BETWEEN
        self.writing = Writing.FREE
        self.cycle: Cycle | None = None  # the last one that was read
        self.queue: list[Cycle] = []  # started or pipelined, oldest first
        self._next: Cycle | None = None  # the first of them while it is not started
        self._is_read_paused = False
        self._writable: asyncio.Future[None] | None = None
        self._stuck_bytes = 0

    # --- asyncio.Protocol --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one by its methods only
        self.shared.connections.add(self)
        self.shared.deadlines.add(self)
        self.deadline = self.loop.time() + self.limits.header_s
        if self.shared.is_draining or len(self.shared.connections) > self.limits.connections:
            self.refuse(503, FULL)

    def connection_lost(self, exc: Exception | None) -> None:
        self.shared.connections.discard(self)
        self.shared.deadlines.discard(self)
        self.reading = Reading.DEAF
        if self.writing is Writing.HELD:
            self.writing = Writing.FULL
        self.resume_writing()
        for cycle in self.queue:
            self.leave(cycle)
        self.queue.clear()
        self.cycle = self._next = None  # they refer to us: nothing is left for the collector

    def eof_received(self) -> None:
        """A half-closed client counts as gone, as with Ollama itself: the transport closes."""

    def pause_writing(self) -> None:
        self.writing = Writing.FULL
        self._writable = self.loop.create_future()
        self._stuck_bytes = self.transport.get_write_buffer_size()
        self.deadline = self.loop.time() + self.limits.write_idle_s

    def resume_writing(self) -> None:
        was_held = self.writing is Writing.HELD
        self.writing = Writing.FREE
        if self.queue:
            self.deadline = NEVER
        waiter, self._writable = self._writable, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        if was_held:
            self._go_on()

    # --- what its cycles need ----------------------------------------------------------------------------------

    @property
    def is_write_paused(self) -> bool:
        return self.writing is not Writing.FREE

    def resume_body(self) -> None:
        if len(self.queue) == 1:
            self.resume_reading()

    async def drain(self) -> None:
        if self._writable is not None:
            await asyncio.shield(self._writable)

    def cycle_done(self, cycle: Cycle) -> None:
        """`cycle` has sent its whole answer: the next request, or an end."""
        if cycle in self.queue:
            self.queue.remove(cycle)
        if self.transport.is_closing():
            return
        if not cycle.request_complete:
            self._linger()
        elif not cycle.keep_alive:
            self.queue.clear()
            self.reading = Reading.DEAF
            self.deadline = self.loop.time() + self.limits.write_idle_s
            self.transport.close()
        elif self.writing is Writing.FREE:
            self._go_on()
        else:
            self.writing = Writing.HELD
            self.pause_reading()

    def _go_on(self) -> None:
        """The next request: one that is here already, else one that is still to come."""
        if self.queue:
            if not self.queue[0].request_complete:  # its head had stopped the reading
                self.resume_reading()
            self._start(self.queue[0])
        else:
            self.resume_reading()
            self.deadline = self.loop.time() + self.limits.keep_alive_s

    # --- requests ----------------------------------------------------------------------------------------------

    def enqueue(self, cycle: Cycle) -> None:
        """A request has come: it starts at once if it is the first, else the reading stops until it is its turn."""
        self.cycle = cycle
        self.queue.append(cycle)
        if self.writing is Writing.FREE:
            self.deadline = NEVER
        if len(self.queue) == 1:
            self._next = cycle  # it starts when all of this read is parsed: most often its body is in it
        else:
            self.pause_reading()

    def start_next(self) -> None:
        """Start what the bytes just parsed have brought, unless it is gone again."""
        cycle, self._next = self._next, None
        if cycle is not None and cycle in self.queue and self.writing is not Writing.HELD:
            self._start(cycle)

    def _start(self, cycle: Cycle) -> None:
        try:
            is_taken = cycle.request_complete and self.shared.app.take(cycle)
        except Exception:  # a fault of ours costs one request
            logger.exception("the application failed")
            cycle.abandon()
            return
        if not is_taken:
            cycle.work_by_task(lambda: self.shared.app.serve(cycle))

    def leave(self, cycle: Cycle) -> None:
        """The client has given `cycle` up. It cleans up now; whatever stops the listener waits for it."""
        if cycle.task is not None:
            self.shared.tasks.add(cycle.task)
            cycle.task.add_done_callback(self.shared.tasks.discard)
        cycle.leave()

    # --- reading -----------------------------------------------------------------------------------------------

    def pause_reading(self) -> None:
        """Let the kernel hold what the client sends."""
        if not self._is_read_paused:
            self._is_read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if self._is_read_paused:
            self._is_read_paused = False
            self.transport.resume_reading()

    # --- ends --------------------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """Finish what is under way, take nothing new."""
        if not self.queue:
            self.transport.close()
            return
        last = self.queue[-1]
        last.close_after()
        if last.request_complete:
            self.reading = Reading.DEAF

    def interrupt(self) -> None:
        """There is no more time: end what is under way without a task."""
        for cycle in tuple(self.queue):
            cycle.interrupt()

    def expire(self) -> None:
        """The deadline has passed; what it was depends on what the connection was doing."""
        left_bytes = self.transport.get_write_buffer_size()
        if left_bytes:  # a client that does not read: as long as it takes something, it has time
            if left_bytes >= self._stuck_bytes > 0 or self.transport.is_closing():
                self.transport.abort()
            self._stuck_bytes = left_bytes
            self.deadline = self.loop.time() + self.limits.write_idle_s
        elif self.reading is Reading.HEAD:
            self.refuse(408)
        elif self.reading is Reading.DEAF:
            self.transport.abort()
        else:
            self.transport.close()

    def refuse(self, status: int, text: bytes = b"") -> None:
        """Answer what is not a request, and end the connection; never a second answer beside one under way."""
        if self.queue:
            self.queue[-1].close_after()
            self.reading = Reading.DEAF
            return
        line = STATUS_LINES[status].rstrip()[9:]
        body = text if text.startswith(b"{") else line + (b": " + text if text else b"")
        kind = b"application/json" if text.startswith(b"{") else b"text/plain"
        self.transport.write(
            b"%bcontent-type: %b; charset=utf-8\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
            % (STATUS_LINES[status], kind, len(body), body)
        )
        self._linger()

    def _linger(self) -> None:
        """Close so that the answer survives."""
        self.reading = Reading.DEAF
        self.resume_reading()
        self.deadline = self.loop.time() + LINGER_S
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()
