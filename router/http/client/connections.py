"""The connection pool of one upstream: free connections, connections being opened, and requests that wait for one.

If no connection is free, one is opened, and the request takes whichever is free first: the new one, or one that another
request returns meanwhile. An upstream may accept slowly: nginx accepts one connection per turn of its loop, so that
opening 256 at once took it up to two seconds, while requests on open connections took milliseconds.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque

from router.errors import Busy, UpstreamError, UpstreamUnreached
from router.http.client.address import Address
from router.http.client.limits import ExchangeLimits, PoolLimits
from router.http.client.link import link_options, set_options
from router.http.client.parser import ConnectionGone
from router.http.client.resend import Resend
from router.http.client.response import AnswerHead
from router.http.client.wire import Wire
from router.http.deadlines import NEVER, Deadlines
from router.http.repeats import HeadCache


class Connections:
    """The pool. `opened` is the number of connections that are open or being opened."""

    def __init__(self, address: Address, pool: PoolLimits, limits: ExchangeLimits) -> None:
        self.limits = limits
        self.head_cache: HeadCache[AnswerHead] = HeadCache(is_dated=True)
        self.opened = 0
        self._address = address
        self._pool = pool
        self.options = link_options(pool.silent_s)
        self._is_closed = False
        self._idle: deque[Wire] = deque()
        self._waiters: deque[asyncio.Future[Wire | Exception]] = deque()
        self._opening: set[asyncio.Task[Wire]] = set()
        self._resending: set[asyncio.Task[None]] = set()
        shortest_s = min(limits.first_byte_timeout_s, limits.idle_timeout_s)
        self._deadlines = Deadlines.of(shortest_s, pool.idle_expiry_s, max_s=1.0)

    @property
    def idle(self) -> int:
        """The number of connections that are open and unused."""
        return len(self._idle)

    @property
    def is_exhausted(self) -> bool:
        """True if every connection is in use, and no further one may be opened."""
        return not self._idle and self.opened >= self._pool.max_connections

    # --- taking one --------------------------------------------------------------------------------------------

    def free(self) -> Wire | None:
        """Return an unused connection, None if there is none. It may turn out to be closed."""
        # The most recently used: the least likely to be closed by the upstream.
        return self._idle.pop() if self._idle else None

    async def take(self) -> Wire:
        """Wait for a free connection and return it. Raises UpstreamError, UpstreamUnreached or Busy.

        Once the pool is closed it is ConnectionGone, at once, also for those that wait.
        """
        while True:
            wire = self.free()
            if wire is None and self._is_closed:
                raise self._gone()
            if wire is None:
                self._open_one()
                wire = await self._wait()
            if wire.is_usable:
                return wire
            wire.abort()

    def resend(self, again: Resend) -> bool:
        """Send a request once more, on a new connection even if another is free; return False if it is too late.

        It takes the place of the lost connection, which is still counted.
        """
        loop = asyncio.get_running_loop()
        if self._is_closed or loop.time() - again.sent_s > self._pool.connect_timeout_s:
            return False
        self.opened += 1
        task = loop.create_task(again.run(self._connect, self.put_back))
        self._resending.add(task)
        task.add_done_callback(self._resending.discard)
        return True

    async def _wait(self) -> Wire:
        """Wait for the next free connection. Raises Busy after `wait_s`, or the error of opening one."""
        waiter: asyncio.Future[Wire | Exception] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(self._pool.wait_s):
                got = await waiter
        except BaseException as exc:  # a connection may have been assigned in the same turn of the loop: pass it on
            if waiter.done() and not waiter.cancelled() and isinstance(late := waiter.result(), Wire):
                self.put_back(late)
            if isinstance(exc, TimeoutError):
                raise Busy from None
            raise
        if isinstance(got, Exception):
            try:
                raise got
            finally:
                del got, waiter  # its traceback refers to this frame, and both to the error
        return got

    # --- giving one back ---------------------------------------------------------------------------------------

    def put_back(self, wire: Wire) -> None:
        """Give a free connection to the first waiting request, else keep it for the next one."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                wire.deadline = NEVER
                waiter.set_result(wire)
                return
        if self._is_closed:
            wire.abort()
            return
        wire.is_kept = True
        wire.deadline = wire.loop.time() + self._pool.idle_expiry_s
        self._idle.append(wire)

    def forget(self, wire: Wire) -> None:
        """Remove a closed connection, and open another one if a request waits."""
        self._deadlines.discard(wire)
        if wire in self._idle:
            self._idle.remove(wire)
        if wire.is_owned:
            wire.is_owned = False
            self.opened -= 1
            if self._waiters:
                self._open_one()

    async def aclose(self) -> None:
        """Close the unused connections and open no more. Answers under way are not affected."""
        self._is_closed = True
        await asyncio.sleep(0)  # tasks that have not begun would not correct what they count in `opened`
        opening = (*self._opening, *self._resending)
        for task in opening:
            task.cancel()
        for wire in tuple(self._idle):
            wire.abort()
        self._idle.clear()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(self._gone())
        await asyncio.gather(*opening, return_exceptions=True)
        await asyncio.sleep(0)  # let the transports close

    def _gone(self) -> ConnectionGone:
        return ConnectionGone(f"the connections to {self._address.url} are closed")

    # --- opening -----------------------------------------------------------------------------------------------

    def _open_one(self) -> None:
        """Open a connection in the background, unless the pool is full or closed."""
        if self.opened >= self._pool.max_connections or self._is_closed:
            return
        self.opened += 1  # counted before the connect, or concurrent requests would exceed the limit
        task = asyncio.get_running_loop().create_task(self._connect())
        self._opening.add(task)
        task.add_done_callback(self._has_opened)

    def _has_opened(self, task: asyncio.Task[Wire]) -> None:
        self._opening.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self.put_back(task.result())
        elif isinstance(error, Exception):
            self._fail_one(error)

    def _fail_one(self, error: Exception) -> None:
        """Fail the first waiting request if more requests wait than connections are being opened."""
        waiting = [waiter for waiter in self._waiters if not waiter.done()]
        if len(waiting) > len(self._opening):
            self._waiters.remove(waiting[0])
            waiting[0].set_result(error)

    async def _connect(self) -> Wire:
        """Return a new connection. It is already counted in `opened`; a failure corrects that."""
        loop, address, timeout_s = asyncio.get_running_loop(), self._address, self._pool.connect_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                _, wire = await loop.create_connection(
                    lambda: Wire(self, loop),
                    address.host,
                    address.port,
                    ssl=address.tls,
                    server_hostname=address.tls_name,
                )
            if wire.is_closed:
                raise ConnectionGone("the upstream closed the connection at once")
            set_options(wire.transport, self.options)
        except BaseException as exc:
            self.opened -= 1
            if not isinstance(exc, TimeoutError):
                raise self._named(exc) from exc
        else:
            wire.is_owned = True
            self._deadlines.add(wire)
            return wire
        # Not while asyncio's error is handled: it refers to this task, and the task to what it ends with.
        raise UpstreamUnreached(f"no connection to {address.url} within {timeout_s:g} s")

    def _named(self, error: BaseException) -> BaseException:
        """Return the router's error for an error while connecting, any other error unchanged."""
        if isinstance(error, (OSError, ssl.SSLError)):
            return UpstreamError(f"cannot connect to {self._address.url}: {error.strerror or error}")
        return error
