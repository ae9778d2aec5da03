"""The wire to clients: uvicorn's httptools protocol with deadlines, caps and no doubts about what a request is.

Refuses what two parsers could read differently (acceptance.md E1): httptools is strict about framing already, here
come TE, Host, versions and targets. One answer per request: after a refusal nothing is parsed any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http import httptools_impl
from uvicorn.server import ServerState

from router.adapters.relay_deadlines import NEVER, Deadlines
from router.server.cycle import BODY_HIGH_WATER_BYTES, STATUS_LINES, Cycle
from router.server.heads import disarm, judge, split_target

ParserErrors = (httptools.HttpParserError, httptools.HttpParserUpgrade)
ASGI = {"version": "3.0", "spec_version": "2.3"}
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


class HttpProtocol(httptools_impl.HttpToolsProtocol):
    """See the module. `limits`, `deadlines` and `is_draining` are set by the listener on a subclass of its own."""

    limits = WireLimits()
    deadlines = Deadlines()
    is_draining = False

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
        self.deadline = NEVER
        self.is_write_paused = False
        self._writable: asyncio.Future[None] | None = None
        self._is_deaf = False  # what still comes in is thrown away
        self._in_head = False  # between the first byte of a request and the end of its headers
        self._head_bytes = 0
        self._body_grew = False
        self._stuck_bytes = 0
        self._refused: tuple[int, bytes] | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.deadlines.add(self)
        self.deadline = self.loop.time() + self.limits.header_s
        if self.is_draining or len(self.connections) > self.limits.connections:
            self._refuse(503, b'{"error":"server busy, please try again.  maximum pending requests exceeded"}')

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        self.deadlines.discard(self)
        self._is_deaf = True
        self.resume_writing()
        for cycle in self.queue:
            if cycle.task is not None:  # it cleans up now: whoever stops the listener waits for it
                self.tasks.add(cycle.task)
                cycle.task.add_done_callback(self.tasks.discard)
            cycle.leave()
        self.queue.clear()

    def eof_received(self) -> None:
        """A half-closed client counts as gone, as with Ollama itself: the transport closes."""

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        if not self._in_head and (self.cycle is None or self.cycle.request_complete):
            self._in_head, self._head_bytes = True, 0
            if not self.queue:
                self.deadline = self.loop.time() + self.limits.header_s
        was_head = self._in_head
        if was_head:
            self._head_bytes += len(data)
            if b"pgrade" in data or b"PGRADE" in data:
                data = disarm(data)
        self._body_grew = False
        try:
            self.parser.feed_data(data)
        except ParserErrors:
            self._bad_input()
            return
        if not was_head and not self._body_grew:  # trailers and chunk extensions without end
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.header_bytes and not self._in_head:
                self._bad_input()
        elif self._in_head and self._head_bytes > self.limits.header_bytes:
            self._refuse(414 if len(self.url) > self.limits.header_bytes // 2 else 431)

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

    # httptools

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        if not self._in_head:
            self._in_head, self._head_bytes = True, 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        headers, self.headers = self.headers, []  # what comes later is a trailer, and dropped
        noted = dict(headers)
        version = self.parser.get_http_version()
        method = self.parser.get_method().decode()
        self._refused = self._too_big(headers) or judge(headers, noted, version)
        target = split_target(self.url, method)
        if self._refused is not None or target is None:
            raise ValueError("refused")
        self._in_head, self._head_bytes = False, 0
        if not self.is_write_paused:
            self.deadline = NEVER
        http_10 = version == "1.0"
        url, authority = target
        if authority is not None:
            headers = [(name, authority if name == b"host" else value) for name, value in headers]
            noted[b"host"] = authority
        raw_path, _, query = url.partition(b"?")
        path = raw_path.decode("latin-1")
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": ASGI,
            "http_version": "1.0" if http_10 else "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": "",
            "method": method,
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": headers,
            "state": self.app_state,
            "router.noted": noted,
        }
        cycle = Cycle(
            self,
            scope,
            method=method,
            http_10=http_10,
            keep_alive=self.parser.should_keep_alive() and not self.is_draining and authority is None,
            expects_continue=not http_10 and noted.get(b"expect", b"").lower() == b"100-continue",
        )
        scope["router.cycle"] = cycle
        self.cycle = cycle
        self.queue.append(cycle)
        if len(self.queue) == 1:
            self._start(cycle)
        else:
            self.flow.pause_reading()

    def on_body(self, body: bytes) -> None:
        self._body_grew = True
        cycle = cast("Cycle", self.cycle)
        if not cycle.response_complete:
            cycle.feed(body)
            if cycle.buffered_bytes > BODY_HIGH_WATER_BYTES:
                self.flow.pause_reading()

    def on_message_complete(self) -> None:
        cast("Cycle", self.cycle).end_request()

    # What the cycle and the listener ask for

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
        elif self.queue:
            self._start(self.queue[0])
        else:
            self.flow.resume_reading()
            if not self.is_write_paused:
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

    # The rest

    def _start(self, cycle: Cycle) -> None:
        cycle.task = self.loop.create_task(run(cycle, self.app, self.logger.exception))

    def _too_big(self, headers: list[tuple[bytes, bytes]]) -> tuple[int, bytes] | None:
        """Exact where it matters: the segment that ended the headers may hold a body as well."""
        if len(headers) > self.limits.headers:
            return 431, b""
        if self._head_bytes <= self.limits.header_bytes:
            return None
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in headers)
        return (431, b"") if size > self.limits.header_bytes else None

    def _bad_input(self) -> None:
        status, text = self._refused or (400, b"")
        self._refused = None
        cycle = self.cycle
        if cycle is not None and not cycle.request_complete and cycle in self.queue:
            # The body of a request that is being served has broken off.
            self.queue.remove(cycle)
            started = cycle.response_started
            cycle.leave()
            if started or self.queue:
                self._is_deaf = True
                self.transport.abort()
                return
        if self.queue:
            self.queue[-1].keep_alive = False  # the answer under way ends the connection
            self._is_deaf = True
            return
        self._refuse(status, text)

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


async def run(cycle: Cycle, app: Callable[..., Awaitable[None]], report: Callable[..., None]) -> None:
    """Run the application for one request; what it leaves undone is closed here."""
    try:
        await app(cycle.scope, cycle.receive, cycle.send)
    except asyncio.CancelledError:
        if not cycle.is_gone:
            raise
    except Exception:
        report("the application failed")
    if not cycle.response_complete and not cycle.is_gone:
        cycle.abandon()


def protocol_factory(
    app: Callable[..., Awaitable[None]], limits: WireLimits, deadlines: Deadlines
) -> tuple[type[HttpProtocol], Callable[[], HttpProtocol], ServerState]:
    """The protocol class of one listener (its `is_draining` is the listener's), its factory, and what is open on it."""
    own = cast(
        "type[HttpProtocol]", type("ListenerProtocol", (HttpProtocol,), {"limits": limits, "deadlines": deadlines})
    )
    config = Config(cast("Any", app), lifespan="off", ws="none", log_config=None, access_log=False, proxy_headers=False)
    config.load()
    state = ServerState()
    return own, lambda: own(config, state, {}), state
