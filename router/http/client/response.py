"""Requests to an upstream, and the answers while they are read. No sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

import msgspec

from router.errors import UpstreamError
from router.http.client.outgoing import Body
from router.http.headers import Header

HIGH_WATER_BYTES = 256 << 10
"""Maximum buffer for a slow reader of an answer; beyond it the upstream's connection is not read."""


class UpstreamRequest(msgspec.Struct, gc=False):
    """A request to send. `target` and `headers` are sent unchanged; Host, framing and Accept-Encoding are added.

    `lines` are further headers, rendered by `header_lines`: many requests may share them. `own_lines` are those that no
    other request has.

    A body of several pieces is sent like one of one piece. One that is an iterator is streamed, with a Content-Length
    if `content_length` is set, else chunked.
    `safe_to_resend` says that it does no harm if the upstream reads it twice; see `resend.py`.
    """

    method: bytes
    target: bytes
    headers: Sequence[Header] = ()
    body: Body | AsyncIterator[bytes] | None = None
    content_length: int | None = None
    safe_to_resend: bool = False
    lines: bytes = b""
    own_lines: bytes = b""


class AnswerSource(Protocol):
    """The connection that an answer is read from."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def cancel(self) -> None: ...


class AnswerHead(msgspec.Struct, eq=False):
    """The head of an answer. Answers that repeat a head share it, date included, so it must not be modified.

    `headers` are lower-cased names with values in the upstream's order, hop-by-hop headers included; `by_name` is the
    same as a dict. `cached` is what the sender derives from it.
    """

    status: int
    headers: list[Header]
    by_name: dict[bytes, bytes]
    cached: Any = None


NO_HEAD = AnswerHead(0, [], {})
"""The head of an answer that has not arrived."""


class UpstreamResponse(msgspec.Struct, eq=False):
    """An answer of the upstream. Its owner must read it to its end or `close` it. `status` is 0 without a head."""

    source: AnswerSource | None
    head: AnswerHead
    status: int = 0
    _chunks: list[bytes] = []
    _buffered: int = 0
    _paused: bool = False
    _ended: bool = False
    _error: Exception | None = None
    _sink: Callable[[bytes], bool] | None = None
    _refused: Exception | bool = False  # what the sink raised, or True if it returned False
    _waiter: asyncio.Future[None] | None = None

    @property
    def headers(self) -> list[Header]:
        return self.head.headers

    @property
    def by_name(self) -> dict[bytes, bytes]:
        return self.head.by_name

    def begin(self, head: AnswerHead) -> None:
        """Set the head, which has arrived."""
        self.head = head
        self.status = head.status

    @classmethod
    def of(cls, status: int, headers: Sequence[Header], body: bytes = b"") -> UpstreamResponse:
        """Return a complete answer without a connection, for tests and for answers of the router's own."""
        response = cls(None, NO_HEAD)
        response.begin(AnswerHead(status, list(headers), dict(headers)))
        if body:
            response.feed(body)
        response.finish()
        return response

    @classmethod
    def unwanted(cls, max_bytes: int, too_much: Callable[[], None]) -> UpstreamResponse:
        """Return an answer that discards what arrives, and calls `too_much` when that is more than `max_bytes`."""
        left = max_bytes

        def swallow(chunk: bytes) -> bool:
            nonlocal left
            left -= len(chunk)
            if left < 0:
                too_much()
            return True

        # Its head may have arrived already, and without a status its end would be ignored.
        return cls(None, NO_HEAD, 200, _sink=swallow)

    @property
    def is_complete(self) -> bool:
        """True if the whole answer has arrived (it may not have been read yet)."""
        return self._ended

    def read_nowait(self) -> bytes | None:
        """Return the bytes that have arrived; b"" at the clean end; None if there are none yet.

        Raises the UpstreamError that ended the answer, after the bytes that arrived in front of it were read.
        """
        chunks = self._chunks
        if chunks:
            chunk = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            chunks.clear()
            self._buffered = 0
            if self._paused:
                self._paused = False
                if self.source is not None:
                    self.source.resume()
            return chunk
        self.raise_error()
        return b"" if self._ended else None

    def peek(self) -> bytes:
        """Return the bytes that have arrived, and leave them to be read."""
        return b"".join(self._chunks)

    def raise_error(self) -> None:
        """Raise the error that ended the answer, if there is one."""
        if (error := self._error) is not None:
            self._error = UpstreamError(str(error))  # a copy: the traceback of the raised one refers to this object
            try:
                raise error
            finally:
                del error

    async def read(self) -> bytes:
        """Wait for the next bytes and return them; b"" at the clean end. Raises UpstreamError if it was cut off."""
        while (chunk := self.read_nowait()) is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return chunk

    async def pour(self, sink: Callable[[bytes], bool]) -> bool:
        """Call `sink` with each piece as soon as it is read, without a turn of the event loop in between.

        Returns True at the clean end; False if `sink` returned False to pause: call again to continue. Raises
        UpstreamError if the answer was cut off, and what `sink` raised.
        """
        while (chunk := self.read_nowait()) != b"":
            if chunk is not None:
                if not sink(chunk):
                    return False
                continue
            self._waiter, self._sink = asyncio.get_running_loop().create_future(), sink
            try:
                await self._waiter
            finally:
                self._waiter = self._sink = None
            refused, self._refused = self._refused, False
            if isinstance(refused, Exception):
                try:
                    raise refused
                finally:
                    del refused
            if refused:
                return False
        return True

    def close(self) -> None:
        """Give up the answer: cancel it at the upstream unless it has arrived completely. Idempotent."""
        source, self.source = self.source, None
        if source is not None and not self._ended:
            self._ended = True
            self._chunks.clear()
            source.cancel()

    def feed(self, chunk: bytes) -> None:
        """Take a piece of the body from the connection."""
        if self._sink is not None:
            try:
                self._refused = not self._sink(chunk)
            except Exception as exc:
                self._refused = exc
            if self._refused is not False:
                self._sink = None
                self._wake()
            return
        self._chunks.append(chunk)
        self._buffered += len(chunk)
        # Backpressure: TCP slows the upstream down until the reader has caught up.
        if self._buffered > HIGH_WATER_BYTES and not self._paused and self.source is not None:
            self._paused = True
            self.source.pause()
        if self._waiter is not None:
            self._wake()

    def arrive(self, head: AnswerHead, body: bytes) -> None:
        """Take a whole answer that came in one piece: as `begin`, `feed` and `finish` would."""
        self.head, self.status = head, head.status
        if self._sink is not None:
            self.feed(body)
        elif body:
            self._chunks.append(body)
            self._buffered = len(body)
        self._ended, self.source = True, None
        if self._waiter is not None:
            self._wake()

    def finish(self) -> None:
        """End the body; the connection belongs to its pool again."""
        self._ended = True
        self.source = None
        if self._waiter is not None:
            self._wake()

    def fail(self, error: Exception) -> None:
        """End the answer by an error, which is raised after what arrived in front of it was read."""
        if not self._ended and self._error is None:
            self._error = error
            self.source = None
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Connection(Protocol):
    """A connection to the upstream that is free for one request."""


class Relay(Protocol):
    """A client for an upstream's data plane."""

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send `request` and return when the head of its answer has arrived. Raises UpstreamError.

        Cancelling the call cancels the request at the upstream.
        """
        ...

    def open_now(
        self, request: UpstreamRequest, on_head: Callable[[], None], connection: Connection | None = None
    ) -> UpstreamResponse | None:
        """Send a request whose body is complete, without waiting; return None if no connection is free.

        `connection` is one that `connect` has returned. `on_head` is called once, when the head has arrived or there
        will be none (then `status` is 0 and `raise_error` raises the reason); never before this method returns, and
        not after the answer was closed.
        """
        ...

    async def connect(self) -> Connection:
        """Return a free connection for `open_now` or `give_back`. Raises UpstreamError, UpstreamTimeout or Busy."""
        ...

    async def connect_reserved(self) -> Connection:
        """Return the same, or one that is kept for clients with few requests, if all others are in use."""
        ...

    def give_back(self, connection: Connection) -> None:
        """Return an unused connection to the pool."""

    async def aclose(self) -> None: ...
