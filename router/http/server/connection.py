"""One client's connection: its deadlines, its queue of requests, its backpressure, and how it closes.

It has a state per direction. Reading (`Reading`):

    BETWEEN ── first byte ──▶ HEAD ── empty line ──▶ BODY ── end of the request ──▶ BETWEEN
       └─────── refused, or the last answer is being sent ──┴──▶ DISCARDING   (further input is ignored)

Writing (`Writing`):

    FREE ── the socket's buffer is full ──▶ FULL ── an answer is complete ──▶ STALLED
      ◀──────── the client has read it ───────┴──────────────────────────────────┘

While it is STALLED the next request does not start, so that a client that does not read cannot pile up answers.
Requests may be pipelined: `queue` keeps their order, and only the first one is processed. `protocol.py` parses the
bytes; `cycle.py` and `rendering.py` write the answers.
"""

from __future__ import annotations

import asyncio
import logging
from enum import Enum
from functools import partial
from typing import cast

from router.http.deadlines import NEVER
from router.http.server.clients import Client, address_of
from router.http.server.cycle import Cycle
from router.http.server.departures import Departure
from router.http.server.rendering import refusal
from router.http.server.shared import Shared

logger = logging.getLogger("router.http")

LINGER_S = 2.0
"""After a refusal input is read and discarded for this long: closing with unread input would lose the answer."""


class Reading(Enum):
    """The states of reading; see the module's docstring."""

    BETWEEN = "between"
    HEAD = "head"
    BODY = "body"
    DISCARDING = "discarding"


BETWEEN, HEAD, BODY, DISCARDING = Reading


class Writing(Enum):
    """The states of writing; see the module's docstring."""

    FREE = "free"
    FULL = "full"
    STALLED = "stalled"


FREE, FULL, STALLED = Writing


