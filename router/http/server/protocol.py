"""The bytes of a client: httptools' callbacks, deadlines and caps, and no doubts about what a request is.

Refuses what two parsers could read differently (docs/reliability.md, E1): httptools is strict about framing already,
here come TE, Host, versions and targets. One answer per request: after a refusal nothing is parsed any more.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import httptools

from router.http.repeats import Known, with_length
from router.http.server.connection import ClientConnection, Reading, Shared
from router.http.server.cycle import HIGH_WATER_BYTES, Cycle, Phase
from router.http.server.heads import Head, disarm, judge, split_target

ParserErrors = (httptools.HttpParserError, httptools.HttpParserUpgrade)


class HttpProtocol(ClientConnection):
    """See the module: what the connection hears."""

    def __init__(self, shared: Shared, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(shared, loop)
        self._parser: Any = httptools.HttpRequestParser(self)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=False)
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._body_grew = False
        self._refused: tuple[int, bytes] | None = None
        self._known = Known(shared.repeats)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._parser = None  # it refers to us: nothing is left for the collector

    def data_received(self, data: bytes) -> None:
        if self.reading is Reading.DEAF:
            return
        is_first = self.reading is Reading.BETWEEN
        repeat = self._known.repeat
        if repeat is not None and is_first and not self.queue and (found := repeat.read(data)) is not None:
            self._repeated(with_length(repeat.says, found[0]), found[1])
            return
        if is_first:
            self.reading, self._head_bytes = Reading.HEAD, 0
            if not self.queue:
                self.deadline = self.loop.time() + self.limits.header_s
        was_head = self.reading is Reading.HEAD
        if was_head:
            self._head_bytes += len(data)
            if b"pgrade" in data or b"PGRADE" in data:
                data, is_first = disarm(data), False
        self._parse(data, is_first=is_first)
        if self.reading is not Reading.DEAF:
            self._bound(len(data), was_head=was_head)

    def _parse(self, data: bytes, *, is_first: bool) -> None:
        """Feed the parser, and start what has come."""
        self._body_grew = False
        try:
            self._parser.feed_data(data)
        except ParserErrors:
            self._bad_input()
        else:
            if is_first and self._next is not None and self._next is self.cycle:
                self._learn(data, self._next)
        self.start_next()

    def _bound(self, size: int, *, was_head: bool) -> None:
        """Refuse heads, and trailers and chunk extensions, without end."""
        if not was_head and not self._body_grew:
            self._head_bytes += size
            if self._head_bytes > self.limits.header_bytes and self.reading is not Reading.HEAD:
                self._bad_input()
        elif self.reading is Reading.HEAD and self._head_bytes > self.limits.header_bytes:
            self.refuse(414 if len(self._url) > self.limits.header_bytes // 2 else 431)

    def _repeated(self, head: Head, body: bytes) -> None:
        """A whole request with a head that is known has come."""
        if self._known.vain:
            self._known.came_again()
        is_kept = head.keep_alive and not self.shared.is_draining
        self.enqueue(Cycle(self, head, is_kept, True, [body], len(body)))
        self.start_next()

    def _learn(self, data: bytes, cycle: Cycle) -> None:
        """`data` was the beginning of one request: where it was all of it, the next one may have the same head."""
        head = cycle.head
        is_whole = cycle.request_complete and self.reading is Reading.BETWEEN
        if is_whole and not (head.http_10 or head.expects_continue):
            self._known.learn(data, head.noted, cycle.buffered_bytes, head)

    # --- httptools ---------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = []
        if self.reading is not Reading.HEAD:
            self.reading, self._head_bytes = Reading.HEAD, 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        headers, self._headers = self._headers, []  # what comes later is a trailer, and dropped
        noted = dict(headers)
        version = self._parser.get_http_version()
        method = self._parser.get_method().decode()
        self._refused = self._too_big(headers) or judge(headers, noted, version)
        target = split_target(self._url, method)
        if self._refused is not None or target is None:
            raise ValueError("refused")
        url, authority = target
        self.reading, self._head_bytes = Reading.BODY, 0
        http_10 = version == "1.0"
        if authority is not None:
            headers = [(name, authority if name == b"host" else value) for name, value in headers]
            noted[b"host"] = authority
        expects = b"expect" in noted and not http_10 and noted[b"expect"].lower() == b"100-continue"
        is_kept = self._parser.should_keep_alive() and authority is None
        head = Head(method, url, url.partition(b"?")[0], headers, noted, http_10, is_kept, expects)
        self.enqueue(Cycle(self, head, is_kept and not self.shared.is_draining, expects_continue=expects))

    def on_body(self, body: bytes) -> None:
        self._body_grew = True
        cycle = cast("Cycle", self.cycle)
        if cycle.phase is not Phase.COMPLETE:
            cycle.feed(body)
            if cycle.buffered_bytes > HIGH_WATER_BYTES:
                self.pause_reading()

    def on_message_complete(self) -> None:
        if self.reading is Reading.BODY:
            self.reading = Reading.BETWEEN
        cast("Cycle", self.cycle).end_request()

    def _too_big(self, headers: list[tuple[bytes, bytes]]) -> tuple[int, bytes] | None:
        """Exact where it matters: the segment that ended the headers may hold a body as well."""
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
            # The body of a request that is being served has broken off.
            self.queue.remove(cycle)
            has_answer = cycle.phase is not Phase.OPEN
            self.leave(cycle)
            if has_answer or self.queue:
                self.reading = Reading.DEAF
                self.transport.abort()
                return
        self.refuse(status, text)
