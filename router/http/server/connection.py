"""One client's connection: its deadlines, its requests in turn, what it may leave unread, how it ends.

What the bytes mean is `protocol.py`; what an answer looks like is `cycle.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http import httptools_impl
from uvicorn.server import ServerState

from router.http.deadlines import NEVER, Deadlines
from router.http.repeats import Repeat, Repeats
from router.http.server.cycle import STATUS_LINES, Cycle
from router.http.server.heads import Head

LINGER_S = 2.0


@dataclass(frozen=True, slots=True)
class WireLimits:
    """What one client's connection may take. Seconds and bytes; `connections` counts all of a listener's."""

    header_s: float = 10.0
    keep_alive_s: float = 75.0
    write_idle_s: float = 300.0
    header_bytes: int = 65536
    headers: int = 128
    connections: int = 2048


class ClientConnection(httptools_impl.HttpToolsProtocol):
    """See the module. The listener sets `limits`, `deadlines`, `repeats`, `is_draining` on a subclass of its own."""

    limits = WireLimits()
    deadlines = Deadlines()
    is_draining = False
    take: Callable[[Cycle], bool]
    repeats: Repeats[Head] = Repeats()

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=False)
        self.cycle: Cycle | None = None  # type: ignore[assignment]
        self.queue: list[Cycle] = []  # started or pipelined, oldest first
        self._next: Cycle | None = None  # the first of them while it is not started
        self.deadline = NEVER
        self.is_write_paused = False
        self._writable: asyncio.Future[None] | None = None
        self._is_held = False  # the next request waits until the client has taken the last answer
        self._is_deaf = False  # what still comes in is thrown away
        self._in_head = False  # between the first byte of a request and the end of its headers
        self._head_bytes = 0
        self._body_grew = False
        self._stuck_bytes = 0
        self._refused: tuple[int, bytes] | None = None
        self._repeat: Repeat[Head] | None = None
        self._learnt_in_vain = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.deadlines.add(self)
        self.deadline = self.loop.time() + self.limits.header_s
        if self.is_draining or len(self.connections) > self.limits.connections:
            self._refuse(503, b'{"error":"server busy, please try again.  maximum pending requests exceeded"}')

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        self.deadlines.discard(self)
        self._is_deaf, self._is_held = True, False
        self.resume_writing()
        for cycle in self.queue:
            self._leave(cycle)
        self.queue.clear()
        self.cycle = self._next = None  # they refer to us, as the parser does: no cycle is left for the collector
        self.parser = None  # type: ignore[assignment]

    def eof_received(self) -> None:
        """A half-closed client counts as gone, as with Ollama itself: the transport closes."""

    def pause_writing(self) -> None:
        self.is_write_paused = True
        self._writable = self.loop.create_future()
        self._stuck_bytes = self.transport.get_write_buffer_size()
        self.deadline = self.loop.time() + self.limits.write_idle_s

    def resume_writing(self) -> None:
        self.is_write_paused = False
        if self.queue:
            self.deadline = NEVER
        waiter, self._writable = self._writable, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        if self._is_held:
            self._is_held = False
            self._go_on()

    def resume_body(self) -> None:
        if len(self.queue) == 1:
            self.flow.resume_reading()

    async def drain(self) -> None:
        if self._writable is not None:
            await asyncio.shield(self._writable)

    def cycle_done(self, cycle: Cycle) -> None:
        """`cycle` has sent its whole answer: the next request, or an end."""
        self.server_state.total_requests += 1
        if cycle in self.queue:
            self.queue.remove(cycle)
        if self.transport.is_closing():
            return
        if not cycle.request_complete:
            self._linger()
        elif not cycle.keep_alive:
            self.queue.clear()
            self._is_deaf = True
            self.deadline = self.loop.time() + self.limits.write_idle_s
            self.transport.close()
        elif self.is_write_paused:  # nothing further for a client that does not read what it has been sent
            self._is_held = True
            self.flow.pause_reading()
        else:
            self._go_on()

    def _go_on(self) -> None:
        """The next request: one that is here already, else one that is still to come."""
        if self.queue:
            if not self.queue[0].request_complete:  # its head had stopped the reading
                self.flow.resume_reading()
            self._start(self.queue[0])
        else:
            self.flow.resume_reading()
            self.deadline = self.loop.time() + self.limits.keep_alive_s

    def shutdown(self) -> None:
        """Finish what is under way, take nothing new."""
        if not self.queue:
            self.transport.close()
        else:
            self.queue[-1].keep_alive = False
            self._is_deaf = self._is_deaf or self.queue[-1].request_complete

    def expire(self) -> None:
        """The deadline has passed; what it was depends on what the connection was doing."""
        now = self.loop.time()
        left_bytes = self.transport.get_write_buffer_size()
        if left_bytes:  # a client that does not read: as long as it takes something, it has time
            if left_bytes >= self._stuck_bytes > 0 or self.transport.is_closing():
                self.transport.abort()
            self._stuck_bytes = left_bytes
            self.deadline = now + self.limits.write_idle_s
        elif self._in_head and self._head_bytes:
            self._refuse(408)
        elif self._is_deaf:
            self.transport.abort()
        else:
            self.transport.close()

    def _start_next(self) -> None:
        """Start what the bytes just parsed have brought, unless it is gone again."""
        cycle, self._next = self._next, None
        if cycle is not None and cycle in self.queue and not self._is_held:
            self._start(cycle)

    def _start(self, cycle: Cycle) -> None:
        if not (cycle.request_complete and self.take(cycle)):
            self.begin(cycle)

    def begin(self, cycle: Cycle) -> None:
        """Run the application for `cycle`."""
        self.spawn(cycle, lambda: self.app(cycle.scope, cycle.receive, cycle.send))

    def spawn(self, cycle: Cycle, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work`, which answers `cycle`."""
        cycle.task = self.loop.create_task(run(cycle, work, self.logger.exception))

    def interrupt(self) -> None:
        """There is no more time: end what is under way without a task."""
        for cycle in tuple(self.queue):
            underway, cycle.underway = cycle.underway, None
            if underway is not None:
                underway.interrupt()

    def _leave(self, cycle: Cycle) -> None:
        """The client has given `cycle` up. It cleans up now; whoever stops the listener waits for it."""
        if cycle.task is not None:
            self.tasks.add(cycle.task)
            cycle.task.add_done_callback(self.tasks.discard)
        cycle.leave()

    def _refuse(self, status: int, text: bytes = b"") -> None:
        if self.queue:  # never a second answer: what is under way ends the connection
            self.queue[-1].keep_alive = False
            self._is_deaf = True
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
        """Close so that the answer survives: a close with unread input would reset the connection."""
        self._is_deaf = True
        self._in_head = False
        self.flow.resume_reading()
        self.deadline = self.loop.time() + LINGER_S
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()


async def run(cycle: Cycle, work: Callable[[], Awaitable[None]], report: Callable[..., None]) -> None:
    """Run the application for one request; what it leaves undone is closed here."""
    try:
        await work()
    except asyncio.CancelledError:
        if not cycle.is_gone:
            raise
    except Exception:
        report("the application failed")
    if not cycle.response_complete and not cycle.is_gone:
        cycle.abandon()
