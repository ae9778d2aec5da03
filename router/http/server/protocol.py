"""The wire to clients: uvicorn's httptools protocol with deadlines, caps and no doubts about what a request is.

Refuses what two parsers could read differently (acceptance.md E1): httptools is strict about framing already, here
come TE, Host, versions and targets. One answer per request: after a refusal nothing is parsed any more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.server import ServerState

from router.http.deadlines import NEVER, Deadlines
from router.http.repeats import MOST_VAIN, Repeats, with_length
from router.http.server.connection import ClientConnection, WireLimits
from router.http.server.cycle import BODY_HIGH_WATER_BYTES, Cycle
from router.http.server.heads import Head, disarm, judge, split_target

__all__ = ["HttpProtocol", "WireLimits", "protocol_factory"]

ParserErrors = (httptools.HttpParserError, httptools.HttpParserUpgrade)
ASGI = {"version": "3.0", "spec_version": "2.3"}


class HttpProtocol(ClientConnection):
    """See the module: what the connection hears."""

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        repeat = self._repeat
        if repeat is not None and not self.queue and not self._in_head and (found := repeat.read(data)) is not None:
            self._repeated(with_length(repeat.says, found[0]), found[1])
            return
        is_first = not self._in_head and (self.cycle is None or self.cycle.request_complete)
        if is_first:
            self._in_head, self._head_bytes = True, 0
            if not self.queue:
                self.deadline = self.loop.time() + self.limits.header_s
        was_head = self._in_head
        if was_head:
            self._head_bytes += len(data)
            if b"pgrade" in data or b"PGRADE" in data:
                data, is_first = disarm(data), False
        self._body_grew = False
        try:
            self.parser.feed_data(data)
        except ParserErrors:
            self._bad_input()
            self._start_next()
            return
        if is_first and self._learnt_in_vain < MOST_VAIN and self._next is not None and self._next is self.cycle:
            self._learn(data, self.cycle)
        self._start_next()
        if not was_head and not self._body_grew:  # trailers and chunk extensions without end
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.header_bytes and not self._in_head:
                self._bad_input()
        elif self._in_head and self._head_bytes > self.limits.header_bytes:
            self._refuse(414 if len(self.url) > self.limits.header_bytes // 2 else 431)

    def _repeated(self, head: Head, body: bytes) -> None:
        """A whole request with a head that is known has come."""
        self._learnt_in_vain = 0
        cycle = Cycle(self, head, head.keep_alive and not self.is_draining, True, [body], len(body))
        self.cycle = cycle
        self.queue.append(cycle)
        if not self.is_write_paused:
            self.deadline = NEVER
        self._next = cycle
        self._start_next()

    def _learn(self, data: bytes, cycle: Cycle) -> None:
        """`data` was the beginning of one request: where it was all of it, the next one may have the same head."""
        head = cycle.head
        if cycle.request_complete and not (self._in_head or head.http_10 or head.expects_continue):
            self._learnt_in_vain += 1
            self._repeat = self.repeats.of(data, head.noted, cycle.buffered_bytes, head)

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
        url, authority = target
        self._in_head, self._head_bytes = False, 0
        if not self.is_write_paused:
            self.deadline = NEVER
        http_10 = version == "1.0"
        if authority is not None:
            headers = [(name, authority if name == b"host" else value) for name, value in headers]
            noted[b"host"] = authority
        expects = b"expect" in noted and not http_10 and noted[b"expect"].lower() == b"100-continue"
        keep_alive = self.parser.should_keep_alive() and authority is None
        head = Head(method, url, url.partition(b"?")[0], headers, noted, http_10, keep_alive, expects)
        cycle = Cycle(self, head, keep_alive and not self.is_draining, expects_continue=expects)
        self.cycle = cycle
        self.queue.append(cycle)
        if len(self.queue) == 1:
            self._next = cycle  # it starts when all of this read is parsed: most often its body is in it
        else:
            self.flow.pause_reading()

    def scope_of(self, cycle: Cycle) -> dict[str, Any]:
        """The request as ASGI has it."""
        head = cycle.head
        path = head.target.decode("latin-1")
        return {
            "type": "http",
            "asgi": ASGI,
            "http_version": "1.0" if head.http_10 else "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": "",
            "method": head.method,
            "path": unquote(path) if "%" in path else path,
            "raw_path": head.target,
            "query_string": head.url[len(head.target) + 1 :],
            "headers": head.headers,
            "state": self.app_state,
            "router.cycle": cycle,
        }

    def on_body(self, body: bytes) -> None:
        self._body_grew = True
        cycle = cast("Cycle", self.cycle)
        if not cycle.response_complete:
            cycle.feed(body)
            if cycle.buffered_bytes > BODY_HIGH_WATER_BYTES:
                self.flow.pause_reading()

    def on_message_complete(self) -> None:
        cast("Cycle", self.cycle).end_request()

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
            self._leave(cycle)
            if started or self.queue:
                self._is_deaf = True
                self.transport.abort()
                return
        if self.queue:
            self.queue[-1].keep_alive = False  # the answer under way ends the connection
            self._is_deaf = True
            return
        self._refuse(status, text)


def _take_nothing(cycle: Cycle) -> bool:
    return False


def protocol_factory(
    app: Callable[..., Awaitable[None]], limits: WireLimits, deadlines: Deadlines
) -> tuple[type[HttpProtocol], Callable[[], HttpProtocol], ServerState]:
    """The protocol class of one listener (its `is_draining` is the listener's), its factory, and what is open on it.

    An `app` with a method `take` is asked with each request that is all there whether it answers it by itself.
    """
    own_state = {"limits": limits, "deadlines": deadlines, "repeats": Repeats()}
    own = cast("type[HttpProtocol]", type("ListenerProtocol", (HttpProtocol,), own_state))
    own.take = staticmethod(getattr(app, "take", _take_nothing))
    config = Config(cast("Any", app), lifespan="off", ws="none", log_config=None, access_log=False, proxy_headers=False)
    config.load()
    state = ServerState()
    return own, lambda: own(config, state, {}), state
