"""The data plane: a lean HTTP/1.1 client for one upstream, with a keep-alive pool.

Why our own (docs/adr/0001-own-http-client-and-server-layer.md): a pool that dies under cancellations is of no use to a
streaming proxy, and the general clients cost more than all the rest of a request. It does no redirects, no proxies, no
cookies, no decoding.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import cast

from router.errors import Busy, UpstreamError, UpstreamTimeout
from router.http.client.address import Address
from router.http.client.parser import ConnectionGone
from router.http.client.response import AnswerHead, Connection, UpstreamRequest, UpstreamResponse
from router.http.client.wire import Wire
from router.http.deadlines import NEVER, Deadlines
from router.http.repeats import Repeats


class HttpRelay:
    """See the module. All times are in seconds.

    `base_url` may be ``https://`` and may carry a path that goes in front of every target. `pool_size` bounds the open
    connections; who finds none free waits at most `pool_wait_s`, then Busy is raised. An unused connection is closed
    after `idle_expiry_s`. With `suppress_cancel` an answer that is given up is read on and thrown away, up to
    `unwanted_bytes` and for `unwanted_s`.
    Raises ValueError for a `base_url` that cannot be one.
    """

    def __init__(
        self,
        base_url: str,
        *,
        connect_timeout_s: float = 2.0,
        first_byte_timeout_s: float = 330.0,
        idle_timeout_s: float = 300.0,
        pool_size: int = 256,
        pool_wait_s: float = 30.0,
        idle_expiry_s: float = 60.0,
        tls: ssl.SSLContext | None = None,
        suppress_cancel: bool = False,
        unwanted_bytes: int = 64 << 20,
        unwanted_s: float = 300.0,
    ) -> None:
        self.first_byte_timeout_s = first_byte_timeout_s
        self.idle_timeout_s = idle_timeout_s
        self.repeats: Repeats[AnswerHead] = Repeats(is_dated=True)
        self.suppress_cancel = suppress_cancel
        self.unwanted_bytes = unwanted_bytes
        self.unwanted_s = unwanted_s
        self._address = Address.of(base_url, tls)
        self._connect_timeout_s = connect_timeout_s
        self._pool_size = pool_size
        self._pool_wait_s = pool_wait_s
        self._idle_expiry_s = idle_expiry_s
        self._idle: deque[Wire] = deque()
        self._waiters: deque[asyncio.Future[Wire | None]] = deque()
        self._open = 0
        self._deadlines = Deadlines.of(first_byte_timeout_s, idle_timeout_s, idle_expiry_s, most_s=1.0)

    @property
    def open_connections(self) -> int:
        """Connections that are open or being opened, the unused ones included."""
        return self._open

    @property
    def idle_connections(self) -> int:
        return len(self._idle)

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send `request` and return when the head of its answer is there.

        Raises UpstreamError (cannot connect, no HTTP, broken off), UpstreamTimeout or Busy (no free connection). A
        dead pooled connection costs one silent retry if not a single byte came back and the request may be resent.
        """
        head, chunked = self._render(request)
        free = self._free_wire()
        wire, is_reused = (free, True) if free is not None else await self._acquire()
        try:
            return await exchange(wire, head, request.body, chunked=chunked)
        except ConnectionGone:
            if not (is_reused and _may_resend(request)):
                raise
        return await exchange(await self._connect(), head, request.body, chunked=chunked)

    def open_now(
        self, request: UpstreamRequest, on_head: Callable[[], None], connection: Connection | None = None
    ) -> UpstreamResponse | None:
        """Send `request`, whose body is complete, on a free connection without waiting; see `Relay`."""
        wire: Wire | None = connection or self._free_wire()  # type: ignore[assignment]
        while wire is not None:
            head, chunked = self._render(request)
            try:
                return wire.begin(head, request.body, chunked=chunked, on_head=on_head)
            except ConnectionGone:  # it is closed, and its protocol was not called yet: the next one
                wire = self._free_wire()
        return None

    async def connect(self) -> Wire:
        """A free connection: a pooled one, else a new one while there is room, else the next that is given back."""
        return self._free_wire() or (await self._acquire())[0]

    def _free_wire(self) -> Wire | None:
        """An unused connection that can be used."""
        while self._idle:
            wire = self._idle.pop()
            if wire.is_usable:
                return wire
            wire.abort()
        return None

    async def aclose(self) -> None:
        """Close the unused connections. Answers that are being read go on."""
        self._pool_size = 0
        for wire in tuple(self._idle):
            wire.abort()
        self._idle.clear()
        await asyncio.sleep(0)

    def give_back(self, connection: Connection) -> None:
        """Return a connection that was not used after all."""
        wire = cast("Wire", connection)
        if wire.is_usable:
            self.put_back(wire)
        else:
            wire.abort()

    def put_back(self, wire: Wire) -> None:
        """`wire` has done its exchange and can do another."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                wire.deadline = NEVER
                waiter.set_result(wire)
                return
        if self._pool_size == 0:
            wire.abort()
            return
        wire.deadline = wire.loop.time() + self._idle_expiry_s
        self._idle.append(wire)

    def forget(self, wire: Wire) -> None:
        """`wire` is closed."""
        self._deadlines.discard(wire)
        if wire in self._idle:
            self._idle.remove(wire)
        if wire.is_owned:
            wire.is_owned = False
            self._free_slot()

    def _render(self, request: UpstreamRequest) -> tuple[bytes, bool]:
        parts = [request.method, b" ", self._address.prefix, request.target, self._address.fixed]
        for name, value in request.headers:
            parts += (name, b": ", value, b"\r\n")
        body, length = request.body, request.content_length
        if isinstance(body, bytes):
            length = len(body)
        chunked = body is not None and length is None
        if length is not None:
            parts.append(b"content-length: %d\r\n\r\n" % length)
        else:
            parts.append(b"transfer-encoding: chunked\r\n\r\n" if chunked else b"\r\n")
        return b"".join(parts), chunked

    async def _acquire(self) -> tuple[Wire, bool]:
        """A connection and whether it was used before: a new one while there is room, else the next given back."""
        while self._open >= self._pool_size:
            wire = await self._wait()
            if wire is not None and not wire.is_closed:
                return wire, True
        return await self._connect(), False

    async def _wait(self) -> Wire | None:
        """Queue for a connection; None means that there is room for a new one. Raises Busy after `pool_wait_s`."""
        waiter: asyncio.Future[Wire | None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(self._pool_wait_s):
                return await waiter
        except BaseException as exc:
            if waiter.done() and not waiter.cancelled():
                self._pass_on(waiter.result())
            if isinstance(exc, TimeoutError):
                raise Busy from None
            raise

    def _pass_on(self, wire: Wire | None) -> None:
        """Somebody was given `wire` (or room for one) and left."""
        if wire is None:
            self._wake_one()
        elif not wire.is_closed:
            self.put_back(wire)

    async def _connect(self) -> Wire:
        loop = asyncio.get_running_loop()
        self._open += 1
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, wire = await loop.create_connection(
                    lambda: Wire(self, loop),
                    self._address.host,
                    self._address.port,
                    ssl=self._address.tls,
                    server_hostname=self._address.host if self._address.tls else None,
                )
            if wire.is_closed:
                raise ConnectionGone("the upstream closed the connection at once")
        except TimeoutError as exc:
            self._free_slot()
            raise UpstreamTimeout(f"no connection to {self._address.url} within {self._connect_timeout_s:g} s") from exc
        except (OSError, ssl.SSLError) as exc:
            self._free_slot()
            raise UpstreamError(f"cannot connect to {self._address.url}: {exc.strerror or exc}") from exc
        except BaseException:
            self._free_slot()
            raise
        wire.is_owned = True
        self._deadlines.add(wire)
        return wire

    def _free_slot(self) -> None:
        self._open -= 1
        self._wake_one()

    def _wake_one(self) -> None:
        while self._waiters and self._open < self._pool_size:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return


async def exchange(
    wire: Wire, head: bytes, body: bytes | AsyncIterator[bytes] | None, *, chunked: bool
) -> UpstreamResponse:
    """Send a request and wait for the head of its answer. Any failure or cancellation aborts the connection."""
    arrived: asyncio.Future[None] = wire.loop.create_future()
    response = wire.begin(head, body, chunked=chunked, on_head=partial(_wake, arrived))
    try:
        await arrived
    except BaseException:
        if wire.is_answering(response):
            wire.cancel()
        raise
    if not response.status:
        response.raise_error()
    return response


def _wake(waiter: asyncio.Future[None]) -> None:
    """Never by `set_exception`: a waiter that leaves now would not retrieve it."""
    if not waiter.done():
        waiter.set_result(None)


def _may_resend(request: UpstreamRequest) -> bool:
    """True when a second try cannot do more than the first: nothing of the body is used up, and the caller agrees."""
    if request.body is not None and not isinstance(request.body, bytes):
        return False
    return request.safe_to_resend or request.method in (b"GET", b"HEAD")
