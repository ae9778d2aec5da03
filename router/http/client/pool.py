"""The data plane: a lean HTTP/1.1 client for one upstream, with a keep-alive pool.

Reasons for our own client (docs/adr/0001-own-http-client-and-server-layer.md): a streaming proxy needs a pool that
survives cancellations, and general clients cost more than the rest of a request. It does not follow redirects, use
proxies, keep cookies or decode bodies.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from typing import cast

from router.http.client.address import Address
from router.http.client.connections import Connections
from router.http.client.limits import ExchangeLimits, PoolLimits
from router.http.client.link import PATIENT, set_options
from router.http.client.outgoing import Body, size_of
from router.http.client.parser import ConnectionGone
from router.http.client.resend import may_resend
from router.http.client.response import Connection, UpstreamRequest, UpstreamResponse
from router.http.client.wire import Wire
from router.http.repeats import MAX_HEAD_BYTES

MOST_FRONTS = 256
"""Heads of requests of which the common part is kept."""


class HttpRelay:
    """An HTTP client for one upstream. All times are in seconds.

    `base_url` may be ``https://`` and may have a path, which is put in front of every target. `pool_size` bounds the
    open connections; a request that finds none free waits for at most `pool_wait_s`, then Busy is raised. `reserve` are
    further ones, for `connect_reserved` while all of the pool are in use. `tls_name` is the name that its certificate
    must have; "" = the host of the URL. An unused connection is closed after `idle_expiry_s`, any one whose other end
    acknowledges nothing after `silent_s`. With `suppress_cancel` an answer that is given up is drained instead of cut
    off, up to `unwanted_bytes` and for at most `unwanted_s`. Raises ValueError for an invalid `base_url`.
    """

    def __init__(
        self,
        base_url: str,
        *,
        connect_timeout_s: float = 2.0,
        first_byte_timeout_s: float = 330.0,
        idle_timeout_s: float = 300.0,
        pool_size: int = 256,
        reserve: int = 0,
        pool_wait_s: float = 30.0,
        idle_expiry_s: float = 60.0,
        silent_s: float = 20.0,
        tls: ssl.SSLContext | None = None,
        authorization: str = "",
        tls_name: str = "",
        suppress_cancel: bool = False,
        unwanted_bytes: int = 64 << 20,
        unwanted_s: float = 300.0,
    ) -> None:
        self._address = Address.of(base_url, tls, authorization, tls_name)
        pool = PoolLimits(pool_size, connect_timeout_s, pool_wait_s, idle_expiry_s, silent_s)
        limits = ExchangeLimits(first_byte_timeout_s, idle_timeout_s, suppress_cancel, unwanted_bytes, unwanted_s)
        self._fronts: dict[tuple[bytes, bytes, bytes], bytes] = {}
        self._connections = Connections(self._address, pool, limits)
        self._reserve = Connections(self._address, replace(pool, max_connections=reserve), limits)

    @property
    def open_connections(self) -> int:
        """The number of connections that are open or being opened, unused ones included."""
        return self._connections.opened + self._reserve.opened

    @property
    def idle_connections(self) -> int:
        """The number of connections that are open and unused."""
        return self._connections.idle + self._reserve.idle

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send `request` and return when the head of its answer has arrived.

        Raises UpstreamError (cannot connect, not HTTP, broken off), UpstreamTimeout or Busy (no free connection).
        """
        if not isinstance(request.body, bytes | list | None):
            return await self._upload(request)
        wire = await self._connections.take()
        head, chunked = self._render(request)
        return await exchange(wire, head, request.body, chunked=chunked, may_resend=may_resend(request))

    async def _upload(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send a body that is a stream, which is never retried; `idle_timeout_s` bounds how long nobody may read it."""
        head, chunked = self._render(request)
        wire = await self._connections.take()
        set_options(wire.transport, PATIENT)
        response = await exchange(wire, head, request.body, chunked=chunked)
        set_options(wire.transport, self._connections.options)
        return response

    def open_now(
        self, request: UpstreamRequest, on_head: Callable[[], None], connection: Connection | None = None
    ) -> UpstreamResponse | None:
        """Send `request` on a free connection without waiting; see `Relay`."""
        wire: Wire | None = connection or self._connections.free()  # type: ignore[assignment]
        while wire is not None:
            head, chunked = self._render(request)
            try:
                may = may_resend(request)
                return wire.begin(head, request.body, chunked=chunked, on_head=on_head, may_resend=may)
            except ConnectionGone:  # closed by the upstream, but asyncio has not reported it yet: try the next one
                wire = self._connections.free()
        return None

    async def connect(self) -> Wire:
        """Return a pooled connection, a new one, or the next one that is returned, whichever is free first."""
        return await self._connections.take()

    async def connect_reserved(self) -> Wire:
        """Return the same, or one of the reserve if the pool has none."""
        if self._connections.is_exhausted and not self._reserve.is_exhausted:
            return await self._reserve.take()
        return await self._connections.take()

    def give_back(self, connection: Connection) -> None:
        """Return an unused connection to the pool."""
        wire = cast("Wire", connection)
        if wire.is_usable:
            wire.owner.put_back(wire)
        else:
            wire.abort()

    async def aclose(self) -> None:
        """Close the unused connections. Answers under way are not affected."""
        await self._connections.aclose()
        await self._reserve.aclose()

    def _render(self, request: UpstreamRequest) -> tuple[bytes, bool]:
        key, body, length = (request.method, request.target, request.lines), request.body, request.content_length
        front = self._fronts.get(key) or self._front(*key)
        if isinstance(body, bytes):
            length = len(body)
            if not request.headers:  # common case
                return b"%b%bcontent-length: %d\r\n\r\n" % (front, request.own_lines, length), False
        elif isinstance(body, list):
            length = size_of(body)
        parts = [front, request.own_lines]
        for name, value in request.headers:
            parts += (name, b": ", value, b"\r\n")
        chunked = body is not None and length is None
        if length is not None:
            parts.append(b"content-length: %d\r\n\r\n" % length)
        else:
            parts.append(b"transfer-encoding: chunked\r\n\r\n" if chunked else b"\r\n")
        return b"".join(parts), chunked

    def _front(self, method: bytes, target: bytes, lines: bytes) -> bytes:
        """Return how the heads of such requests begin, which is kept for the next ones."""
        if len(self._fronts) >= MOST_FRONTS:
            self._fronts.clear()
        front = b"".join((method, b" ", self._address.prefix, target, self._address.fixed, lines))
        if len(front) <= MAX_HEAD_BYTES:
            self._fronts[method, target, lines] = front
        return front


async def exchange(
    wire: Wire,
    head: bytes,
    body: Body | AsyncIterator[bytes] | None,
    *,
    chunked: bool,
    may_resend: bool = False,
) -> UpstreamResponse:
    """Send a request and wait for the head of its answer. Failure and cancellation abort the connection."""
    arrived: asyncio.Future[None] = wire.loop.create_future()
    response = wire.begin(head, body, chunked=chunked, on_head=partial(_wake, arrived), may_resend=may_resend)
    try:
        await arrived
    except BaseException:
        response.close()
        raise
    if not response.status:
        response.raise_error()
    return response


def _wake(waiter: asyncio.Future[None]) -> None:
    """Wake a waiter. Errors are not set on it: asyncio logs an exception that a cancelled waiter does not retrieve."""
    if not waiter.done():
        waiter.set_result(None)