class ClientConnection(asyncio.Protocol):
    """One client's connection."""

    transport: asyncio.Transport

    def __init__(self, shared: Shared, loop: asyncio.AbstractEventLoop) -> None:
        self.shared = shared
        self.limits = shared.limits
        self.loop = loop
        self.deadline = NEVER
        self.reading = BETWEEN
        self.writing = FREE
        self.cycle: Cycle | None = None  # the request that is being read, or was read last
        self.queue: list[Cycle] = []  # requests that are processed or pipelined, oldest first
        self._next: Cycle | None = None  # the first of them until it is started
        self._is_read_paused = False
        self._writable: asyncio.Future[None] | None = None
        self._stuck_bytes = 0
        self.peer = Client()
        self.is_half_closed = False  # the client sends no more, and still waits for its answers
        self.departure = Departure(shared.departures)  # the watch over it while it is not read

    # --- asyncio.Protocol --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one by its methods only
        self.peer = self.shared.client_at(address_of(self.transport))
        self.shared.deadlines.add(self)
        now_s = self.loop.time()
        self.deadline = now_s + self.limits.header_s
        if (why := self.shared.admit(self, now_s)) is not None:
            self.refuse(503, why)
            if self.shared.is_overfull:
                self.transport.close()

    def connection_lost(self, _exc: Exception | None) -> None:
        self.shared.leave(self)
        self.shared.deadlines.discard(self)
        self.departure.end()
        self.reading = DISCARDING
        if self.writing is STALLED:
            self.writing = FULL
        self.resume_writing()
        for cycle in self.queue:
            self.leave(cycle)
        self.queue.clear()
        self.cycle = self._next = None  # break reference cycles, so that nothing is left for the garbage collector

    def eof_received(self) -> bool:
        """Keep the connection of a client that waits for answers to complete requests; let any other one close."""
        while self.queue and not self.queue[-1].request_complete:
            self.leave(self.queue.pop())
        is_tls = self.transport.get_extra_info("ssl_object") is not None  # TLS has no half of a connection
        if not self.queue or is_tls or self.transport.is_closing():
            return False
        self.is_half_closed, self.reading = True, DISCARDING
        self.queue[-1].close_after()
        self.departure.begin(self)
        return not self.departure.is_gone()

    def pause_writing(self) -> None:
        self.writing = FULL
        self._writable = self.loop.create_future()
        self._stuck_bytes = self.transport.get_write_buffer_size()
        self.deadline = self.loop.time() + self.limits.write_idle_s

    def resume_writing(self) -> None:
        was_stalled = self.writing is STALLED
        self.writing = FREE
        if self.queue:
            self.deadline = NEVER
        waiter, self._writable = self._writable, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        if was_stalled:
            self._go_on()

    @property
    def idle_since_s(self) -> float:
        """The loop time since which it could be closed without loss, `NEVER` if a request is under way or arrives."""
        if self.queue or self.reading not in (BETWEEN, DISCARDING) or self.transport.is_closing():
            return NEVER
        waits_s = self.limits.header_s if self.cycle is None else self.limits.keep_alive_s
        return self.deadline - (waits_s if self.reading is BETWEEN else LINGER_S)

    # --- for its cycles ----------------------------------------------------------------------------------------

    @property
    def is_write_paused(self) -> bool:
        return self.writing is not FREE

    def resume_body(self) -> None:
        if len(self.queue) == 1:
            self.resume_reading()

    async def drain(self) -> None:
        if self._writable is not None:
            await asyncio.shield(self._writable)

    def cycle_done(self, cycle: Cycle) -> None:
        """Proceed after a complete answer: with the next request, or by closing."""
        if cycle in self.queue:
            self.queue.remove(cycle)
        if self.transport.is_closing():
            return
        if not cycle.request_complete:
            self._linger()
        elif not cycle.keep_alive:
            self.queue.clear()
            self.reading = DISCARDING
            self.deadline = self.loop.time() + self.limits.write_idle_s
            self.transport.close()
        elif self.writing is FREE:
            self._go_on()
        else:
            self.writing = STALLED
            self.pause_reading()

    def _go_on(self) -> None:
        """Proceed with the next request: a pipelined one, else one that is still to arrive."""
        if self.queue:
            if not self.queue[0].request_complete:  # reading was paused after its head
                self.resume_reading()
            self._start(self.queue[0])
        else:
            if self._is_read_paused:
                self.resume_reading()
            self.deadline = self.loop.time() + self.limits.keep_alive_s

    # --- requests ----------------------------------------------------------------------------------------------

    def enqueue(self, cycle: Cycle) -> None:
        """Add a request whose head has arrived. Reading pauses if it is not the first, until its turn has come."""
        self.cycle = cycle
        self.queue.append(cycle)
        if self.writing is FREE:
            self.deadline = NEVER
        if len(self.queue) == 1:
            self._next = cycle  # started after all of this read is parsed: usually its body is in it, too
        else:
            self.pause_reading()

    def start_next(self) -> None:
        """Start the request that the last read completed, unless it was refused meanwhile."""
        cycle, self._next = self._next, None
        if cycle is not None and cycle in self.queue and self.writing is not STALLED:
            self._start(cycle)

    def _start(self, cycle: Cycle) -> None:
        try:
            is_taken = cycle.request_complete and self.shared.app.take(cycle)
        except Exception:  # a bug in the application must fail only this request
            logger.exception("the application failed")
            cycle.abandon()
            return
        if not is_taken:
            cycle.process_in_task(partial(self.shared.app.serve, cycle))

    def leave(self, cycle: Cycle) -> None:
        """Cancel `cycle`, whose client has left. The listener's stop waits for its task, which may have to clean up."""
        if cycle.task is not None:
            self.shared.tasks.add(cycle.task)
            cycle.task.add_done_callback(self.shared.tasks.discard)
        cycle.leave()

    # --- reading -----------------------------------------------------------------------------------------------

    def pause_reading(self) -> None:
        """Stop reading from the socket, so that TCP slows the client down."""
        if not self._is_read_paused:
            self._is_read_paused = True
            self.transport.pause_reading()
            self.departure.begin(self)

    def resume_reading(self) -> None:
        """Read from the socket again."""
        if self._is_read_paused:
            self._is_read_paused = False
            self.transport.resume_reading()
            if not self.is_half_closed:
                self.departure.end()

    # --- closing -----------------------------------------------------------------------------------------------

    @property
    def may_ask(self) -> bool:
        """True if no request is under way, and one may be on its way."""
        return not self.queue and self.reading in (BETWEEN, HEAD) and not self.transport.is_closing()

    def shutdown(self) -> None:
        """Finish the requests under way and accept no new ones."""
        if not self.queue:
            self.transport.close()
            return
        last = self.queue[-1]
        last.close_after()
        if last.request_complete:
            self.reading = DISCARDING

    def interrupt(self) -> None:
        """End the requests that run without a task: the grace period is over."""
        for cycle in tuple(self.queue):
            cycle.interrupt()

    def expire(self) -> None:
        """Handle the deadline, whose meaning depends on what the connection waits for."""
        left_bytes = self.transport.get_write_buffer_size()
        if left_bytes:  # a client that reads slowly: it is cut off only if it has read nothing since the last deadline
            if left_bytes >= self._stuck_bytes > 0 or self.transport.is_closing():
                self.transport.abort()
            self._stuck_bytes = left_bytes
            self.deadline = self.loop.time() + self.limits.write_idle_s
        elif self.reading is HEAD:
            self.refuse(408)
        elif self.reading is DISCARDING:
            self.transport.abort()
        else:
            self.transport.close()

    def refuse(self, status: int, text: bytes = b"") -> None:
        """Answer an invalid request and close the connection; while another answer is under way, close after that."""
        if self.queue:
            self.queue[-1].close_after()
            self.reading = DISCARDING
            return
        self.transport.write(refusal(status, text))
        self._linger()

    def _linger(self) -> None:
        """Close the writing side, and read on for `LINGER_S` so that the client receives the answer."""
        self.reading = DISCARDING
        self.resume_reading()
        self.deadline = self.loop.time() + LINGER_S
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()
