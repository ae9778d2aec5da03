"""What the relay hands out: a request to send and the answer that is being read. No sockets here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

import msgspec

from router.errors import UpstreamError
from router.http.headers import Header

HIGH_WATER_BYTES = 256 << 10
"""So much of an answer is held for a reader that is slow; beyond it the upstream's connection is not read."""


class UpstreamRequest(msgspec.Struct):
    """What to ask the upstream. `target` and `headers` go out as they are; Host, framing and Accept-Encoding are ours.

    An iterator as `body` is streamed: with `content_length` under a Content-Length, else chunked. `safe_to_resend`
    allows one more try on a fresh connection when a pooled one turns out to be dead before any byte of the answer
    (bodies that are iterators never are; GET and HEAD always).
    """

    method: bytes
    target: bytes
    headers: Sequence[Header] = ()
    body: bytes | AsyncIterator[bytes] | None = None
    content_length: int | None = None
    safe_to_resend: bool = False


class AnswerSource(Protocol):
    """The connection that an answer comes from."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def cancel(self) -> None: ...


class AnswerHead(msgspec.Struct, eq=False):
    """What the head of an answer says. Answers that repeat a head share it (its date too): nobody changes its headers.

    `headers` are lower-cased names with their values, in the upstream's order, hop-by-hop ones included; `noted` are
    the same as a dict. `reading` is what is sent on of it, kept by whoever sends it, for the repeats.
    """

    status: int
    headers: list[Header]
    noted: dict[bytes, bytes]
    reading: Any = None


NO_HEAD = AnswerHead(0, [], {})
"""Of an answer that has not come yet."""


class UpstreamResponse(msgspec.Struct, eq=False):
    """The answer of the upstream. Whoever holds it must read it to its end or `close` it.

    `status` is 0 while there is no head.
    """

    source: AnswerSource | None
    head: AnswerHead
    status: int = 0
    _chunks: list[bytes] = []
    _buffered: int = 0
    _paused: bool = False
    _ended: bool = False
    _error: Exception | None = None
    _sink: Callable[[bytes], bool] | None = None
    _refused: Exception | bool = False  # by the sink: what it raised, or that it wants no more
    _waiter: asyncio.Future[None] | None = None

    @property
    def headers(self) -> list[Header]:
        return self.head.headers

    @property
    def noted(self) -> dict[bytes, bytes]:
        return self.head.noted

    def begin(self, head: AnswerHead) -> None:
        """The head has come."""
        self.head = head
        self.status = head.status

    @classmethod
    def of(cls, status: int, headers: Sequence[Header], body: bytes = b"") -> UpstreamResponse:
        """A complete answer without a connection, for tests and for answers that we make ourselves."""
        response = cls(None, NO_HEAD)
        response.begin(AnswerHead(status, list(headers), dict(headers)))
        if body:
            response.feed(body)
        response.finish()
        return response

    @property
    def is_complete(self) -> bool:
        """True when the whole answer has arrived (it may still wait to be read)."""
        return self._ended

    def read_nowait(self) -> bytes | None:
        """What has arrived and was not read yet; b"" at the clean end; None when there is nothing yet.

        Raises the UpstreamError that ended the answer, after all bytes before it were read.
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

    def raise_error(self) -> None:
        """Raise what ended the answer, if something did."""
        if (error := self._error) is not None:
            self._error = UpstreamError(str(error))  # what is raised is not kept: its traceback leads back here
            try:
                raise error
            finally:
                del error

    async def read(self) -> bytes:
        """The next bytes as soon as there are any; b"" at the clean end. Raises UpstreamError when it was cut."""
        while (chunk := self.read_nowait()) is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return chunk

    async def pour(self, sink: Callable[[bytes], bool]) -> bool:
        """Hand each piece to `sink` as soon as it is read, without a turn of the loop in between.

        True at the clean end; False when `sink` has said (by False) that it wants no more for now: call again then.
        Raises UpstreamError when the answer was cut, and what `sink` raised.
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
                raise refused
            if refused:
                return False
        return True

    def close(self) -> None:
        """Give the answer up. Cancels it at the upstream unless it has arrived completely. Idempotent."""
        source, self.source = self.source, None
        if source is not None and not self._ended:
            self._ended = True
            self._chunks.clear()
            source.cancel()

    def drop(self, most_bytes: int, too_much: Callable[[], None]) -> None:
        """Throw away what comes, and call `too_much` when it is more than `most_bytes`."""
        left = most_bytes

        def swallow(chunk: bytes) -> bool:
            nonlocal left
            left -= len(chunk)
            if left < 0:
                too_much()
            return True

        self._sink = swallow

    def feed(self, chunk: bytes) -> None:
        """The connection has read `chunk` of the body."""
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
        if self._buffered > HIGH_WATER_BYTES and not self._paused and self.source is not None:
            self._paused = True
            self.source.pause()
        self._wake()

    def finish(self) -> None:
        """The body is complete; the connection is no longer ours."""
        self._ended = True
        self.source = None
        self._wake()

    def fail(self, error: Exception) -> None:
        """The answer was cut off: what arrived before can still be read, then `error` is raised."""
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
    """The way to an upstream's data plane."""

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send `request` and return when the head of its answer is there. Raises UpstreamError.

        A caller that is cancelled here has cancelled the request at the upstream.
        """
        ...

    def open_now(
        self, request: UpstreamRequest, on_head: Callable[[], None], connection: Connection | None = None
    ) -> UpstreamResponse | None:
        """Send a request whose body is complete, without waiting; None when no connection is free.

        `connection` is one that `connect` has returned. `on_head` is called once, when the head is there or none will
        come (`status` is 0 then, and `raise_error` raises the reason); never before this returns, and not after the
        answer was closed.
        """
        ...

    async def connect(self) -> Connection:
        """A free connection, for `open_now` or `give_back`. Raises UpstreamError, UpstreamTimeout or Busy."""
        ...

    def give_back(self, connection: Connection) -> None:
        """Return a connection that is not used after all."""

    async def aclose(self) -> None: ...


class ScriptedRelay:
    """A relay without a network, for tests: `answer` makes the answer to each request, which is kept in `requests`."""

    def __init__(self, answer: Callable[[UpstreamRequest], UpstreamResponse]) -> None:
        self._answer = answer
        self.requests: list[UpstreamRequest] = []

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        self.requests.append(request)
        response = self._answer(request)
        if response.status == 0:
            raise UpstreamError("the upstream sent no answer")
        return response

    def open_now(
        self, request: UpstreamRequest, on_head: Callable[[], None], connection: Connection | None = None
    ) -> UpstreamResponse | None:
        """No connection is ever free, except one that was asked for."""
        if connection is None:
            return None
        self.requests.append(request)
        asyncio.get_running_loop().call_soon(on_head)
        return self._answer(request)

    async def connect(self) -> Connection:
        return self

    def give_back(self, connection: Connection) -> None:
        """Nothing to keep."""

    async def aclose(self) -> None:
        """Nothing to close."""
