"""Parsing of requests: httptools' callbacks, deadlines and size limits.

Refuses whatever two parsers could interpret differently (docs/reliability.md, E1): httptools is strict about framing,
this module and `heads.py` about transfer codings, Host, versions and targets. After a refusal nothing is parsed any
more, so each request gets one answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import httptools

from router.http.deadlines import NEVER
from router.http.repeats import LastHead
from router.http.server.connection import BETWEEN, BODY, DISCARDING, FREE, HEAD, STALLED, ClientConnection
from router.http.server.cycle import COMPLETE, OPEN, Cycle
from router.http.server.heads import Head, continues, judge, split_key, split_target, without_upgrade
from router.http.server.limits import HIGH_WATER_BYTES
from router.http.server.shared import Shared

SLICE_BYTES = 64 << 10
"""Most bytes that are parsed at once while further requests may begin in them: that many heads take about 6 ms."""

OnRefused = Callable[[int, bytes, str], None]
"""Called with the status, the text ("" for the status's own) and the client's address of what is no valid request."""


def say_nothing(_status: int, _text: bytes, _client: str) -> None:
    """Report no refusal."""


class HttpProtocol(ClientConnection):
    """The parsing part of a client's connection."""

    def __init__(self, shared: Shared, loop: asyncio.AbstractEventLoop, on_refused: OnRefused = say_nothing) -> None:
        super().__init__(shared, loop)
        self._on_refused = on_refused
        self._parser: Any = httptools.HttpRequestParser(self)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=False)
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._body_grew = False
        self._refused: tuple[int, bytes] | None = None
        self._disarmed = b""  # a head without its Upgrade, to be parsed again
        self._rest = b""  # what has come behind pipelined requests, which are answered first
        self._known = LastHead(shared.head_cache)
        self.client = ""
        self.before: Callable[[], None] | None = None  # ends what had the place of this connection before it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self.before is not None:
            self.before()
        peer = transport.get_extra_info("peername")
        self.client = str(peer[0]) if isinstance(peer, tuple) else ""
        super().connection_made(transport)

    def refuse(self, status: int, text: bytes = b"") -> None:
        self._on_refused(status, text, self.client)
        super().refuse(status, text)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._parser = None  # break the reference cycle, so that nothing is left for the garbage collector
        self._rest = b""

    def resume_reading(self) -> None:
        """Take what is left of the last read, and read from the socket again."""
        if self._rest:
            self.loop.call_soon(self._go_on_reading)
        else:
            super().resume_reading()

    def _go_on_reading(self) -> None:
        rest, self._rest = self._rest, b""
        if rest:
            super().resume_reading()  # first: what it reads comes in a later step, and this may pause it
            self.data_received(rest)

    def data_received(self, data: bytes) -> None:
        if len(data) <= SLICE_BYTES and not self._rest:
            self._received(data)
            return
        data, self._rest = self._rest + data, b""
        for at in range(0, len(data), SLICE_BYTES):
            if len(self.queue) > 1:  # thousands of small requests must not hold the loop
                self._rest = data[at:]
                return
            self._received(data[at : at + SLICE_BYTES])

    def _received(self, data: bytes) -> None:
        if self.reading is DISCARDING:
            return
        is_first = self.reading is BETWEEN
        template = self._known.template
        if template is not None and is_first and not self.queue and (found := template.match(data)) is not None:
            self._repeated(*found)
            return
        if is_first:
            self.reading, self._head_bytes = HEAD, 0
            if not self.queue:
                self.deadline = self.loop.time() + self.limits.header_s
        was_head = self.reading is HEAD
        if was_head:
            self._head_bytes += len(data)
        self._parse(data, is_first=is_first)
        if self.reading is not DISCARDING:
            self._bound(len(data), was_head=was_head)

    def _parse(self, data: bytes, *, is_first: bool) -> None:
        """Feed the parser, and start the request that became complete."""
        self._body_grew = False
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._bad_input()
        else:
            if is_first and self._next is not None and self._next is self.cycle:
                self._learn(data, self._next)
        self.start_next()

    def _feed(self, data: bytes | memoryview) -> None:
        """Feed the parser. A head with an Upgrade is parsed again without it, and then what follows it."""
        while True:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as stop:
                data = memoryview(data)[stop.args[0] :]
                head, self._disarmed = self._disarmed, b""
                if head:
                    self._parser.feed_data(head)

    def _bound(self, size: int, *, was_head: bool) -> None:
        """Refuse heads, trailers and chunk extensions beyond the size limit."""
        if not was_head and not self._body_grew:
            self._head_bytes += size
            if self._head_bytes > self.limits.header_bytes and self.reading is not HEAD:
                self._bad_input()
        elif self.reading is HEAD and self._head_bytes > self.limits.header_bytes:
            self.refuse(414 if len(self._url) > self.limits.header_bytes // 2 else 431)

    def _repeated(self, head: Head, body: bytes) -> None:
        """Take one complete request with a cached head (fast path)."""
        if self._known.misses:
            self._known.record_hit()
        is_kept = head.keep_alive and not self.shared.is_draining
        self.cycle = cycle = Cycle(self, head, is_kept, True, [body], len(body))
        self.queue.append(cycle)  # there is no other
        if self.writing is FREE:
            self.deadline = NEVER
        if self.writing is not STALLED:
            self._start(cycle)

    def _learn(self, data: bytes, cycle: Cycle) -> None:
        """Cache the head of `data` if it is exactly one request: the next one may repeat it."""
        head = cycle.head
        is_whole = cycle.request_complete and self.reading is BETWEEN
        if is_whole and not (head.http_10 or head.expects_continue):
            self._known.learn(data, head.by_name, cycle.buffered_bytes, head)

    # --- httptools ---------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = []
        if self.reading is not HEAD:
            self.reading, self._head_bytes = HEAD, 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        headers, self._headers = self._headers, []  # later headers are trailers, and discarded
        by_name = dict(headers)
        version = self._parser.get_http_version()
        method = self._parser.get_method().decode()
        self._refused = self._too_big(headers) or judge(headers, by_name, version)
        if self._parser.should_upgrade() and method != "CONNECT" and self._refused is None:
            self._disarmed = without_upgrade(method.encode(), self._url, version, headers)
            return
        target = split_target(self._url, method)
        expects = continues(by_name.get(b"expect"))
        if expects is None and self._refused is None:
            self._refused = 417, b""
        if self._refused is not None or target is None:
            raise ValueError("refused")
        (url, key), authority = split_key(target[0]), target[1]
        self.reading, self._head_bytes = BODY, 0
        http_10 = version == "1.0"
        if authority is not None:
            headers = [(name, authority if name == b"host" else value) for name, value in headers]
            by_name[b"host"] = authority
        is_kept = self._parser.should_keep_alive() and authority is None
        is_asking = bool(expects) and not http_10
        head = Head(method, url, url.partition(b"?")[0], headers, by_name, http_10, is_kept, is_asking, key=key)
        self.enqueue(Cycle(self, head, is_kept and not self.shared.is_draining, expects_continue=head.expects_continue))

    def on_body(self, body: bytes) -> None:
        self._body_grew = True
        cycle = cast("Cycle", self.cycle)
        # After a complete answer the rest of the body is parsed, but not kept.
        if cycle.phase is not COMPLETE:
            cycle.feed(body)
            if cycle.buffered_bytes > HIGH_WATER_BYTES:
                self.pause_reading()

    def on_message_complete(self) -> None:
        if self._disarmed:
            return
        if self.reading is BODY:
            self.reading = BETWEEN
        cast("Cycle", self.cycle).end_request()

    def _too_big(self, headers: list[tuple[bytes, bytes]]) -> tuple[int, bytes] | None:
        """Return a refusal for headers beyond the limits; counted exactly, as the last read may hold a body as well."""
        if len(headers) > self.limits.headers:
            return 431, b""
        if self._head_bytes <= self.limits.header_bytes:
            return None
        size = len(self._url) + sum(len(name) + len(value) + 4 for name, value in headers)
        return (431, b"") if size > self.limits.header_bytes else None

    def _bad_input(self) -> None:
        status, text = self._refused or (400, b"")
        self._refused = None
        cycle = self.cycle
        if cycle is not None and not cycle.request_complete and cycle in self.queue:
            # The body of a request that is already being served turned out to be invalid.
            self.queue.remove(cycle)
            has_answer = cycle.phase is not OPEN
            self.leave(cycle)
            # Its answer, or that of an earlier request, has begun: an error now would be taken for a part of it.
            if has_answer or self.queue:
                self.reading = DISCARDING
                self.transport.abort()
                return
        self.refuse(status, text)
